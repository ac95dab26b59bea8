"""Domains as libvirt tells them, over its read-only socket.

One conversation at a time makes the calls. When one takes too long its domain counts as stuck, the conversation is given up, and
another takes up the list after that domain. No domain is ever asked twice for the same thing, and after a few stuck ones
nothing more is asked (`_MAX_STUCK`).

virConnectGetCapabilities is not asked for: it makes the daemon start every QEMU that it finds, which takes seconds where its
cache is not valid, and no reading may cost the host that.

While the conversation waits for the daemon, the caller reads what has already come: `domains()` yields as answers arrive.
"""

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from exitguard.facts.libvirt.conversation import Conversation, Failed, Gone, Listed, Lost, Opening, RawDomain, unknown
from exitguard.facts.libvirt.patience import Patience
from exitguard.facts.libvirt.words import keep_quiet
from exitguard.model.host import LibvirtFacts, Target, TargetKind
from exitguard.model.record import seen, unseen

DEFAULT_URI = "qemu:///system"
_MAX_STUCK = 3
_MAX_RECONNECTIONS = 2
_OPENING_FACTOR = 4
#: Each domain within its time-out, and thousands of them, could keep an audit going for hours.
_MOST_SECONDS = 900.0


@dataclass(frozen=True)
class LibvirtReading:
    """What libvirt told of itself, and its domains as they arrive. `domains` must be read to its end, once."""

    facts: LibvirtFacts
    domains: Iterator[RawDomain]


def target_of(uri: str | None) -> Target:
    """Whether a libvirt URI leads to this machine. A URI with a host name counts as remote, whatever the name resolves to."""
    uri = uri or DEFAULT_URI
    try:
        parts = urlsplit(uri)
    except ValueError:  # not a URI: libvirt will say so itself
        return Target(kind=TargetKind.REMOTE, uri=uri)
    if parts.scheme.partition("+")[0] == "test" and not parts.hostname:
        return Target(kind=TargetKind.EMBEDDED, uri=uri)
    remote = bool(parts.netloc) or parts.scheme.partition("+")[2] not in ("", "unix")
    return Target(kind=TargetKind.REMOTE if remote else TargetKind.LOCAL, uri=uri)


def read_libvirt(uri: str, patience: Patience, *, uuids: frozenset[str] | None = None) -> LibvirtReading:
    """Everything that libvirt at `uri` tells, or what it tells of the domains in `uuids`, which are few.

    Never raises for what libvirt does: what cannot be seen has a reason.
    """
    try:
        import libvirt
    except ImportError as error:
        return _blind(uri, f"libvirt-python cannot be loaded: {error}", unlock="the package exitguard[host]")
    keep_quiet(libvirt)
    worker = _Worker(libvirt, uri, patience)
    opening = worker.start(only=uuids, looked_up=uuids is not None)
    if isinstance(opening, Failed):
        return _blind(uri, opening.reason, unlock=opening.unlock)
    return LibvirtReading(
        facts=LibvirtFacts(daemon_version=seen(uri, opening.version), driver=seen(uri, opening.driver), listing=seen(uri, True)),
        domains=worker.domains(opening),
    )


@dataclass
class _Worker:
    """The conversation under way, and its successors."""

    libvirt: Any
    uri: str
    patience: Patience
    _conversation: Conversation = field(init=False)

    def start(self, *, only: frozenset[str] | None, looked_up: bool = False) -> Opening | Failed:
        """Begin anew on a connection of its own, and ask about the domains in `only` (None: all)."""
        obstacle = self.patience.blocked.why_not_now
        if obstacle is not None:
            return Failed(obstacle, unlock="a libvirt daemon that answers `virsh list`")
        # A conversation that was given up still holds the old queue: its late answers reach nobody.
        self._conversation = conversation = Conversation(self.libvirt, self.uri)
        unasked = self.patience.blocked.domains
        conversation.begin(partial(conversation.ask_about_domains, only=only, unasked=unasked, looked_up=looked_up))
        # A fresh daemon may still be loading its domains.
        limit_seconds = _OPENING_FACTOR * self.patience.call_timeout_seconds
        try:
            answer = conversation.next_answer(limit_seconds, self.patience.pulse)
        except queue.Empty:
            self._give_up()
            return Failed(f"no answer within {limit_seconds:g} s: the daemon may hang", unlock="a libvirt daemon that answers `virsh list`")
        except BaseException:  # the pulse ends the reading
            conversation.given_up = True
            raise
        return answer if isinstance(answer, Opening | Failed) else Failed("libvirt ended the conversation at once")

    def domains(self, opening: Opening) -> Iterator[RawDomain]:
        """Every listed domain, known or not, as the answers arrive."""
        try:
            yield from self._domains({domain.uuid: domain for domain in opening.domains})
        finally:  # also where the reader has had enough
            self._conversation.given_up = True

    def _domains(self, waiting: dict[str, Listed]) -> Iterator[RawDomain]:
        timeout_seconds = self.patience.call_timeout_seconds
        until = time.monotonic() + _MOST_SECONDS
        stuck = 0
        reconnections = 0
        while True:
            reason: str | None = None
            try:
                answer = self._conversation.next_answer(timeout_seconds, self.patience.pulse)
            except queue.Empty:
                stuck += 1
                self._give_up()
                blocking = waiting.pop(self._conversation.blocked_on or "", None)
                if blocking is not None:
                    yield unknown(blocking, self.uri, f"libvirt did not answer within {timeout_seconds:g} s")
                reason = f"not asked: {stuck} domains before it blocked libvirt" if stuck >= _MAX_STUCK else self._resume(waiting)
            else:
                match answer:
                    case RawDomain():
                        waiting.pop(answer.uuid, None)
                        yield answer
                        if time.monotonic() < until:
                            continue
                        reason = f"not asked: libvirt answers so slowly that {_MOST_SECONDS:g} s were not enough for all domains"
                    case Gone():
                        waiting.pop(answer.uuid, None)
                        continue
                    case Lost() | Failed():
                        reconnections += 1
                        reason = answer.reason if reconnections > _MAX_RECONNECTIONS else self._resume(waiting)
                    case _:
                        return
            if reason is not None:
                for domain in waiting.values():
                    yield unknown(domain, self.uri, reason)
                return

    def _give_up(self) -> None:
        """Leave the conversation behind, with the call that blocks it."""
        self._conversation.given_up = True
        self.patience.blocked.add(self._conversation.thread, self._conversation.blocked_on)

    def _resume(self, waiting: dict[str, Listed]) -> str | None:
        """Ask on from where the last conversation stopped; the reason if that cannot be done."""
        if not waiting:
            return "nothing is left to ask"
        opening = self.start(only=frozenset(waiting))
        return opening.reason if isinstance(opening, Failed) else None


def _blind(uri: str, reason: str, *, unlock: str | None) -> LibvirtReading:
    return LibvirtReading(
        facts=LibvirtFacts(
            daemon_version=unseen(uri, reason, unlock=unlock),
            driver=unseen(uri, reason, unlock=unlock),
            listing=unseen(uri, reason, unlock=unlock),
        ),
        domains=iter(()),
    )
