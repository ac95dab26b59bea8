"""What the daemon tells systemd: ready, reloading, stopping, alive, and a line of status (sd_notify(3), systemd.service(5)).

The protocol is a datagram of `NAME=value` lines to the socket that NOTIFY_SOCKET names. Nothing here waits, logs or raises: a
service manager that does not listen must not stop an audit. What a full socket did not take is owed, and goes with the next
message; so a lost READY=1 does not end in a start that times out.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Self

from exitguard.report.text import visible

_SOCKET, _WATCHDOG, _WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
_MICROSECONDS = 1_000_000
_NANOSECONDS_PER_MICROSECOND = 1000
#: systemd reads datagrams of at most 4096 bytes (NOTIFY_BUFFER_MAX in its src/core/manager.c), and a character is up to four.
_STATUS_CHARACTERS = 500
#: systemd counts what does not fit into 64 bits as no time-out.
_LIMIT_MICROSECONDS = 2**64 - 1


class Notifier:
    """The way to the service manager; without one every method returns at once. Any thread and signal handler may call it."""

    def __init__(
        self, address: bytes | None, watchdog_seconds: float | None, *, monotonic_nanoseconds: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """`address` as for AF_UNIX, an abstract one beginning with NUL; the clock is CLOCK_MONOTONIC, by which systemd compares."""
        self._address = address
        self._socket = _datagram_socket() if address is not None else None
        #: How long systemd waits between two signs of life; None where it does not.
        self.watchdog_seconds = watchdog_seconds if self._socket is not None else None
        self._clock = monotonic_nanoseconds
        self._alive_at: int | None = None
        # The newest state and status that the socket did not take. Reentrant, since a signal handler may interrupt a send.
        self._lock = threading.RLock()
        self._owed_state: tuple[str, ...] = ()
        self._owed_status: tuple[str, ...] = ()

    @classmethod
    def from_environment(
        cls,
        environ: MutableMapping[str, str],
        *,
        process_id: int | None = None,
        monotonic_nanoseconds: Callable[[], int] = time.monotonic_ns,
    ) -> Self:
        """The notifier that systemd's variables ask for. They are removed from `environ`: no child is to speak for this process.

        `process_id` is whose watchdog counts, this process if None.
        """
        name = environ.pop(_SOCKET, "")
        microseconds = environ.pop(_WATCHDOG, "")
        watched = environ.pop(_WATCHDOG_PID, "")
        own = os.getpid() if process_id is None else process_id
        # As sd_watchdog_enabled(3): the variables may have been meant for a parent; without WATCHDOG_PID they are for anyone.
        watchdog_seconds = _watchdog_seconds(microseconds) if watched in ("", str(own)) else None
        return cls(_address(name), watchdog_seconds, monotonic_nanoseconds=monotonic_nanoseconds)

    def ready(self, status: str) -> None:
        """The start, or a reload, is complete."""
        self._tell(state=("READY=1",), status=status)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._tell(status=text)

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. The time lets Type=notify-reload tell this reload from one before its signal."""
        self._tell(state=("RELOADING=1", f"MONOTONIC_USEC={self._clock() // _NANOSECONDS_PER_MICROSECOND}"))

    def stopping(self) -> None:
        """The end begins."""
        self._tell(state=("STOPPING=1",))

    def alive(self) -> None:
        """A sign of life, for the job loop to give as often as it likes: sent at most four times in `watchdog_seconds`."""
        with self._lock:
            now = self._clock()
            if self.watchdog_seconds is not None and (
                self._alive_at is None or (now - self._alive_at) * 4 >= self.watchdog_seconds * _MICROSECONDS * _NANOSECONDS_PER_MICROSECOND
            ):
                if self._tell(sign_of_life=("WATCHDOG=1",)):
                    self._alive_at = now
            elif self._owed_state or self._owed_status:
                self._tell()

    def close(self) -> None:
        """Give the socket back; from then on nothing is told."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None

    def _tell(self, *, state: tuple[str, ...] = (), status: str | None = None, sign_of_life: tuple[str, ...] = ()) -> bool:
        """Send this with what is owed; False where the socket did not take it. A newer state or status replaces an owed one."""
        with self._lock:
            if self._socket is None or self._address is None:
                return False
            state = state or self._owed_state
            told = (f"STATUS={visible(status, limit_characters=_STATUS_CHARACTERS)}",) if status is not None else self._owed_status
            message = "\n".join((*state, *told, *sign_of_life))
            try:
                self._socket.sendto(message.encode(), self._address)
            except OSError:  # its queue is full, nobody listens, or the path is gone: all may pass
                self._owed_state, self._owed_status = state, told
                return False
            self._owed_state = self._owed_status = ()
            return True


def _address(name: str) -> bytes | None:
    """The AF_UNIX address that NOTIFY_SOCKET names; None for none, and for a kind that is not local (vsock:)."""
    raw = os.fsencode(name)
    if raw.startswith(b"@"):
        return b"\0" + raw[1:]
    return raw if raw.startswith(b"/") else None


def _datagram_socket() -> socket.socket | None:
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    except OSError:  # no descriptor left, or AF_UNIX forbidden: the service manager will time out, and say so
        return None


def _watchdog_seconds(text: str) -> float | None:
    """WATCHDOG_USEC in seconds; None for what systemd would not have written."""
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(_LIMIT_MICROSECONDS)):
        return None
    microseconds = int(text)
    return microseconds / _MICROSECONDS if 0 < microseconds < _LIMIT_MICROSECONDS else None
