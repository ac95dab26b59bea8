"""The account of a host: saved is what was measured to save, cycles come from a row that speaks of this host, nothing from elsewhere."""

from datetime import UTC, datetime, timedelta

import pytest
from audit_builders import GUARD_ENTRY, QEMU_7, QEMU_11, affected_kernel, definition, domain, facts, process

from exitguard.audit.judge import judge
from exitguard.model.documents import AuditReport
from exitguard.model.host import Cpu, MitigationClass, Mitigations
from exitguard.model.kernel import Body, KernelState
from exitguard.model.pmu import LinkName, PmuElement
from exitguard.model.record import seen
from exitguard.model.samples import DomainSample, Incarnation, Samples
from exitguard.model.savings import GuardSaving, PerSecond, Savings
from exitguard.policy.load import load_rulebook
from exitguard.savings.account import account

SHIPPED = load_rulebook()
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
ZEN_2 = Cpu(
    vendor="AuthenticAMD",
    model_name="AMD EPYC 7302 16-Core Processor",
    family=23,
    model=49,
    stepping=0,
    microcode="0x830107a",
    logical_cpus=64,
    virtualization="svm",
    hypervisor=False,
)
ICE_LAKE = ZEN_2.model_copy(
    update={"vendor": "GenuineIntel", "model_name": "Xeon Gold 6338", "family": 6, "model": 106, "virtualization": "vmx"}
)
HEAVY = (MitigationClass.HEAVY_RETURN_TAX, MitigationClass.INDIRECT_CALL_TAX)


def judged(*, guarded: bool = True, qemu_11: bool = True, cpu: str = "host,pmu=off") -> AuditReport:
    model, _, element = cpu.partition(",pmu=")
    element_of = {"": PmuElement.ABSENT, "on": PmuElement.ON, "off": PmuElement.OFF}[element]
    written = definition("host-passthrough" if model == "host" else "custom", element_of)
    binary = QEMU_11 if qemu_11 else QEMU_7
    kernel = affected_kernel(changelog=(GUARD_ENTRY,)) if guarded else affected_kernel()
    guest = domain(defined=written, run=written, runs=process(cpu, binary))
    return judge(facts(guest, kernel=kernel, binaries=(binary,)), SHIPPED)


def on(report: AuditReport, cpu: Cpu, classes: tuple[MitigationClass, ...], body: Body = Body.B) -> AuditReport:
    """`report`, as if judged on that processor and a kernel of that body."""
    host = report.host.model_copy(
        update={
            "cpu": seen("/proc/cpuinfo", cpu),
            "mitigations": seen("vulnerabilities", Mitigations(lines={}, classes=classes)),
            "kernel": report.host.kernel.model_copy(update={"body": body}),
        }
    )
    return report.model_copy(update={"host": host})


def sampled(report: AuditReport, *counters: dict[str, int]) -> list[Samples]:
    uuid = report.domains[0].uuid
    run = Incarnation(host_id=report.host.id, domain_uuid=uuid, boot_id=uuid, qemu_start_ticks=1)
    return [
        Samples(
            observed_at=BEGIN + timedelta(seconds=100 * index),
            boottime_nanoseconds=100 * 10**9 * (index + 1),
            boot_time=seen("/proc/stat", BEGIN),
            domains=(DomainSample(uuid=uuid, pid=1, incarnation=run, counters=each),),
        )
        for index, each in enumerate(counters)
    ]


BUSY = ({"exits": 0, "halt_exits": 0, "irq_exits": 0}, {"exits": 100_000, "halt_exits": 20_000, "irq_exits": 10_000})


def accounted(report: AuditReport, *counters: dict[str, int]) -> Savings:
    return account(report, sampled(report, *(counters or BUSY)), SHIPPED.costs, since=BEGIN)


def test_exits_and_their_bounds_are_rates_of_the_time_that_is_accounted_for() -> None:
    (found,) = accounted(judged()).domains
    assert (found.seconds, found.exits_per_second) == (100, 1000)
    assert found.skip_exits_per_second == PerSecond(low=200, high=900)


@pytest.mark.parametrize("cpu", ["host,pmu=on", "host,pmu=off", "host", "EPYC", "EPYC,pmu=off", "EPYC,pmu=on"])
@pytest.mark.parametrize("qemu_11", [False, True])
@pytest.mark.parametrize("guarded", [False, True])
def test_of_the_24_measured_cells_exactly_three_save(*, guarded: bool, qemu_11: bool, cpu: str) -> None:
    (found,) = accounted(judged(guarded=guarded, qemu_11=qemu_11, cpu=cpu)).domains
    saves = guarded and qemu_11 and cpu in ("host,pmu=off", "EPYC", "EPYC,pmu=off")
    asked_for = cpu.endswith("pmu=on")
    assert found.guard is (GuardSaving.SAVED if saves else GuardSaving.OPTED_OUT if asked_for else GuardSaving.AVAILABLE)


def test_what_holds_the_saving_back_is_the_first_broken_link() -> None:
    assert accounted(judged(cpu="host")).domains[0].held_back_by is LinkName.RUNNING
    assert accounted(judged(qemu_11=False)).domains[0].held_back_by is LinkName.PROPAGATED
    assert accounted(judged(guarded=False)).domains[0].held_back_by is LinkName.KERNEL
    assert accounted(judged()).domains[0].held_back_by is None


@pytest.mark.parametrize(
    ("cpu", "classes", "cycles"), [(ZEN_2, HEAVY, 57), (ICE_LAKE, (MitigationClass.LOW,), 26)], ids=["zen 2", "ice lake"]
)
def test_hosts_of_the_patch_s_author_save_what_its_author_measured(cpu: Cpu, classes: tuple[MitigationClass, ...], cycles: int) -> None:
    """A check that the table is applied as it was written, and no measurement."""
    found = accounted(on(judged(), cpu, classes))
    assert (found.per_exit[0].provenance, found.per_exit[0].low, found.per_exit[0].high) == ("table", cycles, cycles)
    assert found.saved_cycles_per_second == PerSecond(low=200 * cycles, high=900 * cycles)
    assert found.available_cycles_per_second is None


def test_what_an_unguarded_kernel_holds_back_is_available_and_not_saved() -> None:
    found = accounted(on(judged(guarded=False), ZEN_2, HEAVY))
    assert found.saved_cycles_per_second is None
    assert found.available_cycles_per_second == PerSecond(low=200 * 57, high=900 * 57)


@pytest.mark.parametrize(
    ("body", "classes"), [(Body.A, HEAVY), (Body.B, (MitigationClass.LOW,))], ids=["another body", "other mitigations"]
)
def test_cost_of_another_kernel_or_mitigation_is_never_used(body: Body, classes: tuple[MitigationClass, ...]) -> None:
    found = accounted(on(judged(), ZEN_2, classes, body))
    assert found.per_exit[0].provenance == "unquantified"
    assert (found.saved_cycles_per_second, found.domains[0].cycles_per_second) == (None, None)


def test_instructions_are_never_counted_as_cycles() -> None:
    found = accounted(on(judged(), ZEN_2, HEAVY, Body.A))
    assert [each.unit for each in found.per_exit] == [None, "instructions"]
    assert found.saved_cycles_per_second is None


def test_kernel_that_does_no_dead_work_saves_nothing_and_offers_nothing() -> None:
    report = judged()
    kernel = report.host.kernel.model_copy(update={"state": KernelState.EQUIVALENT, "body": None})
    found = accounted(report.model_copy(update={"host": report.host.model_copy(update={"kernel": kernel})}))
    assert found.domains[0].guard is GuardSaving.NOTHING
    assert (found.saved_cycles_per_second, found.available_cycles_per_second) == (None, None)


def test_domain_that_was_sampled_once_is_not_told_of() -> None:
    report = judged()
    assert account(report, sampled(report, {"exits": 7}), SHIPPED.costs, since=BEGIN).domains == ()


def test_broken_counters_are_told_and_the_rest_is_accounted_for() -> None:
    (found,) = accounted(judged(), {"exits": 500}, {"exits": 100}, {"exits": 1100}).domains
    assert (found.seconds, found.exits_per_second) == (100, 10)
    assert found.unaccounted == ("exits went backwards, from 500 to 100",)
