"""One conversation with libvirt: a connection of its own, the calls one at a time, in a thread of its own.

A call can block for good: behind a migration, a stuck monitor, a stopped daemon. Whoever waits for the answers gives the
conversation up then, and the thread with it: it ends when its call does, and asks nothing more.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from exitguard.facts.libvirt.words import message_of, unlock_of
from exitguard.model.record import Observed, seen, unseen

#: A daemon that answers none of three probes, five seconds apart, has gone or hangs.
KEEPALIVE_SECONDS = 5
KEEPALIVE_PROBES = 3
_SLICE_SECONDS = 0.5
#: Answers are taken by the handful: to be woken for each costs both threads more than the answer itself.
_HANDFUL_SECONDS = 0.0005
_NOT_ASKED_AGAIN = "not asked again: libvirt has not answered an earlier call about it yet"


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
class Listed:
    uuid: str
    name: str
    active: bool
    persistent: bool
    managed_save: bool


@dataclass(frozen=True)
class Opening:
    """The answer of a fresh connection: who is there, nothing more of any domain."""

    version: str
    driver: str
    domains: tuple[Listed, ...]


@dataclass(frozen=True)
class Failed:
    reason: str
    unlock: str | None = None


@dataclass(frozen=True)
class Gone:
    """A domain that ended and was undefined between the listing and the question."""

    uuid: str


@dataclass(frozen=True)
class Lost:
    """The connection broke; everything after the last answer is unasked."""

    reason: str


@dataclass(frozen=True)
class Counters:
    """KVM's counters by domain uuid, as libvirt gave them."""

    by_uuid: dict[str, dict[str, Any]]


class Finished:
    pass


Answer = Opening | Failed | RawDomain | Gone | Lost | Counters | Finished


@dataclass
class Conversation:
    """The calls themselves; every answer goes to `answers`."""

    libvirt: Any
    uri: str
    answers: "queue.SimpleQueue[Answer]" = field(default_factory=queue.SimpleQueue)
    #: The uuid that the call under way is about; None for one about the host.
    asking: str | None = None
    #: Set by who gives the conversation up: nothing more is asked.
    given_up: bool = False
    #: The uuid that the call was about when the wait for its answer was given up.
    blocked_on: str | None = None
    thread: threading.Thread = field(init=False)

    def begin(self, talk: "Callable[[Any], None]") -> None:
        """Open a connection and have `talk` ask on it, in a thread of its own; what goes wrong becomes an answer."""
        self.thread = threading.Thread(target=self._run, args=(talk,), name="libvirt", daemon=True)
        self.thread.start()

    def next_answer(self, limit_seconds: float, pulse: Callable[[], None]) -> Answer:
        """The next answer. Raises queue.Empty after `limit_seconds` without one, and whatever `pulse` raises.

        It waits in slices, since a Ctrl-C that arrives just before a wait is only noticed after it.
        """
        pulse()
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
            pulse()

    def _run(self, talk: "Callable[[Any], None]") -> None:
        try:
            connection = self.libvirt.openReadOnly(self.uri)
            # Where libvirt's event loop runs, in a daemon, a call to a libvirt that is gone or stopped ends by itself.
            with suppress(self.libvirt.libvirtError):
                connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_PROBES)
            talk(connection)
        except self.libvirt.libvirtError as error:
            self.answers.put(Failed(message_of(error), unlock_of(self.libvirt, error)))
        except ValueError as error:  # a NUL or a lone surrogate
            self.answers.put(Failed(f"not a libvirt URI: {error}"))

    # --- what can be talked about -----------------------------------------------------------------------------------------------

    def ask_about_domains(self, connection: Any, *, only: frozenset[str] | None, unasked: frozenset[str], looked_up: bool) -> None:
        """The opening, then each domain.

        `only` limits them to these uuids (None: all), found one by one with `looked_up`; of those in `unasked` nothing is asked
        but what the opening says.
        """
        domains = list(self._look_up(connection, only or frozenset()) if looked_up else self._list(connection, only))
        version = _dotted(connection.getLibVersion())
        self.answers.put(Opening(version, connection.getType(), tuple(listed for listed, _ in domains)))
        for listed, domain in domains:
            if self.given_up:
                return
            if listed.uuid in unasked:
                self.answers.put(unknown(listed, self.uri, _NOT_ASKED_AGAIN))
                continue
            self.asking = listed.uuid
            try:
                self.answers.put(self._ask(listed, domain))
            except self.libvirt.libvirtError as error:
                if error.get_error_code() == self.libvirt.VIR_ERR_NO_DOMAIN:
                    self.answers.put(Gone(listed.uuid))
                elif error.get_error_domain() == self.libvirt.VIR_FROM_RPC or not _is_alive(self.libvirt, connection):
                    # The daemon forwards its own errors with their own domain; VIR_FROM_RPC is the conversation itself.
                    self.answers.put(Lost(f"the connection to libvirt broke: {message_of(error)}"))
                    return
                else:
                    self.answers.put(unknown(listed, self.uri, message_of(error)))
            except UnicodeDecodeError as error:
                self.answers.put(unknown(listed, self.uri, f"libvirt's answer is not UTF-8: {error.reason}"))
        self.answers.put(Finished())

    def ask_for_counters(self, connection: Any) -> None:
        """One bulk call for all running domains; NOWAIT: a domain that is busy is left out rather than waited for."""
        flags = self.libvirt
        wanted = flags.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | flags.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        stats = connection.getAllDomainStats(flags.VIR_DOMAIN_STATS_VCPU, wanted)
        self.answers.put(Counters({domain.UUIDString(): values for domain, values in stats}))

    def _list(self, connection: Any, only: frozenset[str] | None) -> "Iterator[tuple[Listed, Any]]":
        """Three listings for the whole host instead of three questions per domain: each costs the daemon one message."""
        flags = self.libvirt
        everything = connection.listAllDomains(0)
        # Of the rarer kind, that is: a listing has its price too.
        transient = {domain.UUIDString() for domain in connection.listAllDomains(flags.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)}
        saved = {domain.UUIDString() for domain in connection.listAllDomains(flags.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)}
        for domain in everything:
            uuid = domain.UUIDString()
            if only is None or uuid in only:
                # ID() is part of the listing (-1 where nothing runs): no call.
                yield Listed(uuid, domain.name(), domain.ID() != -1, uuid not in transient, uuid in saved), domain

    def _look_up(self, connection: Any, uuids: frozenset[str]) -> "Iterator[tuple[Listed, Any]]":
        """A few domains of many: a handful of small questions for each. Domains that are gone are left out."""
        for uuid in sorted(uuids):
            try:
                domain = connection.lookupByUUIDString(uuid)
                persistent = bool(domain.isPersistent())
                saved = persistent and domain.ID() == -1 and bool(domain.hasManagedSaveImage(0))
            except self.libvirt.libvirtError as error:
                if error.get_error_code() == self.libvirt.VIR_ERR_NO_DOMAIN:
                    continue
                raise
            yield Listed(uuid, domain.name(), domain.ID() != -1, persistent, saved), domain

    def _ask(self, listed: Listed, domain: Any) -> RawDomain:
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
            return unseen(source, message_of(error), unlock="libvirt 3.7 or later, and a save file that it can read")


@lru_cache(maxsize=8)
def _listing_says(uri: str, value: bool) -> Observed[bool]:  # noqa: FBT001 - it is the value
    """What the listing says of many domains at once; one record serves them all."""
    return Observed[bool](source=uri, value=value)


def unknown(listed: Listed, uri: str, reason: str) -> RawDomain:
    """A domain that is listed but did not answer: what the listing said is known, the rest is not."""
    return RawDomain(
        uuid=listed.uuid,
        name=listed.name,
        active=_listing_says(uri, listed.active),
        managed_save=_listing_says(uri, listed.managed_save),
        definition_xml=unseen("libvirt: inactive XML", reason) if listed.persistent else None,
        run_xml=unseen("libvirt: live XML", reason) if listed.active or listed.managed_save else None,
    )


def _is_alive(libvirt: Any, connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _dotted(version: int) -> str:
    """The version number 9000000 as 9.0.0 (virConnectGetLibVersion)."""
    return f"{version // 1_000_000}.{version // 1_000 % 1_000}.{version % 1_000}"
