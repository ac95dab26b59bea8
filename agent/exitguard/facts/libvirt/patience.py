"""How long a reading waits for libvirt, and what it remembers of the calls that it gave up.

A client's time-out frees nothing in the daemon: the call that was given up still holds one of its workers. So whoever reads
again and again, as a daemon does, keeps one BlockedCalls from reading to reading: what is still blocked is not asked again.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

#: More calls than this left in the daemon at one time would be a burden to it, whatever they wait for.
MAX_BLOCKED = 8
#: How the reason begins where a question was not even put.
NOT_ASKED = "not asked"


@dataclass(frozen=True)
class _Blocked:
    thread: threading.Thread
    #: The domain that the call is about; None for one that is about the host.
    uuid: str | None


@dataclass
class BlockedCalls:
    """The calls that were given up and may still be answered. For one libvirt, and for one thread."""

    _calls: list[_Blocked] = field(default_factory=list)

    def add(self, thread: threading.Thread, uuid: str | None) -> None:
        """Remember the call that `thread` makes, until that thread ends."""
        self._calls.append(_Blocked(thread, uuid))

    def __len__(self) -> int:
        self._calls = [call for call in self._calls if call.thread.is_alive()]
        return len(self._calls)

    @property
    def domains(self) -> frozenset[str]:
        """The uuids of the domains whose call is still blocked."""
        return frozenset(call.uuid for call in self._calls if call.uuid is not None and call.thread.is_alive())

    @property
    def why_not_now(self) -> str | None:
        """Why nothing at all should be asked now; None where it may."""
        if any(call.uuid is None and call.thread.is_alive() for call in self._calls):
            return f"{NOT_ASKED}: the daemon has not answered an earlier call yet"
        if len(self) >= MAX_BLOCKED:
            return f"{NOT_ASKED}: {MAX_BLOCKED} earlier calls still wait for their domains"
        return None


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Patience:
    """What a reading may take. `pulse` is called at least twice a second while it waits or works; it may raise to end the reading."""

    call_timeout_seconds: float
    pulse: Callable[[], None] = _nothing
    blocked: BlockedCalls = field(default_factory=BlockedCalls)
