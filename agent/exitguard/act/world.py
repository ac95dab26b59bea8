"""What a rollout does to the world, each act answered in the words of its journal: checks, steps, verifications, settled doubts."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from exitguard.act.ansible import HostOutcome, HostResult, PlaybookResult, PlaybookRun, run_playbook
from exitguard.act.observe import Look, Observer
from exitguard.model.plan import (
    Change,
    DomainPmuChange,
    KernelGuardChange,
    KvmEnablePmuOffChange,
    NovaFlavorChange,
    NovaImageChange,
    NovaInstanceChange,
    Plan,
    PlannedHost,
    QemuPmuCapChange,
    Remedy,
    Step,
    change_subject,
)
from exitguard.model.pmu import PmuElement, Tri
from exitguard.model.run import EventKind, HostCheck, StepOutcome, Undo
from exitguard.policy.schema import Rulebook
from exitguard.remedy.sight import Sight

#: What a host's result means for a step that it says nothing of.
_OF_HOST = {
    HostOutcome.FAILED: StepOutcome.FAILED,
    HostOutcome.UNREACHABLE: StepOutcome.UNREACHABLE,
    HostOutcome.TIMED_OUT: StepOutcome.TIMED_OUT,
    HostOutcome.MISSING: StepOutcome.FAILED,
    HostOutcome.OK: StepOutcome.FAILED,
}
_IN_FORCE = (StepOutcome.DONE, StepOutcome.ALREADY)
_UNCERTAIN = (StepOutcome.FAILED, StepOutcome.UNREACHABLE, StepOutcome.TIMED_OUT)
#: More than the time limits of these remedies' own modules together: downloads and installs of packages.
_LEAST_SECONDS = {Remedy.KERNEL_GUARD: 3 * 3600, Remedy.QEMU_PMU_CAP: 4 * 3600, Remedy.KVM_ENABLE_PMU_OFF: 3600}
_MOST_SECONDS_OF_A_CLOUD = 24 * 3600
#: Beside the time that the steps of one host may take: connecting, becoming root, and the end of the play.
_GRACE_SECONDS = 60

Answer = dict[str, Any]
"""The fields of one RunEvent but seq and at; conduct.py writes it down."""


class Interrupted(Exception):  # noqa: N818 - an operator's wish
    """The playbook was ended before it was done: what became of its steps is to be settled when the run goes on."""


@dataclass
class World:
    """The hosts of one plan. Not for several threads."""

    plan: Plan
    rulebook: Rulebook
    observer: Observer
    playbooks: Path
    inventory: Path | None
    directory: Path
    #: Where playbooks note what an API does not show afterwards.
    records: Path
    common: Mapping[str, str]
    #: How many hosts Ansible deals with at a time.
    forks: int
    #: What the steps that were done said about undoing them, by step id: from the journal, and kept current.
    undos: dict[str, Undo]
    #: The domains that ran before, by host id: likewise.
    ran: dict[str, tuple[str, ...]]
    #: The steps that were carried out and are in force as far as was seen: likewise.
    done: set[str]
    #: Whether an operator wants the playbook under way to end: for good (abort), or to go on later (a signal).
    aborted: Callable[[], bool] = lambda: False
    interrupted: Callable[[], bool] = lambda: False
    progress: Callable[[str, str, str], None] = lambda _host, _task, _status: None
    _sights: dict[str, Sight] = field(default_factory=dict)
    #: By host, the steps that ended in a way that says nothing of their effect.
    _tried: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._steps = {step.id: step for step in self.plan.steps}
        self._hosts = {host.id: host for host in self.plan.inputs.hosts}
        of_host: dict[str, list[Step]] = {}
        for step in self.plan.steps:
            of_host.setdefault(step.host_id, []).append(step)
        self._of_host = {host_id: tuple(steps) for host_id, steps in of_host.items()}

    @property
    def _canary(self) -> tuple[str, ...]:
        """The hosts that go first, where others follow; the way back has none."""
        waves = self.plan.pace.waves
        return waves[0].hosts if len(waves) > 1 and self.plan.undoes is None else ()

    def _all_in_force(self, host_id: str, sight: Sight) -> bool:
        return all(sight.in_force(step) is Tri.YES for step in self._of_host[host_id])

    def not_in_force(self) -> tuple[Step, ...]:
        """The steps that neither this run carried out nor the last look at their host shows in force."""
        return tuple(
            step
            for step in self.plan.steps
            if step.id not in self.done and (step.host_id not in self._sights or self._sights[step.host_id].in_force(step) is not Tri.YES)
        )

    def check(self, hosts: Iterable[str]) -> Iterator[Answer]:
        """Whether each host's steps are still true, by facts gathered now."""
        for host_id, look in self._look(hosts).items():
            if look.sight is None:
                yield {"kind": EventKind.HOST_CHECKED, "host": host_id, "check": HostCheck.FAILED, "reason": look.reason}
                continue
            blind = look.sight.why_blind(self._of_host[host_id])
            if blind is not None:
                yield {"kind": EventKind.HOST_CHECKED, "host": host_id, "check": HostCheck.FAILED, "reason": blind}
                continue
            found = look.sight.still_true(self._of_host[host_id], self.rulebook, undo=self.plan.undoes is not None, now=datetime.now(UTC))
            self.ran.setdefault(host_id, look.sight.running())  # of the first look: a later one would miss who stopped meanwhile
            reason = _several(f"{self._steps[step_id].subject.name}: {why}" for step_id, why in found.not_due.items())
            answer = {"kind": EventKind.HOST_CHECKED, "host": host_id, "reason": reason}
            if not found.due and host_id in self._canary and not self._all_in_force(host_id, look.sight):
                # A canary that does nothing proves nothing to the hosts after it.
                yield {**answer, "check": HostCheck.FAILED, "reason": f"the canary is not to be changed now: {reason}"}
                continue
            check = HostCheck.READY if found.due else HostCheck.LEFT
            yield {**answer, "check": check, "due": found.due, "running": self.ran[host_id]}

    def carry_out(self, remedy: Remedy, steps: Iterable[str]) -> Iterator[Answer]:
        """Run the remedy's playbook for these steps. Raises Interrupted; what was answered by then stands."""
        wanted = [self._steps[step_id] for step_id in steps]
        result = self._play(remedy, wanted, check=False)
        for step in wanted:
            answer = self._outcome(step, result)
            if answer["outcome"] in _UNCERTAIN:
                self._tried.setdefault(step.host_id, set()).add(step.id)
            if answer["outcome"] is not StepOutcome.DONE:
                answer["undo"] = None  # this run changed nothing there that it could take back
            elif answer["undo"] is not None:
                self.undos[step.id] = answer["undo"]
            if answer["outcome"] in _IN_FORCE:
                self.done.add(step.id)
            if result.ended == "cancelled" and self.interrupted() and answer["outcome"] not in _IN_FORCE:
                continue  # nobody saw its end: it is settled when the run goes on
            yield {"kind": EventKind.STEP_FINISHED, "step": step.id, **answer}
        if result.ended == "cancelled" and self.interrupted():
            raise Interrupted

    def verify(self, hosts: Iterable[str]) -> Iterator[Answer]:
        """Whether each host is as its steps wanted it, and its guests still run, by facts gathered now."""
        looks = self._look(hosts)
        unseen = {
            host_id: [step for step in self._done_on(host_id) if look.sight is not None and look.sight.in_force(step) is Tri.UNKNOWN]
            for host_id, look in looks.items()
        }
        checked = self._rehearsed(step for steps in unseen.values() for step in steps)
        for host_id, look in looks.items():
            reason = look.reason if look.sight is None else self._why_not_verified(host_id, look.sight, checked)
            passed = not reason
            if passed and self._tried.get(host_id, set()) - self.done:
                reason = "its guests run, and what was done is in force; what became of steps that failed is not known"
            yield {"kind": EventKind.HOST_VERIFIED, "host": host_id, "passed": passed, "reason": reason}

    def settle(self, steps: Iterable[str]) -> Iterator[Answer]:
        """What became of steps whose end nobody saw; unreachable where their host cannot be looked at."""
        wanted = [self._steps[step_id] for step_id in steps]
        looks = self._look(dict.fromkeys(step.host_id for step in wanted))
        seen = [step for step in wanted if looks[step.host_id].sight is not None]
        states = {step.id: self._sights[step.host_id].in_force(step) for step in seen}
        # Where facts do not show it, the playbook's check mode does; and it tells what an undo needs, which nobody heard.
        checked = self._rehearsed(step for step in seen if states[step.id] is not Tri.NO)
        for step in wanted:
            answer: Answer = {"kind": EventKind.STEP_SETTLED, "step": step.id}
            if step.id not in states:
                reason = f"what became of it cannot be seen: {looks[step.host_id].reason}"
                yield {**answer, "outcome": StepOutcome.UNREACHABLE, "reason": reason}
            elif states[step.id] is Tri.YES or (step.id in checked and checked[step.id]["outcome"] is StepOutcome.ALREADY):
                self.done.add(step.id)
                undo = checked[step.id]["undo"]
                if undo is not None:
                    self.undos[step.id] = undo
                yield {
                    **answer,
                    "outcome": StepOutcome.DONE,
                    "reason": "a fresh look shows it in force, by this run as far as can be told",
                    "undo": undo,
                }
            else:
                found = checked.get(step.id)
                if states[step.id] is Tri.UNKNOWN and found is not None and found["outcome"] in _UNCERTAIN:
                    reason = f"what became of it cannot be told: {found['reason']}"
                    yield {**answer, "outcome": StepOutcome.FAILED, "reason": reason}
                    continue
                reason = "a fresh look shows that it never took effect"
                if isinstance(step.change, NovaInstanceChange) and states[step.id] is Tri.UNKNOWN:
                    reason = (
                        "nobody saw its end, and Nova before microversion 2.98 does not show it: it counts as not done, and may be so "
                        "once the instance is started"
                    )
                yield {**answer, "outcome": StepOutcome.NOT_DONE, "reason": reason}

    def undo(self, steps: Iterable[str]) -> Iterator[Answer]:
        """Put back what these steps changed."""
        back: dict[Remedy, list[Step]] = {}
        for step in (self._steps[step_id] for step_id in steps):
            known = self.undos.get(step.id)
            reverse = None if known is None else _reversed(step.change, known)
            if reverse is None:
                reason = "what was there before is not known exactly: nothing was put back"
                yield {"kind": EventKind.STEP_UNDONE, "step": step.id, "outcome": StepOutcome.REFUSED, "reason": reason}
                continue
            back.setdefault(step.remedy, []).append(step.model_copy(update={"change": reverse}))
        for remedy, reversed_steps in back.items():
            result = self._play(remedy, reversed_steps, check=False)
            for step in reversed_steps:
                answer = self._outcome(step, result)
                if result.ended == "cancelled" and self.interrupted() and answer["outcome"] is not StepOutcome.DONE:
                    continue
                yield {"kind": EventKind.STEP_UNDONE, "step": step.id, "outcome": answer["outcome"], "reason": answer["reason"]}
            if result.ended == "cancelled" and self.interrupted():
                raise Interrupted

    def rehearse(self) -> Iterator[tuple[Step, StepOutcome, str]]:
        """What each step would do, by Ansible's check mode: nothing is changed, and nothing is written down."""
        by_remedy: dict[Remedy, list[Step]] = {}
        for answer in self.check(self._of_host):
            due = answer.get("due", ())
            unseen = answer["check"] is HostCheck.FAILED
            for step in self._of_host[answer["host"]]:
                if step.id in due:
                    by_remedy.setdefault(step.remedy, []).append(step)
                else:
                    yield step, StepOutcome.UNREACHABLE if unseen else StepOutcome.CHANGED_SINCE, answer["reason"]
        for remedy, steps in by_remedy.items():
            result = self._play(remedy, steps, check=True)
            for step in steps:
                answer = self._outcome(step, result)
                yield step, answer["outcome"], answer["reason"]

    def _cancelled(self) -> bool:
        return self.aborted() or self.interrupted()

    def _look(self, hosts: Iterable[str]) -> Mapping[str, Look]:
        wanted: tuple[PlannedHost, ...] = tuple(self._hosts[host_id] for host_id in hosts)
        looks = self.observer.look(wanted, cancelled=self._cancelled) if wanted else {}
        if self.interrupted() and any(look.sight is None for look in looks.values()):
            raise Interrupted  # it was the look that ended: nothing is known of these hosts
        self._sights.update({host_id: look.sight for host_id, look in looks.items() if look.sight is not None})
        return {host.id: looks.get(host.id, Look(None, "nobody looked at it")) for host in wanted}

    def _done_on(self, host_id: str) -> tuple[Step, ...]:
        return tuple(step for step in self._of_host[host_id] if step.id in self.done)

    def _why_not_verified(self, host_id: str, sight: Sight, checked: Mapping[str, dict[str, Any]]) -> str:
        alive = sight.why_not_alive(self.ran.get(host_id, ()))
        if alive is not None:
            return alive
        reasons = []
        for step in self._done_on(host_id):
            state = sight.in_force(step)
            if state is Tri.NO:
                reasons.append(f"{step.subject.name}: a fresh look does not show what {step.remedy.value} should have changed")
            elif state is Tri.UNKNOWN and checked[step.id]["outcome"] is not StepOutcome.ALREADY:
                reasons.append(f"{step.subject.name}: whether {step.remedy.value} is in force cannot be seen")
        return _several(reasons)

    def _rehearsed(self, steps: Iterable[Step]) -> dict[str, dict[str, Any]]:
        """What the playbooks' check mode says of these steps, by id: `already` where they would change nothing."""
        by_remedy: dict[Remedy, list[Step]] = {}
        for step in steps:
            by_remedy.setdefault(step.remedy, []).append(step)
        found: dict[str, dict[str, Any]] = {}
        for remedy, group in by_remedy.items():
            result = self._play(remedy, group, check=True)
            found |= {step.id: self._outcome(step, result) for step in group}
        return found

    def _play(self, remedy: Remedy, steps: list[Step], *, check: bool) -> PlaybookResult:
        by_host: dict[str, list[Step]] = {}
        for step in steps:
            by_host.setdefault(step.host_id, []).append(step)
        unseen = [host_id for host_id in by_host if host_id not in self._sights]
        if unseen:  # taken up again after an end between the look and the steps
            self._look(unseen)
        seconds = max(self.plan.pace.step_timeout_seconds, _LEAST_SECONDS.get(remedy, 0))
        if any(self._hosts[host_id].cloud is not None for host_id in by_host):
            seconds = min(seconds * len(steps), _MOST_SECONDS_OF_A_CLOUD)  # one request or program after another
        # A package manager that is killed in the middle leaves a host that may not boot: it is waited for, come what may.
        installs = remedy in _LEAST_SECONDS and not check
        return run_playbook(
            PlaybookRun(
                playbook=self.playbooks / f"{remedy.value}.yml",
                hosts=tuple(self._name(host_id) for host_id in by_host),
                inventory=self.inventory,
                variables={self._name(host_id): self._variables(remedy, host_id, group) for host_id, group in by_host.items()},
                common=self.common,
                check=check,
                forks=self.forks,
                timeout_seconds=PlaybookRun.time_for(len(by_host), self.forks, seconds + _GRACE_SECONDS),
            ),
            self.directory,
            cancelled=(lambda: False) if installs else self._cancelled,
            progress=self.progress,
        )

    def _variables(self, remedy: Remedy, host_id: str, steps: list[Step]) -> dict[str, Any]:
        """What the remedy's role is told about one host: see playbooks/roles/<remedy>/meta/argument_specs.yml."""
        sight = self._sights.get(host_id)
        variables: dict[str, Any] = {}
        uri = sight.uri if sight is not None else None
        for step in steps:
            change = step.change
            match change:
                case DomainPmuChange():
                    changes = variables.setdefault(f"{remedy.value}_changes", [])
                    changes.append(change.model_dump(mode="json", exclude={"remedy"}))
                case KernelGuardChange():
                    variables |= {
                        "kernel_guard_stage": change.stage,
                        "kernel_guard_packages": [package.model_dump() for package in change.packages],
                        "kernel_guard_release": change.release,
                    }
                case QemuPmuCapChange():
                    variables |= {
                        "qemu_pmu_cap_packages": [package.model_dump() for package in change.packages],
                        "qemu_pmu_cap_machine_types": list(change.machine_types),
                        "qemu_pmu_cap_migration_checked": True,
                    }
                case KvmEnablePmuOffChange():
                    variables["kvm_enable_pmu_off_opted_out_guests_stay_away"] = True
                case NovaFlavorChange() | NovaImageChange() | NovaInstanceChange():
                    changes = variables.setdefault(f"{remedy.value}_changes", [])
                    changes.append(change.model_dump(mode="json", exclude={"remedy"}))
        if uri is not None and remedy is not Remedy.KERNEL_GUARD:
            variables[f"{remedy.value}_uri"] = uri
        cloud = self._hosts[host_id].cloud
        if cloud is not None:
            variables |= {
                f"{remedy.value}_cloud": cloud,
                f"{remedy.value}_cloud_id": host_id,
                f"{remedy.value}_failure_budget": self.plan.pace.failure_budget,
            }
        if remedy is Remedy.NOVA_INSTANCE_PMU_OFF:
            variables[f"{remedy.value}_nova_manage"] = list(self.rulebook.policy.remedies.nova.nova_manage)
            variables[f"{remedy.value}_record_dir"] = str(self.records)
        return variables

    def _outcome(self, step: Step, result: PlaybookResult) -> dict[str, Any]:
        """What a step came to, by what its host's playbook collected; without a word of it, by how the host ended."""
        host = result.hosts.get(self._name(step.host_id))
        if host is None:
            return {"outcome": StepOutcome.FAILED, "reason": result.reason or "Ansible gave no result for its host", "undo": None}
        told = _told_of(change_subject(step.change), host)
        if told is None:
            return {"outcome": _OF_HOST[host.outcome], "reason": host.reason or "the playbook said nothing of this step", "undo": None}
        return told

    def _name(self, host_id: str) -> str:
        host = self._hosts[host_id]
        return "localhost" if self.inventory is None else host.inventory_name or host.hostname or host.id


def _reversed(change: Change, known: Undo) -> Change | None:
    """The change that takes `change` back; None where there is none that is exact."""
    match change:
        case DomainPmuChange():
            return change.model_copy(
                update={"before": change.after, "after": PmuElement(known.element), "restores": known.definition_before}
            )
        case NovaFlavorChange() | NovaImageChange():
            return change.model_copy(update={"before": change.after, "after": known.element})
        case _:
            return None


def _told_of(subject: str, host: HostResult) -> dict[str, Any] | None:
    """The outcome that a remedy's module gave for one subject; None where it gave none, or none that can be read."""
    for collected in host.collected:
        steps = collected.get("steps")
        for told in steps if isinstance(steps, list) else ():
            if not isinstance(told, dict) or told.get("subject") != subject:
                continue
            try:
                outcome = StepOutcome(str(told.get("outcome")))
                if outcome is StepOutcome.NOT_DONE:
                    return None  # the word of a settlement, not of a module
                undo = None if told.get("undo") is None else Undo.model_validate(told["undo"])
                return {"outcome": outcome, "reason": str(told.get("reason") or "")[:2000], "undo": undo}
            except (ValidationError, ValueError):
                return None
    return None


def _several(reasons: Iterable[str], most: int = 5) -> str:
    told = list(reasons)
    return "; ".join(told[:most]) + (f"; and {len(told) - most} more" if len(told) > most else "")
