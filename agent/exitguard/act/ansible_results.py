"""What a playbook came to on each host, folded out of what was heard while it ran: pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from exitguard.act.ansible_process.messages import Kind, Message, Status
from exitguard.facts.tree import one_line

REASON_LIMIT_CHARACTERS = 2_000
_DIFFS_PER_HOST = 50
_COLLECTED_PER_HOST = 1_000
_DROPPED_PER_HOST = 5

Ended = Literal["completed", "timed_out", "cancelled", "broken"]


class HostOutcome(StrEnum):
    OK = "ok"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"  # the task or the run had a time limit, and the host was not done by then
    MISSING = "missing"  # no result at all


@dataclass(frozen=True)
class HostResult:
    """What a playbook came to on one host. What hosts say of themselves is in it: bounded, and on one line where it is a reason."""

    host: str
    outcome: HostOutcome
    reason: str = ""
    #: The dictionary under `exitguard` of each task's result that had one, in their order.
    collected: tuple[Mapping[str, Any], ...] = ()
    changed: bool = False
    #: What check mode would change, as Ansible shows it.
    diffs: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlaybookResult:
    """A result for each host that was asked for, and how the whole ended."""

    hosts: Mapping[str, HostResult]
    #: completed: Ansible went through it and gave its account, whatever became of the hosts.
    ended: Ended
    reason: str = ""


@dataclass
class _Heard:
    """What was heard of one host so far."""

    collected: list[Mapping[str, Any]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    diffs: list[str] = field(default_factory=list)
    changed: bool = False
    failure: Message | None = None
    item_failure: Message | None = None


class Hearing:
    """Takes messages in; `result` says what they come to."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._heard = {host: _Heard() for host in hosts}
        self._totals: dict[str, frozenset[str]] | None = None
        self.last: Message | None = None

    def hear(self, message: Message) -> None:
        """Hosts that nobody asked for are not listened to."""
        if message.kind is Kind.ENDED:
            self.last = message
        elif message.kind is Kind.TOTALS:
            self._totals = {name: frozenset(hosts) for name, hosts in message.hosts.items()}
        elif (heard := self._heard.get(message.host)) is not None:
            _hear(heard, message)

    def result(self, ended: Ended, reason: str) -> PlaybookResult:
        """`ended` and `reason` as far as the last message, or the lack of one, does not say it."""
        text = one_line(reason, limit_characters=REASON_LIMIT_CHARACTERS)
        return PlaybookResult({host: self._host(host, heard, ended, text) for host, heard in self._heard.items()}, ended, text)

    def _host(self, host: str, heard: _Heard, ended: Ended, reason: str) -> HostResult:
        outcome, why = self._outcome(host, heard, ended, reason)
        told = "; ".join((*filter(None, (why,)), *heard.dropped))
        return HostResult(
            host=host,
            outcome=outcome,
            reason=one_line(told, limit_characters=REASON_LIMIT_CHARACTERS),
            collected=tuple(heard.collected),
            changed=heard.changed if self._totals is None else host in self._totals.get("changed", ()),
            diffs=tuple(heard.diffs),
        )

    def _outcome(self, host: str, heard: _Heard, ended: Ended, reason: str) -> tuple[HostOutcome, str]:
        failure = heard.failure
        if self._totals is not None:
            # Ansible's own account knows what was rescued and ignored.
            if host in self._totals.get("dark", ()):
                return HostOutcome.UNREACHABLE, _told(failure) or "not reachable"
            if host in self._totals.get("failures", ()):
                late = failure is not None and failure.status == Status.TIMED_OUT
                return HostOutcome.TIMED_OUT if late else HostOutcome.FAILED, _told(
                    failure
                ) or "Ansible counts a failure, and gave no reason"
            if host in self._totals.get("processed", ()):
                return HostOutcome.OK, ""
            return HostOutcome.MISSING, "Ansible did nothing on it: the inventory does not have it, or no play of the playbook is for it"
        if failure is not None:
            return HostOutcome(failure.status), _told(failure)
        if ended == "timed_out":
            return HostOutcome.TIMED_OUT, reason
        return HostOutcome.MISSING, reason or "no result"


def _hear(heard: _Heard, message: Message) -> None:
    match message.kind:
        case Kind.TASK:
            heard.changed |= message.status == Status.CHANGED
        case Kind.COLLECTED if message.value is not None:
            if len(heard.collected) < _COLLECTED_PER_HOST:
                heard.collected.append(message.value)
            else:
                _drop(heard, f"{message.task}: more than {_COLLECTED_PER_HOST} results")
        case Kind.DROPPED:
            _drop(heard, f"{message.task}: {message.text}")
        case Kind.DIFF if len(heard.diffs) < _DIFFS_PER_HOST:
            heard.diffs.append("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in message.text))
        case Kind.ITEM_FAILURE:
            heard.item_failure = heard.item_failure if _same_task(heard.item_failure, message) else message
        case Kind.FAILURE:
            # What failed in a loop is told by its first failed item; the whole only says that one did.
            whole_of_loop = _same_task(heard.item_failure, message) and message.status == Status.FAILED
            heard.failure = heard.item_failure if whole_of_loop else message


def _drop(heard: _Heard, text: str) -> None:
    if len(heard.dropped) < _DROPPED_PER_HOST:
        heard.dropped.append(text)


def _same_task(one: Message | None, other: Message) -> bool:
    return one is not None and one.task == other.task


def _told(failure: Message | None) -> str:
    return "" if failure is None else f"{failure.task or 'a task without a name'}: {failure.text or 'it gave no reason'}"
