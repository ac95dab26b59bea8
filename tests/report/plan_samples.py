"""Plans and runs to draw: those of the planner itself, and made ones with chosen words, of any size."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from exitguard.model.canonical import record_hash
from exitguard.model.domain import OwnerKind
from exitguard.model.finding import Subject, SubjectKind
from exitguard.model.plan import (
    Approval,
    Change,
    Disruption,
    DomainPmuChange,
    KernelGuardChange,
    LeftAlone,
    LeftAloneBecause,
    Mode,
    Pace,
    PinnedPackage,
    Plan,
    PlanInputs,
    PlannedHost,
    Remedy,
    SavingPerExit,
    Step,
    Wave,
    step_id,
)
from exitguard.model.pmu import PmuElement
from exitguard.model.run import EventKind, HostCheck, RunEvent, StepOutcome
from exitguard.policy.load import load_rulebook
from exitguard.remedy.plan import Origins, assemble, plan_host
from exitguard.remedy.rollout_events import advance
from exitguard.remedy.rollout_state import RolloutState, begin

sys.path.insert(0, str(Path(__file__).parents[1] / "audit"))  # for audit_builders.py

MOMENT = datetime(2026, 11, 22, 18, 54, 3, tzinfo=UTC)
CYCLES = SavingPerExit(provenance="table", unit="cycles", low=26, high=57, costs=("cost-a", "cost-b"), reason="of a CPUID exit")
INSTRUCTIONS = SavingPerExit(provenance="measured", unit="instructions", low=44, high=44, reason="counted on this host")
UNQUANTIFIED = SavingPerExit(provenance="unquantified", reason="the processor cannot be seen")
SAFE = ("libvirt owns the definition", "the running guest is not touched")
DIFF = "   <features>\n-    (no <pmu> element)\n+    <pmu state='off'/>\n   </features>"


def planned_plan() -> Plan:
    """What the planner makes of a host with domains in mixed states."""
    import audit_builders as b  # noqa: PLC0415 - found by the path above

    domains = (
        b.domain(number=1, defined=b.definition(), run=b.definition()),
        b.domain(number=2, defined=b.definition()),
        b.domain(number=3, defined=b.definition(), run=b.definition()),
        b.domain(number=4, defined=b.definition(), nova=b.nova()),
        b.domain(number=5, defined=b.definition(), locked=True),
        b.domain(number=6, defined=b.definition(pmu=PmuElement.ON)),
        b.domain(number=7, defined=b.definition(), owner=OwnerKind.OTHER),
        b.domain(number=8, defined="libvirt did not answer"),
    )
    rulebook = load_rulebook()
    return assemble([plan_host(b.facts(*domains), rulebook)], rulebook, Origins(playbooks="sha256:" + "1" * 64), made_at=MOMENT)


def host(number: int = 1, name: str | None = None, *, inventory_name: str | None = None) -> PlannedHost:
    return PlannedHost(
        id=str(UUID(int=number)),
        hostname=f"compute-{number}" if name is None else name,
        inventory_name=inventory_name,
        facts_hash="sha256:" + "0" * 64,
    )


def domain_step(name: str = "web-1", *, on: PlannedHost | None = None, number: int = 1, **changes: Any) -> Step:
    change = DomainPmuChange(uuid=str(UUID(int=number)), before=PmuElement.ABSENT)
    return _step(on or host(), Subject(kind=SubjectKind.DOMAIN, id=change.uuid, name=name), change, changes)


def kernel_step(on: PlannedHost | None = None, **changes: Any) -> Step:
    where = on or host()
    package = PinnedPackage(name="linux-image-6.1.0-57-amd64", version="6.1.1-1")
    change = KernelGuardChange(stage="install", packages=(package,), release="6.1.0-57-amd64")
    fields = {"diff": "+  linux-image-6.1.0-57-amd64 6.1.1-1", "guest_loses": (), "reversible": False}
    return _step(where, Subject(kind=SubjectKind.HOST, id=where.id, name=where.hostname or ""), change, fields | changes)


def _step(on: PlannedHost, subject: Subject, change: Change, changes: dict[str, Any]) -> Step:
    fields: dict[str, Any] = {
        "id": step_id(on.id, change, "sha256:" + "2" * 64),
        "host_id": on.id,
        "subject": subject,
        "change": change,
        "basis": "sha256:" + "2" * 64,
        "why": "no <pmu> element: QEMU's default is on",
        "safe": SAFE,
        "disruption": Disruption.NONE,
        "takes_effect": "at the guest's next cold start",
        "guest_loses": ("hardware performance events",),
        "diff": DIFF,
        "savings": (CYCLES, UNQUANTIFIED),
        "reversible": True,
    }
    return Step(**(fields | changes))


def left(
    name: str = "nova-1",
    because: LeftAloneBecause = LeftAloneBecause.NOVA_OWNED,
    reason: str = "Nova writes this definition anew",
    *,
    on: PlannedHost | None = None,
) -> LeftAlone:
    subject = Subject(kind=SubjectKind.DOMAIN, id=name, name=name)
    return LeftAlone(host_id=(on or host()).id, subject=subject, remedy=Remedy.DOMAIN_PMU_OFF, because=because, reason=reason)


def plan(
    steps: tuple[Step, ...] = (), left_alone: tuple[LeftAlone, ...] = (), hosts: tuple[PlannedHost, ...] | None = None, **changes: Any
) -> Plan:
    """A plan whose first host with a step is the canary, and the rest of them the second wave."""
    looked_at = hosts or (host(),)
    with_steps = list(dict.fromkeys(step.host_id for step in steps))
    waves = [Wave(name="canary", hosts=tuple(with_steps[:1])), Wave(name="100 %", hosts=tuple(with_steps[1:]))]
    fields: dict[str, Any] = {
        "made_at": MOMENT,
        "hash": "",
        "mode": Mode.OPPORTUNISTIC,
        "approval": Approval.REQUIRED,
        "inputs": PlanInputs(
            policy="pmu-off 1.0",
            policy_hash="sha256:" + "a" * 64,
            waivers_hash="sha256:" + "b" * 64,
            playbooks_hash="sha256:" + "c" * 64,
            hosts=looked_at,
        ),
        "pace": pace(waves=tuple(wave for wave in waves if wave.hosts)),
        "steps": steps,
        "left_alone": left_alone,
    }
    made = Plan(**(fields | changes))
    return made.model_copy(update={"hash": record_hash(made.content())})


def pace(**changes: Any) -> Pace:
    fields: dict[str, Any] = {
        "waves": (),
        "max_hosts_in_flight": 20,
        "failure_budget": 0,
        "step_timeout_seconds": 300,
        "pause_between_waves_seconds": 0,
        "automatic_rollback": False,
    }
    return Pace(**(fields | changes))


def fleet(hosts: int, domains: int) -> Plan:
    """Every domain of every host has a step, and one more of each host is Nova's."""
    all_hosts = tuple(host(number, inventory_name=f"node-{number}") for number in range(1, hosts + 1))
    steps = tuple(domain_step(f"web-{place}", on=each, number=place) for each in all_hosts for place in range(1, domains + 1))
    return plan(steps, tuple(left(on=each) for each in all_hosts), all_hosts)


def event(seq: int, kind: EventKind, **fields: Any) -> RunEvent:
    return RunEvent(seq=seq, at=MOMENT + timedelta(seconds=seq), kind=kind, **fields)


# Runs


def journal(of: Plan, *lines: tuple[EventKind, dict[str, Any]]) -> list[RunEvent]:
    """A journal that begins, and goes on as given."""
    return [event(seq, kind, **fields) for seq, (kind, fields) in enumerate([(EventKind.STARTED, {"plan": of.hash}), *lines])]


def three_hosts() -> Plan:
    """Two domains on each of three hosts; the first host is the canary."""
    return fleet(3, 2)


def stopped_run(of: Plan) -> list[RunEvent]:
    """The canary is well; of the second wave, one host refuses a step, and the run stops."""
    (canary, *rest), steps = [each.id for each in of.inputs.hosts], [step.id for step in of.steps]
    done, started, finished = StepOutcome.DONE, EventKind.STEPS_STARTED, EventKind.STEP_FINISHED
    return journal(
        of,
        (EventKind.BATCH_STARTED, {"wave": 0, "hosts": (canary,)}),
        (EventKind.HOST_CHECKED, {"host": canary, "check": HostCheck.READY, "due": tuple(steps[:2])}),
        (started, {"steps": tuple(steps[:2])}),
        (finished, {"step": steps[0], "outcome": done}),
        (finished, {"step": steps[1], "outcome": StepOutcome.ALREADY, "reason": "somebody has done it since"}),
        (EventKind.HOST_VERIFIED, {"host": canary, "passed": True}),
        (EventKind.WAVE_PASSED, {"wave": 0}),
        (EventKind.BATCH_STARTED, {"wave": 1, "hosts": tuple(rest)}),
        (EventKind.HOST_CHECKED, {"host": rest[0], "check": HostCheck.READY, "due": tuple(steps[2:4])}),
        (EventKind.HOST_CHECKED, {"host": rest[1], "check": HostCheck.READY, "due": tuple(steps[4:])}),
        (started, {"steps": tuple(steps[2:])}),
        (finished, {"step": steps[2], "outcome": done}),
        (finished, {"step": steps[3], "outcome": StepOutcome.REFUSED, "reason": "the definition has two <pmu> elements"}),
        (finished, {"step": steps[4], "outcome": done}),
        (finished, {"step": steps[5], "outcome": done}),
        (EventKind.HOST_VERIFIED, {"host": rest[0], "passed": True}),
        (EventKind.HOST_VERIFIED, {"host": rest[1], "passed": True}),
        (EventKind.STOPPED, {"reason": "1 host failed, the plan allows 0"}),
    )


#: How many lines of `stopped_run` there are when the second wave's steps were announced, and the end of none of them was seen.
UNDER_WAY = 12


def folded(of: Plan, events: list[RunEvent]) -> RolloutState:
    """What the rollout's own state machine makes of a journal."""
    state = begin(of)
    for line in events:
        state = advance(state, line)
    return state
