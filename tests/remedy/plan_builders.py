"""Small plans, and journals for them."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from exitguard.model.canonical import record_hash
from exitguard.model.finding import Subject, SubjectKind
from exitguard.model.plan import (
    Approval,
    Change,
    Disruption,
    DomainPmuChange,
    KernelGuardChange,
    KvmEnablePmuOffChange,
    Mode,
    Pace,
    PinnedPackage,
    Plan,
    PlanInputs,
    PlannedHost,
    QemuPmuCapChange,
    Remedy,
    Step,
    Wave,
    step_id,
)
from exitguard.model.pmu import PmuElement
from exitguard.model.run import EventKind, RunEvent, Undo

T0 = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
_HASH = "sha256:" + "0" * 64

GUESTS = Remedy.DOMAIN_PMU_OFF
KERNEL = Remedy.KERNEL_GUARD
QEMU = Remedy.QEMU_PMU_CAP
MODULE = Remedy.KVM_ENABLE_PMU_OFF


def guest(host: str, number: int) -> str:
    """The uuid of a guest."""
    return f"{host}-guest-{number}"


def change(remedy: Remedy, host: str, number: int) -> Change:
    packages = (PinnedPackage(name="a-package", version=str(number)),)
    match remedy:
        case Remedy.DOMAIN_PMU_OFF:
            return DomainPmuChange(uuid=guest(host, number), before=PmuElement.ABSENT)
        case Remedy.KERNEL_GUARD:
            return KernelGuardChange(stage="install", packages=packages, release="6.1.0-57-amd64")
        case Remedy.QEMU_PMU_CAP:
            return QemuPmuCapChange(packages=packages, machine_types=("pc-q35-7.2",))
        case _:
            return KvmEnablePmuOffChange()


def step(host: str, number: int = 0, remedy: Remedy = GUESTS, *, reversible: bool | None = None) -> Step:
    """A step, of a guest or of its host."""
    made = change(remedy, host, number)
    of_guest = isinstance(made, DomainPmuChange)
    basis = record_hash([host, number])
    return Step(
        id=step_id(host, made, basis),
        host_id=host,
        subject=Subject(
            kind=SubjectKind.DOMAIN if of_guest else SubjectKind.HOST,
            id=made.uuid if isinstance(made, DomainPmuChange) else host,
            name=guest(host, number) if of_guest else host,
        ),
        change=made,
        basis=basis,
        why="its PMU is on by default",
        safe=("only <pmu> changes",),
        disruption=Disruption.NONE,
        takes_effect="at the guest's next start",
        diff="+    <pmu state='off'/>",
        savings=(),
        reversible=of_guest if reversible is None else reversible,
    )


def plan(
    *waves: Iterable[str],
    steps: Mapping[str, Iterable[Step]] | None = None,
    in_flight: int = 2,
    budget: int = 0,
    pause_seconds: int = 0,
    rollback: bool = False,
) -> Plan:
    """A plan for hosts in waves; every host has one step, but for those that `steps` names."""
    hosts = [host for wave in waves for host in wave]
    given = dict(steps or {})
    made = Plan(
        made_at=T0,
        hash="",
        mode=Mode.OPPORTUNISTIC,
        approval=Approval.NONE,
        inputs=PlanInputs(
            policy="pmu-off 1.0",
            policy_hash=_HASH,
            waivers_hash=_HASH,
            playbooks_hash=_HASH,
            hosts=tuple(PlannedHost(id=host, hostname=f"{host}.example", inventory_name=None, facts_hash=_HASH) for host in hosts),
        ),
        pace=Pace(
            waves=tuple(Wave(name=f"wave {number}" if number else "canary", hosts=tuple(wave)) for number, wave in enumerate(waves)),
            max_hosts_in_flight=in_flight,
            failure_budget=budget,
            step_timeout_seconds=300,
            pause_between_waves_seconds=pause_seconds,
            automatic_rollback=rollback,
        ),
        steps=tuple(each for host in hosts for each in given.get(host, (step(host),))),
        left_alone=(),
    )
    return made.model_copy(update={"hash": record_hash(made.content())})


def event(seq: int, kind: EventKind, **fields: object) -> RunEvent:
    """A journal line, one second after the one before it."""
    return RunEvent.model_validate({"seq": seq, "at": T0 + timedelta(seconds=seq), "kind": kind, **fields})


def undo(number: int = 0) -> Undo:
    """What was there before a definition changed."""
    return Undo(element="absent", definition_before=record_hash(["before", number]), definition_after=record_hash(["after", number]))
