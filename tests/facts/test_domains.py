import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from exitguard.facts import qemu_command_line
from exitguard.facts.domains import HostContext, describe_domain
from exitguard.facts.libvirt import RawDomain
from exitguard.facts.processes import ProcessTable, RunningQemu
from exitguard.facts.qemu import QemuReader
from exitguard.facts.tree import HostTree
from exitguard.model.domain import DomainFacts, OwnerKind
from exitguard.model.pmu import PmuElement
from exitguard.model.record import Observed, seen, unseen
from exitguard.model.samples import DomainSample

HERE = Path(__file__).parent
RUN_XML = (HERE / "domain_xml/nova-26.2.2-flavor-pmu-off/input").read_text()
DEFINITION_XML = (HERE / "domain_xml/nova-26.2.2-flavor-pmu-off-inactive/input").read_text()
UUID = "813b0c1a-48cc-4074-9228-2fd0b7077ef5"
OTHER_UUID = "b2ccf1a9-2cad-4c0f-abaa-6b6c3d4ffcd4"
HOST_ID = "5f9d3a52-1c0a-4a1c-9d39-61b3f7a0c0de"
BOOT_ID = "0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004"
LIBVIRTS_USER = 64055  # of the DAC label in the recorded XML
GENERATED_AT = datetime(2026, 11, 22, 15, 39, 25, tzinfo=UTC)  # its nova:creationTime
BOOTED_AT = GENERATED_AT - timedelta(hours=1)
PID = 4711


def xml(text: str | None) -> Observed[str] | None:
    return seen("recorded XML", text) if text is not None else None


def raw(
    *, definition: str | None = DEFINITION_XML, run: str | None = RUN_XML, active: Observed[bool] | None = None, uuid: str = UUID
) -> RawDomain:
    active = active if active is not None else seen("test", run is not None)
    return RawDomain(uuid, "instance-00000002", active, seen("test", False), xml(definition), xml(run))


def process(*words: str, started_after_seconds: float = 3600.5, uid: int = LIBVIRTS_USER, start_ticks: int | None = None) -> RunningQemu:
    ticks = start_ticks if start_ticks is not None else int(started_after_seconds * 100)
    line = qemu_command_line.parse(("qemu", "-uuid", UUID, "-accel", "tcg", "-cpu", "qemu64,pmu=off", *words))
    return RunningQemu(PID, uid, ticks, line)


def context(
    *claims: RunningQemu, boot_time: Observed[datetime] | None = None, boot_id: Observed[str] | None = None, visible: bool = True
) -> HostContext:
    return HostContext(
        host_id=HOST_ID,
        boot_id=boot_id or seen("test", BOOT_ID),
        boot_time=boot_time or seen("test", BOOTED_AT),
        ticks_per_second=100,
        processes=ProcessTable({UUID: claims}, seen("/proc", 1)) if visible else None,
        unseen_processes="remote",
        reader=QemuReader(HostTree(HERE / "no such tree")),
    )


def facts(domain: RawDomain, host: HostContext) -> DomainFacts:
    return describe_domain(domain, host)[0]


# Whether the run is Nova's own word


@pytest.mark.parametrize(
    ("started_after_seconds", "as_generated"),
    [
        (3600 - 3, False),  # began before its XML was generated: the metadata was changed later
        (3600 - 2, True),  # creationTime has whole seconds, and clocks are not exact
        (3600, True),
        (3600 + 120, True),
        (3600 + 121, False),  # a virsh define or a virsh start in between
        (3600 + 86400, False),
    ],
)
def test_run_that_begins_right_after_nova_generated_it_is_started_as_generated(started_after_seconds: float, *, as_generated: bool) -> None:
    described = facts(raw(), context(process(started_after_seconds=started_after_seconds)))
    assert described.started_as_generated == seen("nova:creationTime and the start of the process", as_generated)


def test_run_that_came_from_elsewhere_is_not_started_as_generated() -> None:
    assert facts(raw(), context(process("-incoming", "defer"))).started_as_generated == seen(
        "nova:creationTime and the start of the process", False
    )


@pytest.mark.parametrize(
    ("domain", "host", "reason"),
    [
        (raw(), context(), "no visible process runs it"),
        (raw(), context(process(), visible=False), "remote"),
        (raw(run=RUN_XML.replace("2026-11-22 15:39:25", "yesterday")), context(process()), "Nova's creationTime is not readable"),
        (raw(), context(process(), boot_time=unseen("/proc/stat", "gone")), "gone"),
        (raw(run=RUN_XML.replace("2026-11-22 15", "2026-99-22 15")), context(process()), "is not a time that exists"),
        (raw(run=RUN_XML.replace("2026-11-22 15:39:25", "0001-01-01 00:00:00")), context(process()), "outside the calendar"),
        (raw(), context(process(start_ticks=(1 << 64) - 1)), "outside the calendar"),
        (raw(run=RUN_XML.replace("<domain type='qemu'", "<domain type='xen'")), context(process()), "no process"),
    ],
)
def test_start_that_cannot_be_compared_has_a_reason(domain: RawDomain, host: HostContext, reason: str) -> None:
    observed = facts(domain, host).started_as_generated
    assert observed is not None
    assert reason in (observed.reason or "")


def test_what_does_not_run_or_is_not_novas_has_no_start_to_judge() -> None:
    assert facts(raw(run=None), context()).started_as_generated is None
    assert facts(raw(active=unseen("test", "stuck")), context(process())).started_as_generated is None
    stripped = RUN_XML[: RUN_XML.index("<metadata>")] + RUN_XML[RUN_XML.index("</metadata>") + len("</metadata>") :]
    assert facts(raw(definition=None, run=stripped), context(process())).started_as_generated is None


# Definition and run


def test_definition_and_run_are_two_facts() -> None:
    described = facts(raw(definition=DEFINITION_XML.replace("<pmu state='off'/>", "<pmu state='on'/>")), context(process()))
    assert described.definition is not None
    assert described.run is not None
    assert (described.definition.get().pmu, described.run.get().pmu) == (PmuElement.ON, PmuElement.OFF)


def test_transient_domain_has_no_definition_and_one_that_is_off_no_run() -> None:
    transient = facts(raw(definition=None), context(process()))
    assert (transient.definition, transient.owner.kind) == (None, OwnerKind.NOVA)
    off = facts(raw(run=None), context())
    assert (off.run, off.process, off.owner.kind) == (None, None, OwnerKind.NOVA)
    assert off.nova is not None


def test_xml_of_another_domain_is_refused() -> None:
    described = facts(raw(run=RUN_XML.replace(UUID, OTHER_UUID)), context(process()))
    assert described.run is not None
    assert described.run.reason == f"it names domain {OTHER_UUID}, expected {UUID}"
    assert described.definition is not None
    assert described.definition.known


def test_unreadable_xml_has_its_reason_and_no_known_owner() -> None:
    described = facts(raw(definition="<domain>", run="<!DOCTYPE domain>"), context(process()))
    assert described.definition is not None
    assert described.run is not None
    assert "not well-formed" in (described.definition.reason or "")
    assert "document type" in (described.run.reason or "")
    assert (described.owner.kind, described.nova, described.locked) == (OwnerKind.UNKNOWN, None, False)


def test_reason_of_a_stuck_domain_is_kept() -> None:
    stuck: Observed[str] = unseen("libvirt: live XML", "did not answer", unlock="patience")
    described = facts(RawDomain(UUID, "guest", seen("test", True), seen("test", False), stuck, stuck), context(process()))
    assert described.run == described.definition == Observed(source="libvirt: live XML", reason="did not answer", unlock="patience")
    # Without a label to go by, the one claimant counts.
    assert described.process is not None
    assert described.process.known


# Owner, Nova and lock


def test_nova_metadata_of_the_run_comes_before_the_definitions() -> None:
    renamed = DEFINITION_XML.replace("i-foff", "renamed")
    described = facts(raw(definition=renamed), context(process()))
    assert described.nova is not None
    assert described.nova.name == "i-foff"
    without_run = facts(raw(definition=renamed, run=None), context())
    assert without_run.nova is not None
    assert without_run.nova.name == "renamed"


def test_definition_stripped_of_its_metadata_is_still_the_managers_while_its_run_says_so() -> None:
    stripped = f"<domain type='kvm'><name>guest</name><uuid>{UUID}</uuid></domain>"
    assert facts(raw(definition=stripped), context(process())).owner.kind is OwnerKind.NOVA
    assert facts(raw(definition=stripped, run=None), context()).owner.kind is OwnerKind.LIBVIRT
    assert facts(raw(definition=stripped, run=stripped), context()).owner.kind is OwnerKind.LIBVIRT


@pytest.mark.parametrize("in_definition", [True, False])
def test_mark_in_either_xml_locks(*, in_definition: bool) -> None:
    mark = "<metadata><locked xmlns='urn:exitguard:domain:1'/>"
    definition, run = (
        text.replace("<metadata>", mark) if marked else text
        for text, marked in ((DEFINITION_XML, in_definition), (RUN_XML, not in_definition))
    )
    assert facts(raw(definition=definition, run=run), context()).locked
    assert not facts(raw(), context()).locked


# The process, and the sample of its run


def test_process_of_libvirts_user_is_the_domains() -> None:
    described, sample = describe_domain(raw(), context(process(), process(uid=1000)))
    assert described.process is not None
    assert described.process.get().cpu.get().pmu is PmuElement.OFF
    assert isinstance(sample, DomainSample)
    assert (sample.uuid, sample.pid) == (UUID, PID)
    assert sample.incarnation is not None
    assert sample.incarnation.key == f"{HOST_ID}/{UUID}/{BOOT_ID}/360050"


def test_facts_do_not_hold_what_a_restart_changes() -> None:
    first, _ = describe_domain(raw(), context(process()))
    again, _ = describe_domain(raw(), context(RunningQemu(815, LIBVIRTS_USER, 360_900, process().command_line)))
    assert first == again


def test_run_without_a_boot_id_belongs_to_no_incarnation() -> None:
    _, sample = describe_domain(raw(), context(process(), boot_id=unseen("test", "gone")))
    assert sample == DomainSample(uuid=UUID, pid=PID, incarnation=None)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (context(), "no visible process runs it"),
        (context(process(uid=1000)), "runs as another user"),
        (context(process(), process()), "2 processes claim this domain"),
        (context(visible=False), "remote"),
    ],
)
def test_run_whose_process_is_not_known_has_a_reason_and_no_sample(host: HostContext, reason: str) -> None:
    described, sample = describe_domain(raw(), host)
    assert described.process is not None
    assert reason in (described.process.reason or "")
    assert sample is None


def test_managed_save_has_a_run_and_no_process() -> None:
    described, sample = describe_domain(raw(active=seen("test", False)), context(process()))
    assert described.run is not None
    assert described.run.known
    assert (described.process, sample) == (None, None)


def test_ticks_are_counted_by_this_machines_clock() -> None:
    assert os.sysconf("SC_CLK_TCK") == 100  # what the recorded process above assumes
