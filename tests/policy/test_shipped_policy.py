"""The shipped rules, lineages and costs say what is known, and no more. The releases are those of real machines and packages."""

import re

import pytest

from exitguard.policy.lineage import find_kernel_lineage, find_qemu_lineage
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import Check, Cost, Provenance
from exitguard.resources import policies_dir

RULEBOOK = load_rulebook()

A, B = "affected A", "affected B"


RELEASES = [
    ("5.10.0-32-amd64", "not_affected", "lab"),
    ("6.1.0-56-amd64", A, "lab"),
    ("6.1.0-56-cloud-amd64", A, "lab"),
    ("6.1.0-0.deb11.21-amd64", A, "lab"),
    ("6.12.107+deb13-amd64", B, "lab"),
    ("6.12.107+deb13-cloud-amd64", B, "lab"),
    ("6.16.12+deb13-amd64", B, "lab"),
    ("7.2.13+deb14-amd64", "equivalent", "lab"),
    ("4.19.300", "not_affected", "source"),
    ("5.15.180", "not_affected", "source"),
    ("5.16.20", "not_affected", "source"),
    ("5.17.0", A, "source"),
    ("5.17.0-rc1", A, "source"),
    ("6.8.12", A, "source"),
    ("6.9.0", B, "source"),
    ("6.17.8", B, "source"),
    ("6.18.0", "equivalent", "source"),
    ("7.0.0+", "equivalent", "source"),
    ("5.15.0-91-generic", "not_affected", "inference"),
    ("6.8.0-31-generic", A, "inference"),
    ("6.8.0-1008-aws", A, "inference"),
    ("6.14.0-24-generic", B, "inference"),
    ("6.8.12-4-pve", A, "inference"),
    ("6.17.8-300.fc43.x86_64", B, "inference"),
    ("6.18.1-arch1-1", "equivalent", "inference"),
    ("6.1.100-1.el9.elrepo.x86_64", A, "inference"),
    ("3.10.0-1160.el7.x86_64", "not_affected", "inference"),
    ("4.18.0-553.el8_10.x86_64", "unknown", "inference"),
    ("4.18.0-372.9.1.vz8.4.3", "unknown", "inference"),
    ("5.14.0-39.el9.x86_64", "not_affected", "inference"),
    ("5.14.0-70.13.1.el9_0.x86_64", "not_affected", "inference"),
    ("5.14.0-70.el9.x86_64", "not_affected", "inference"),
    ("5.14.0-71.el9.x86_64", "unknown", "inference"),
    ("5.14.0-161.el9.x86_64", "unknown", "inference"),
    ("5.14.0-162.6.1.el9_1.x86_64", A, "inference"),
    ("5.14.0-427.37.1.el9_4.x86_64", A, "inference"),
    ("5.14.0-503.11.1.el9_5.x86_64", "affected", "inference"),
    ("5.14.0-611.5.1.el9_7.x86_64+rt", "affected", "inference"),
    ("5.14.0-162.el9.x86_64", "affected", "inference"),
    ("5.14.0-585.el9.x86_64", "affected", "inference"),
    ("6.12.0-55.9.1.el10_0.x86_64", "unknown", "inference"),
    ("6.12.0-100.el10.x86_64", "unknown", "inference"),
    ("5.15.0-206.153.7.el9uek.x86_64", "unknown", "inference"),
    ("5.14.21-150500.55.52-default", "unknown", "inference"),
    ("6.12.0-160000.5-default", "unknown", "inference"),
    ("3.10.0-1160.114.2.vz7.222.6", "not_affected", "inference"),
    ("5.14.0-427.37.1.vz9.80.1", B, "list"),
    ("6.12.0-55.13.1.vz10.1.7", B, "list"),
]


@pytest.mark.parametrize(("release", "judged", "provenance"), RELEASES)
def test_kernel_release_has_the_state_that_is_known_of_it(release: str, judged: str, provenance: str) -> None:
    lineage = find_kernel_lineage(RULEBOOK.kernels, release)
    assert lineage is not None
    assert " ".join(filter(None, (lineage.state, lineage.body))) == judged
    assert lineage.provenance == provenance


@pytest.mark.parametrize("release", ["", "custom", "linux-6.1", "6", "6.1\n", "6.1 -amd64"])
def test_release_of_no_known_shape_has_no_lineage(release: str) -> None:
    assert find_kernel_lineage(RULEBOOK.kernels, release) is None


@pytest.mark.parametrize(
    ("version", "package", "clears", "provenance"),
    [
        ("7.2.22", "Debian 1:7.2+dfsg-7+deb12u18", False, "lab"),
        ("7.2.22", "", False, "source"),
        ("10.0.13", "Debian 1:10.0.13+ds-0+deb13u1", False, "inference"),
        ("10.2.4", "", False, "source"),
        ("11.0.0", "", True, "source"),
        ("11.1.3", "Debian 1:11.1.3+ds-1", True, "lab"),
    ],
)
def test_qemu_clears_enable_pmu_from_11_on(version: str, package: str, clears: bool, provenance: str) -> None:  # noqa: FBT001
    lineage = find_qemu_lineage(RULEBOOK.qemus, version, package)
    assert lineage is not None
    assert (lineage.clears_enable_pmu, lineage.provenance) == (clears, provenance)


@pytest.mark.parametrize(
    ("version", "package"),
    [
        ("8.2.2", "Debian 1:8.2.2+ds-0ubuntu1.4"),
        ("11.0.0", "Debian 1:11.0.0+ds-1ubuntu2"),
        ("9.1.0", "qemu-kvm-9.1.0-15.el9"),
        ("9.2.4", "qemu-9.2.4-1.fc42"),
        ("10.0.0", "v10.0.0-123-gabcdef"),
        ("", ""),
        ("unknown", ""),
    ],
)
def test_qemu_of_another_vendor_is_unknown_by_version(version: str, package: str) -> None:
    assert find_qemu_lineage(RULEBOOK.qemus, version, package) is None


def test_every_shipped_lineage_is_reached_by_some_release_of_these_tests() -> None:
    reached = {lineage.id for release, _, _ in RELEASES if (lineage := find_kernel_lineage(RULEBOOK.kernels, release))}
    assert reached == {lineage.id for lineage in RULEBOOK.kernels.lineages}


def test_every_check_has_exactly_one_rule() -> None:
    assert sorted(rule.check for rule in RULEBOOK.policy.rules) == sorted(Check)


def test_every_rule_says_why_and_where_that_is_written() -> None:
    for rule in RULEBOOK.policy.rules:
        assert len(rule.rationale) > 100, rule.id
        assert rule.references, rule.id


def test_remedies_are_those_of_the_rules_that_have_one() -> None:
    assert {rule.id: rule.remedy for rule in RULEBOOK.policy.rules if rule.remedy} == {
        "HOST-KERNEL-GUARD": "kernel_guard",
        "HOST-QEMU-PMU-CAP": "qemu_pmu_cap",
        "DOM-PMU-PERSISTENT": "domain_pmu_off",
        "NOVA-DEFAULT-OFF": "nova_flavor_default",
        "NOVA-FLAVOR-SILENT": "nova_flavor_default",
        "NOVA-IMAGE-SILENT": "nova_image_default",
        "NOVA-INSTANCE-PMU": "nova_instance_pmu_off",
    }


def test_cycles_come_from_the_author_of_the_guard_and_never_for_body_a() -> None:
    in_cycles = {cost.cpu.name: cost for cost in RULEBOOK.costs.costs if cost.cycles_per_exit is not None and cost.cpu is not None}
    assert {name: (cost.cycles_per_exit, cost.body, cost.provenance) for name, cost in in_cycles.items()} == {
        "Zen 2, EPYC 7302": (57, "B", Provenance.LIST),
        "Ice Lake-SP": (26, "B", Provenance.LIST),
    }


def instructions(**row: object) -> int:
    """The instructions of the one row that has these values."""
    found: list[Cost] = [
        cost
        for cost in RULEBOOK.costs.costs
        if cost.instructions_per_exit is not None and all(getattr(cost, name) == value for name, value in row.items())
    ]
    assert len(found) == 1, row
    assert found[0].instructions_per_exit is not None
    return found[0].instructions_per_exit


@pytest.mark.parametrize(
    ("body", "guard", "mitigations", "saved_by_pmu_off"),
    [
        ("A", False, "off", 0),
        ("A", True, "off", 204),
        ("B", False, "off", 185),
        ("B", False, "auto", 197),
        ("B", True, "off", 216),
        ("B", True, "auto", 230),
    ],
)
def test_pmu_off_saves_what_was_measured(body: str, guard: bool, mitigations: str, saved_by_pmu_off: int) -> None:  # noqa: FBT001
    assert instructions(saved_by="pmu_off", body=body, guard=guard, mitigations=mitigations) == saved_by_pmu_off


@pytest.mark.parametrize(
    ("body", "mitigations", "saved_by_guard"), [("A", "off", 200), ("A", "auto", 227), ("B", "off", 26), ("B", "auto", 29)]
)
def test_guard_saves_what_was_measured(body: str, mitigations: str, saved_by_guard: int) -> None:
    assert instructions(saved_by="guard", body=body, mitigations=mitigations) == saved_by_guard


@pytest.mark.parametrize(("body", "mitigations"), [("A", "off"), ("B", "off"), ("B", "auto")])
def test_both_levers_together_save_the_sum(body: str, mitigations: str) -> None:
    both = instructions(saved_by="guard_and_pmu_off", body=body, mitigations=mitigations)
    pmu_off = instructions(saved_by="pmu_off", body=body, guard=False, mitigations=mitigations)
    assert both == pmu_off + instructions(saved_by="guard", body=body, mitigations=mitigations)
    # The other way round, guard first: what it costs a PMU-on guest is in the sum. Each figure is good to about one instruction.
    guarded = instructions(saved_by="pmu_off", body=body, guard=True, mitigations=mitigations)
    assert both == pytest.approx(guarded + instructions(saved_by="guard_pmu_on", body=body, mitigations=mitigations), abs=1)


def test_lab_measured_one_vendor_path_and_converts_nothing() -> None:
    lab = [cost for cost in RULEBOOK.costs.costs if cost.provenance is Provenance.LAB]
    assert {(cost.vendor_path, cost.cycles_per_exit) for cost in lab} == {("svm", None)}


@pytest.mark.parametrize("name", ["pmu-off", "kernels", "qemu", "costs"])
def test_shipped_file_tells_editors_its_schema(name: str) -> None:
    first = (policies_dir() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    match = re.fullmatch(r"# yaml-language-server: \$schema=(schemas/[a-z]+\.schema\.json)", first)
    assert match is not None
    assert (policies_dir() / match.group(1)).is_file()
