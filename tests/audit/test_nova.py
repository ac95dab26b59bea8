"""Nova as an owner, and its default told by behaviour: only real witnesses count."""

from pathlib import Path

import pytest
from audit_builders import GUARD_ENTRY, QEMU_11, affected_kernel, definition, domain, facts, nova, process

from exitguard.audit.judge import judge
from exitguard.audit.nova import Witness, asked, judge_nova_default, weigh, wish, written_by_nova
from exitguard.facts.domain_xml import parse
from exitguard.model.documents import DomainReport
from exitguard.model.domain import DomainFacts, NovaInstance
from exitguard.model.finding import Verdict
from exitguard.model.pmu import ChainState, LinkName, NextAction, PmuElement, Tri
from exitguard.policy.load import load_rulebook

OFF = definition("custom", PmuElement.OFF)
SILENT = definition("custom")
ON = definition("custom", PmuElement.ON)
RECORDED = Path(__file__).parents[1] / "facts" / "domain_xml"
GUARDED = affected_kernel(changelog=(GUARD_ENTRY,))


OLD = nova(None, None, "26.2.2")  # Nova before 32.0.0: its metadata tells nothing of the flavor's extra specs or the image's properties


def instance(element: PmuElement, *, number: int = 1, generated: bool | None = True, properties: NovaInstance | None = None) -> DomainFacts:
    xml = {PmuElement.OFF: OFF, PmuElement.ABSENT: SILENT, PmuElement.ON: ON}[element]
    cpu = {PmuElement.OFF: "EPYC,pmu=off", PmuElement.ABSENT: "EPYC", PmuElement.ON: "EPYC,pmu=on"}[element]
    return domain(number=number, defined=xml, run=xml, runs=process(cpu, QEMU_11), nova=properties or nova(), generated=generated)


def chain_of(*guests: DomainFacts) -> DomainReport:
    return judge(facts(*guests, kernel=GUARDED, binaries=(QEMU_11,)), load_rulebook()).domains[0]


def kept(report: DomainReport) -> Tri:
    return next(link.holds for link in report.chain.links if link.name is LinkName.KEPT)


def test_a_silent_instance_with_the_element_off_proves_the_default() -> None:
    default = judge_nova_default([instance(PmuElement.OFF)])
    assert (default.holds, len(default.proofs), default.instances) == (Tri.YES, 1, 1)


@pytest.mark.parametrize("version", ["20.0.0", "26.2.2", "31.0.0", "32.0.0"])
@pytest.mark.parametrize("flavor", [None, "", "true", "false", "perhaps"])
@pytest.mark.parametrize("image", [None, "", "True", "False"])
def test_an_instance_that_nova_wrote_without_the_element_disproves_it_whatever_is_known_of_flavor_and_image(
    flavor: str | None, image: str | None, version: str
) -> None:
    default = judge_nova_default([instance(PmuElement.ABSENT, properties=nova(flavor, image, version))])
    assert (default.holds, len(default.disproofs)) == (Tri.NO, 1)


@pytest.mark.parametrize(
    "guest",
    [
        instance(PmuElement.ABSENT, generated=False, properties=OLD),
        instance(PmuElement.ABSENT, generated=None, properties=OLD),
        domain(defined=SILENT, nova=OLD, generated=None),  # does not run
        domain(defined=SILENT, run=SILENT, runs=process("EPYC")),  # not Nova's
        domain(defined=SILENT, run="did not answer", runs=process("EPYC"), nova=OLD, generated=True, active=True),
    ],
)
def test_a_missing_element_that_nova_may_not_have_left_out_disproves_nothing(guest: DomainFacts) -> None:
    assert judge_nova_default([guest]).holds is Tri.UNKNOWN


def test_a_definition_that_somebody_edited_during_the_run_does_not_unsay_what_nova_wrote() -> None:
    edited = domain(defined=OFF, run=SILENT, runs=process("EPYC"), nova=OLD, generated=True)
    assert written_by_nova(edited) is PmuElement.ABSENT
    assert judge_nova_default([edited]).holds is Tri.NO


@pytest.mark.parametrize(("known", "holds"), [(True, Tri.YES), (False, Tri.UNKNOWN)])
def test_silence_that_the_metadata_does_not_tell_may_be_known_from_elsewhere(known: bool, holds: Tri) -> None:  # noqa: FBT001 - a column
    guest = instance(PmuElement.OFF, properties=OLD)
    assert judge_nova_default([guest], lambda _: known).holds is holds


@pytest.mark.parametrize("element", PmuElement)
@pytest.mark.parametrize("flavor", ["", "true", "false"])
@pytest.mark.parametrize("image", ["", "true", "false"])
def test_what_is_concluded_without_knowing_flavor_or_image_stays_true_whatever_they_say(
    element: PmuElement, flavor: str, image: str
) -> None:
    known = judge_nova_default([instance(element, properties=nova(flavor, image))]).holds
    for less in (nova(None, image), nova(flavor, None), nova(None, None)):
        assert judge_nova_default([instance(element, properties=less)]).holds in (known, Tri.UNKNOWN)


def test_instances_reduced_to_what_they_show_are_weighed_alike() -> None:
    shown = (Witness("a", PmuElement.OFF, silent=True), Witness("b", PmuElement.OFF, silent=False), Witness("c", None, silent=True))
    default = weigh(shown)
    assert (default.holds, default.instances, default.proofs, default.disproofs) == (Tri.YES, 3, ("a",), ())
    assert weigh((*shown, Witness("d", PmuElement.ABSENT, silent=False))).holds is Tri.UNKNOWN
    assert weigh(()).holds is Tri.UNKNOWN


@pytest.mark.parametrize(("case", "holds"), [("flavor-silent", Tri.NO), ("flavor-pmu-off", Tri.UNKNOWN), ("flavor-pmu-on", Tri.UNKNOWN)])
def test_what_a_real_nova_26_wrote_disproves_the_default_by_its_silent_instance_alone(case: str, holds: Tri) -> None:
    parsed = parse((RECORDED / f"nova-26.2.2-{case}" / "input").read_text())
    guest = domain(defined=parsed.definition, run=parsed.definition, runs=process("qemu64"), nova=parsed.nova, generated=True)
    assert judge_nova_default([guest]).holds is holds


@pytest.mark.parametrize(
    "guest",
    [
        instance(PmuElement.OFF, generated=False),  # restored, migrated in, or defined by hand since
        instance(PmuElement.OFF, generated=None),  # its process cannot be seen
        instance(PmuElement.OFF, properties=nova(flavor=None, image=None, version="26.2.2")),  # what is stored is not known
        instance(PmuElement.OFF, properties=nova(image=None)),
        instance(PmuElement.OFF, properties=nova(flavor="false")),  # the flavor says it, not the default
        instance(PmuElement.ON),
        domain(defined=OFF, nova=nova(), generated=None),  # does not run
        domain(defined=OFF, run=OFF, runs=process("EPYC,pmu=off")),  # not Nova's
    ],
)
def test_anything_less_is_no_witness(guest: DomainFacts) -> None:
    default = judge_nova_default([guest])
    assert (default.holds, default.proofs, default.disproofs) == (Tri.UNKNOWN, (), ())


def test_witnesses_that_contradict_each_other_decide_nothing_and_both_are_counted() -> None:
    default = judge_nova_default([instance(PmuElement.OFF), instance(PmuElement.ABSENT, number=2)])
    assert (default.holds, len(default.proofs), len(default.disproofs)) == (Tri.UNKNOWN, 1, 1)


@pytest.mark.parametrize(
    ("guests", "verdict"),
    [
        ([instance(PmuElement.OFF)], Verdict.PASS),
        ([instance(PmuElement.ABSENT)], Verdict.FAIL),
        ([instance(PmuElement.ABSENT, properties=OLD)], Verdict.FAIL),
        ([instance(PmuElement.OFF, properties=OLD)], Verdict.UNKNOWN),
        ([instance(PmuElement.OFF), instance(PmuElement.ABSENT, number=2)], Verdict.UNKNOWN),
        ([instance(PmuElement.OFF, generated=False)], Verdict.UNKNOWN),
        ([domain(defined=OFF)], Verdict.NOT_APPLICABLE),
    ],
)
def test_the_rule_says_so_with_the_number_of_witnesses(guests: list[DomainFacts], verdict: Verdict) -> None:
    report = judge(facts(*guests), load_rulebook())
    (found,) = [each for each in report.findings if each.rule == "NOVA-DEFAULT-OFF"]
    assert found.verdict is verdict
    if verdict is not Verdict.NOT_APPLICABLE:
        assert "witness" in found.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("True", True),
        ("on", True),
        ("1", True),
        ("false", False),
        ("OFF", False),
        ("", None),
        (None, None),
        ("perhaps", None),
    ],
)
def test_a_property_is_read_as_nova_reads_booleans(text: str | None, expected: bool | None) -> None:  # noqa: FBT001 - a column of the table
    assert wish(text) is expected


@pytest.mark.parametrize(
    ("flavor", "image", "expected"),
    [
        ("true", "", Tri.YES),
        ("", "true", Tri.YES),
        ("false", "", Tri.NO),
        ("", "", Tri.NO),
        (None, None, Tri.UNKNOWN),
        ("", None, Tri.UNKNOWN),
        (None, "true", Tri.YES),
    ],
)
def test_what_was_asked_is_known_only_where_it_is_stored(flavor: str | None, image: str | None, expected: Tri) -> None:
    assert asked(nova(flavor, image)) is expected


def test_pmu_off_by_flavor_is_kept() -> None:
    report = chain_of(instance(PmuElement.OFF, properties=nova(flavor="false"), generated=False))
    assert (kept(report), report.chain.state) == (Tri.YES, ChainState.EFFECTIVE)


def test_what_nova_wrote_itself_when_it_started_the_instance_it_will_write_again() -> None:
    old = nova(flavor=None, image=None, version="26.2.2")
    assert kept(chain_of(instance(PmuElement.OFF, properties=old))) is Tri.YES
    assert kept(chain_of(instance(PmuElement.ABSENT, properties=old))) is Tri.YES


def test_an_element_of_unknown_origin_is_unknown_and_the_api_is_named() -> None:
    report = chain_of(instance(PmuElement.OFF, properties=nova(flavor=None, image=None, version="26.2.2"), generated=False))
    assert (kept(report), report.chain.state) == (Tri.UNKNOWN, ChainState.UNKNOWN)
    assert "Nova API" in next(link.reason for link in report.chain.links if link.name is LinkName.KEPT)


def test_an_element_that_neither_flavor_image_nor_default_explains_reverts() -> None:
    by_hand = instance(PmuElement.OFF, generated=False)
    disproof = instance(PmuElement.ABSENT, number=2)
    report = chain_of(by_hand, disproof)
    assert (kept(report), report.chain.state, report.chain.next_action) == (Tri.NO, ChainState.REVERTS, NextAction.SET_PMU_OFF_IN_NOVA)


def test_an_element_that_the_default_explains_is_kept() -> None:
    assert kept(chain_of(instance(PmuElement.OFF, generated=False), instance(PmuElement.OFF, number=2))) is Tri.YES


def test_a_definition_touched_after_the_start_is_not_novas_word() -> None:
    touched = domain(defined=OFF, run=SILENT, runs=process("EPYC", QEMU_11), nova=nova(None, None, "26.2.2"), generated=True)
    assert kept(chain_of(touched)) is Tri.UNKNOWN


def test_an_instance_with_the_pmu_on_by_default_is_changed_through_nova_only() -> None:
    passthrough = definition("host-passthrough")
    report = chain_of(domain(defined=passthrough, run=passthrough, runs=process("host", QEMU_11), nova=nova(), generated=True))
    assert (report.chain.state, report.chain.next_action) == (ChainState.ON, NextAction.SET_PMU_OFF_IN_NOVA)


def test_an_old_instance_that_runs_with_the_element_on_was_asked_for_whatever_its_definition_says_now() -> None:
    """Nova wrote it, so flavor or image asked; somebody has changed the definition behind Nova's back."""
    report = chain_of(domain(defined=OFF, run=ON, runs=process("EPYC,pmu=on", QEMU_11), nova=OLD, generated=True))
    assert (report.chain.state, report.chain.next_action) == (ChainState.OPTED_OUT, NextAction.NONE)


@pytest.mark.parametrize(
    "guest",
    [
        domain(defined=OFF, run=OFF, runs=process("EPYC,pmu=off", QEMU_11), nova=OLD, generated=False),
        domain(defined=OFF, run=SILENT, runs=process("EPYC", QEMU_11), nova=OLD, generated=True),
    ],
)
def test_an_old_instance_whose_definition_may_be_somebody_elses_may_have_been_asked_for(guest: DomainFacts) -> None:
    report = chain_of(guest)
    assert (report.chain.state, report.chain.next_action) == (ChainState.UNKNOWN, NextAction.OBSERVE)


def test_a_stopped_instance_is_not_said_to_have_what_its_definition_switches_off() -> None:
    """The shape of the trap: the flavor asks, and the definition says off."""
    report = judge(facts(domain(defined=OFF, nova=nova(flavor="true")), kernel=GUARDED), load_rulebook())
    (found,) = [each for each in report.findings if each.rule == "DOM-OPT-OUT-HONOURED"]
    assert found.verdict is Verdict.UNKNOWN
