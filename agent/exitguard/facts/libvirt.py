"""Domains as libvirt tells them, over its read-only socket. The only module that imports libvirt.

A call can block for good: behind a migration, a stuck monitor, a stopped daemon. And a client's time-out frees nothing in the
daemon. So one worker thread makes the calls, one at a time; when one takes too long its domain counts as stuck, the worker and
its connection are left behind, and another takes up the list after that domain. No domain is ever asked twice for the same
thing, and after a few stuck ones nothing more is asked (`_MAX_STUCK`).

virConnectGetCapabilities is not asked for: it makes the daemon start every QEMU that it finds, which takes seconds where its
cache is not valid, and no reading may cost the host that.

While the worker waits for the daemon, the caller reads what has already come: `domains()` yields as answers arrive.
"""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from exitguard.model.host import LibvirtFacts, Target, TargetKind
from exitguard.model.record import Observed, seen, unseen

DEFAULT_URI = "qemu:///system"
_MAX_STUCK = 3
_MAX_RECONNECTIONS = 2
_OPENING_FACTOR = 4
_SLICE_SECONDS = 0.5
#: Answers are taken by the handful: to be woken for each costs both threads more than the answer itself.
_HANDFUL_SECONDS = 0.0005
_INSTALL = "install libvirt-daemon-system and start libvirtd (or virtqemud)"
_PERMISSION = "a user who may open libvirt's read-only socket (libvirt-sock-ro), or membership in group libvirt"


@dataclass(frozen=True)
class RawDomain:
    """One domain, not yet parsed. `definition_xml` is None for a transient domain, `run_xml` for one that does not run."""

    uuid: str
    name: str
    active: Observed[bool]
    managed_save: Observed[bool]
    definition_xml: Observed[str] | None
    run_xml: Observed[str] | None


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


def read_libvirt(uri: str, *, call_timeout_seconds: float) -> LibvirtReading:
    """Everything that libvirt at `uri` tells. Never raises for what libvirt does: what cannot be seen has a reason."""
    try:
        import libvirt
    except ImportError as error:
        return _blind(uri, f"libvirt-python cannot be loaded: {error}", unlock="the package exitguard[host]")
    libvirt.registerErrorHandler(_quiet, None)
    worker = _Worker(libvirt, uri, call_timeout_seconds)
    opening = worker.start(only=None)
    if isinstance(opening, _Failed):
        return _blind(uri, opening.reason, unlock=opening.unlock)
    return LibvirtReading(
        facts=LibvirtFacts(daemon_version=seen(uri, opening.version), driver=seen(uri, opening.driver), listing=seen(uri, True)),
        domains=worker.domains(opening),
    )


@dataclass(frozen=True)
class _Listed:
    uuid: str
    name: str
    active: bool
    persistent: bool
    managed_save: bool


@dataclass(frozen=True)
class _Opening:
    """The answer of a fresh connection: one bulk listing, nothing per domain."""

    version: str
    driver: str
    domains: tuple[_Listed, ...]


@dataclass(frozen=True)
class _Failed:
    reason: str
    unlock: str | None = None


@dataclass(frozen=True)
class _Gone:
    """A domain that ended and was undefined between the listing and the question."""

    uuid: str


@dataclass(frozen=True)
class _Lost:
    """The connection broke; everything after the last answer is unasked."""

    reason: str


class _Finished:
    pass


_Answer = _Opening | _Failed | RawDomain | _Gone | _Lost | _Finished


@dataclass
class _Worker:
    """The worker that holds the connection, and its successors."""

    libvirt: Any
    uri: str
    timeout_seconds: float
    _conversation: "_Conversation" = field(init=False)

    def start(self, *, only: frozenset[str] | None) -> _Opening | _Failed:
        """Begin anew on a connection of its own, and ask about the domains in `only` (None: all)."""
        # A worker that was left behind still holds the old queue: its late answers reach nobody.
        self._conversation = _Conversation(self.libvirt, self.uri, only)
        threading.Thread(target=self._conversation.run, name="libvirt", daemon=True).start()
        # A fresh daemon may still be loading its domains.
        limit_seconds = _OPENING_FACTOR * self.timeout_seconds
        try:
            answer = self._conversation.next_answer(limit_seconds)
        except queue.Empty:
            return _Failed(
                f"no answer within {limit_seconds:g} s: the daemon may hang", unlock="a libvirt daemon that answers `virsh list`"
            )
        return answer if isinstance(answer, _Opening | _Failed) else _Failed("libvirt ended the conversation at once")

    def domains(self, opening: _Opening) -> Iterator[RawDomain]:
        """Every listed domain, known or not, as the answers arrive."""
        waiting = {domain.uuid: domain for domain in opening.domains}
        stuck = 0
        reconnections = 0
        while True:
            try:
                answer = self._conversation.next_answer(self.timeout_seconds)
            except queue.Empty:
                stuck += 1
                blocking = waiting.pop(self._conversation.blocked_on or "", None)
                if blocking is not None:
                    yield _unknown(blocking, self.uri, f"libvirt did not answer within {self.timeout_seconds:g} s")
                reason = f"not asked: {stuck} domains before it blocked libvirt" if stuck >= _MAX_STUCK else self._resume(waiting)
            else:
                match answer:
                    case RawDomain():
                        waiting.pop(answer.uuid, None)
                        yield answer
                        continue
                    case _Gone():
                        waiting.pop(answer.uuid, None)
                        continue
                    case _Lost():
                        reconnections += 1
                        reason = answer.reason if reconnections > _MAX_RECONNECTIONS else self._resume(waiting)
                    case _:
                        return
            if reason is not None:
                for domain in waiting.values():
                    yield _unknown(domain, self.uri, reason)
                return

    def _resume(self, waiting: dict[str, _Listed]) -> str | None:
        """Ask on from where the last worker stopped; the reason if that cannot be done."""
        if not waiting:
            return "nothing is left to ask"
        opening = self.start(only=frozenset(waiting))
        return opening.reason if isinstance(opening, _Failed) else None


@dataclass
class _Conversation:
    """The calls themselves, in a thread of their own; every answer goes to `answers`."""

    libvirt: Any
    uri: str
    only: frozenset[str] | None
    answers: "queue.SimpleQueue[_Answer]" = field(default_factory=queue.SimpleQueue)
    #: The uuid that the call under way is about.
    asking: str | None = None
    #: The uuid that the call was about when the wait for its answer was given up.
    blocked_on: str | None = None

    def next_answer(self, limit_seconds: float) -> _Answer:
        """The next answer. Raises queue.Empty after `limit_seconds` without one.

        It waits in slices, since a Ctrl-C that arrives just before a wait is only noticed after it.
        """
        with suppress(queue.Empty):
            return self.answers.get_nowait()
        time.sleep(_HANDFUL_SECONDS)
        until = time.monotonic() + limit_seconds
        while True:
            left_seconds = until - time.monotonic()
            try:
                return self.answers.get(timeout=max(0.0, min(_SLICE_SECONDS, left_seconds)))
            except queue.Empty:
                if left_seconds <= _SLICE_SECONDS:
                    # In this order: an answer that comes just now is taken, and never makes the domain after it look stuck.
                    self.blocked_on = self.asking
                    return self.answers.get_nowait()

    def run(self) -> None:
        try:
            connection = self.libvirt.openReadOnly(self.uri)
            domains = self._open(connection)
        except self.libvirt.libvirtError as error:
            self.answers.put(_failure(self.libvirt, error))
            return
        except ValueError as error:  # a NUL or a lone surrogate
            self.answers.put(_Failed(f"not a libvirt URI: {error}"))
            return
        for listed, domain in domains:
            self.asking = listed.uuid
            try:
                self.answers.put(self._ask(listed, domain))
            except self.libvirt.libvirtError as error:
                if error.get_error_code() == self.libvirt.VIR_ERR_NO_DOMAIN:
                    self.answers.put(_Gone(listed.uuid))
                elif error.get_error_domain() == self.libvirt.VIR_FROM_RPC or not _is_alive(self.libvirt, connection):
                    # The daemon forwards its own errors with their own domain; VIR_FROM_RPC is the conversation itself.
                    self.answers.put(_Lost(f"the connection to libvirt broke: {_message(error)}"))
                    return
                else:
                    self.answers.put(_unknown(listed, self.uri, _message(error)))
            except UnicodeDecodeError as error:
                self.answers.put(_unknown(listed, self.uri, f"libvirt's answer is not UTF-8: {error.reason}"))
        self.answers.put(_Finished())

    def _open(self, connection: Any) -> list[tuple[_Listed, Any]]:
        """Three listings for the whole host instead of three questions per domain: each costs the daemon one message."""
        flags = self.libvirt
        everything = connection.listAllDomains(0)
        # Of the rarer kind, that is: a listing has its price too.
        transient = {domain.UUIDString() for domain in connection.listAllDomains(flags.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)}
        saved = {domain.UUIDString() for domain in connection.listAllDomains(flags.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)}
        domains = []
        for domain in everything:
            uuid = domain.UUIDString()
            if self.only is not None and uuid not in self.only:
                continue
            # ID() is part of the listing (-1 where nothing runs): no call.
            listed = _Listed(uuid, domain.name(), domain.ID() != -1, uuid not in transient, uuid in saved)
            domains.append((listed, domain))
        version = _dotted(connection.getLibVersion())
        self.answers.put(_Opening(version, connection.getType(), tuple(listed for listed, _ in domains)))
        return domains

    def _ask(self, listed: _Listed, domain: Any) -> RawDomain:
        definition = domain.XMLDesc(self.libvirt.VIR_DOMAIN_XML_INACTIVE) if listed.persistent else None
        run: Observed[str] | None = None
        if listed.active:
            run = seen("libvirt: live XML", domain.XMLDesc(0))
        elif listed.managed_save:
            run = self._saved(domain)
        return RawDomain(
            uuid=listed.uuid,
            name=listed.name,
            active=_listing_says(self.uri, listed.active),
            managed_save=_listing_says(self.uri, listed.managed_save),
            definition_xml=seen("libvirt: inactive XML", definition) if definition is not None else None,
            run_xml=run,
        )

    def _saved(self, domain: Any) -> Observed[str]:
        source = "libvirt: XML of the managed save"
        try:
            return seen(source, domain.managedSaveGetXMLDesc(0))
        except self.libvirt.libvirtError as error:
            return unseen(source, _message(error), unlock="libvirt 3.7 or later, and a save file that it can read")


@lru_cache(maxsize=8)
def _listing_says(uri: str, value: bool) -> Observed[bool]:  # noqa: FBT001 - it is the value
    """What the listing says of many domains at once; one record serves them all."""
    return Observed[bool](source=uri, value=value)


def _unknown(listed: _Listed, uri: str, reason: str) -> RawDomain:
    """A domain that is listed but did not answer: what the listing said is known, the rest is not."""
    return RawDomain(
        uuid=listed.uuid,
        name=listed.name,
        active=_listing_says(uri, listed.active),
        managed_save=_listing_says(uri, listed.managed_save),
        definition_xml=unseen("libvirt: inactive XML", reason) if listed.persistent else None,
        run_xml=unseen("libvirt: live XML", reason) if listed.active or listed.managed_save else None,
    )


def _failure(libvirt: Any, error: Any) -> _Failed:
    code = error.get_error_code()
    denied = code in (libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_ACCESS_DENIED)
    if denied or "Permission denied" in _message(error):
        return _Failed(_message(error), unlock=_PERMISSION)
    return _Failed(_message(error), unlock=_INSTALL if _nobody_listens(_message(error)) else None)


def _nobody_listens(message: str) -> bool:
    """Whether libvirt's own socket is missing, or left by a daemon that is gone; a missing system bus is another matter."""
    return "Failed to connect socket" in message and ("No such file or directory" in message or "Connection refused" in message)


def _message(error: Any) -> str:
    return (error.get_error_message() or str(error)).strip()[:400] or "libvirt gave no reason"


def _is_alive(libvirt: Any, connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _quiet(_context: object, _error: object) -> None:
    """Errors reach the report as reasons; libvirt would also print them on stderr."""


def _blind(uri: str, reason: str, *, unlock: str | None) -> LibvirtReading:
    return LibvirtReading(
        facts=LibvirtFacts(
            daemon_version=unseen(uri, reason, unlock=unlock),
            driver=unseen(uri, reason, unlock=unlock),
            listing=unseen(uri, reason, unlock=unlock),
        ),
        domains=iter(()),
    )


def _dotted(version: int) -> str:
    """The version number 9000000 as 9.0.0 (virConnectGetLibVersion)."""
    return f"{version // 1_000_000}.{version // 1_000 % 1_000}.{version % 1_000}"
