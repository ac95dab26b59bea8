"""libvirt's lifecycle events: which domain was defined, started, stopped or undefined just now.

They come over a connection of their own, which is kept open. libvirt delivers them in the thread that runs its event loop; what is
called there must be quick, and must not call libvirt. An event that is lost with its connection is lost: whoever connects
again has to look at everything anew.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from exitguard.facts.libvirt.conversation import KEEPALIVE_PROBES, KEEPALIVE_SECONDS
from exitguard.facts.libvirt.words import keep_quiet, message_of

_loop_lock = threading.Lock()
_loop_runs = False


class EventsUnavailable(Exception):  # noqa: N818 - nobody's error: the daemon may come later
    """There are no events from here; the message says why."""


@dataclass
class LifecycleEvents:
    """The events of the libvirt at `uri`.

    `on_event` gets a domain's uuid, `on_change` is called when the connection came or went; both in threads of libvirt's.
    """

    uri: str
    on_event: Callable[[str], None]
    on_change: Callable[[], None]
    #: Why there is no connection; None while there is one.
    obstacle: str | None = "not connected yet"
    _connection: Any = None
    #: A connection that broke, not yet taken apart.
    _left: Any = None
    _callback: int = -1
    _connecting: threading.Thread | None = None
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def connect(self) -> None:
        """Begin to connect, where there is no connection and no attempt under way. Returns at once: opening may block for good.

        Raises EventsUnavailable where libvirt-python is missing.
        """
        try:
            import libvirt
        except ImportError as error:
            raise EventsUnavailable(f"libvirt-python cannot be loaded: {error}") from None
        with self._lock:
            attempt_under_way = self._connecting is not None and self._connecting.is_alive()
            if self._closed or self.connected or attempt_under_way:
                return
            _ensure_loop(libvirt)
            self._connecting = threading.Thread(target=self._connect, args=(libvirt,), name="libvirt-connect", daemon=True)
            self._connecting.start()

    def close(self) -> None:
        """No event after this. The connection ends with the process: closing it could block behind a daemon that hangs."""
        self._closed = True

    def _connect(self, libvirt: Any) -> None:
        keep_quiet(libvirt)
        self._take_apart(libvirt)
        connection = None
        try:
            connection = libvirt.openReadOnly(self.uri)
            connection.registerCloseCallback(self._lost, None)
            self._callback = connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._event, None)
        except libvirt.libvirtError as error:
            self.obstacle = message_of(error)
            if connection is not None:  # it may connect and not listen: its callback would hold it for ever
                with suppress(libvirt.libvirtError):
                    connection.unregisterCloseCallback()
            self.on_change()
            return
        with suppress(libvirt.libvirtError):  # an embedded driver has nobody to probe, and nobody that could hang
            connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_PROBES)
        with self._lock:
            if self._left is connection:  # it broke at once
                return
            self._connection, self.obstacle = connection, None
        self.on_change()

    def _take_apart(self, libvirt: Any) -> None:
        """Let go of a connection that broke: its callbacks hold it, and would for ever. Not in a callback of its own."""
        connection, self._left = self._left, None
        if connection is None:
            return
        with suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(self._callback)
        with suppress(libvirt.libvirtError):
            connection.unregisterCloseCallback()

    def _event(self, _connection: Any, domain: Any, _event: int, _detail: int, _opaque: object) -> None:
        if not self._closed:
            self.on_event(domain.UUIDString())

    def _lost(self, connection: Any, reason: int, _opaque: object) -> None:
        with self._lock:
            if self._connection is not None and self._connection is not connection:
                return
            self._connection, self._left = None, connection
            self.obstacle = _CLOSE_REASONS.get(reason, f"the connection was closed (reason {reason})")
        if not self._closed:
            self.on_change()


#: virConnectCloseReason (include/libvirt/libvirt-host.h).
_CLOSE_REASONS = {
    0: "the connection broke",
    1: "libvirtd ended",
    2: "libvirtd answered no probe: it hangs or is stopped",
    3: "the connection was closed by this side",
}


def _ensure_loop(libvirt: Any) -> None:
    """The event loop of libvirt, in one thread for the whole process; it must be there before a connection that wants events."""
    global _loop_runs  # noqa: PLW0603 - libvirt's loop is one for the process
    with _loop_lock:
        if not _loop_runs:
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=_run_loop, args=(libvirt,), name="libvirt-events", daemon=True).start()
            _loop_runs = True


def _run_loop(libvirt: Any) -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:  # without this thread no event would ever come again
            time.sleep(1.0)
