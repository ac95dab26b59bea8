"""What the doctor says of a host of which nothing, something or everything was seen."""

from pathlib import Path
from typing import get_args

import pytest

from exitguard.cycle import AuditRequest, observe
from exitguard.model.documents import FactsDocument
from exitguard.model.host import Target, TargetKind
from exitguard.model.record import Observed, Record, seen, unseen
from exitguard.report.doctor import doctor_exit_code, doctor_page
from exitguard.report.observed import missing
from exitguard.report.page import Look
from exitguard.report.privileges import _COSTS


@pytest.fixture
def facts(tmp_path: Path) -> FactsDocument:
    """The facts of an empty file tree: a real document in which next to nothing was seen."""
    return observe(AuditRequest(sysroot=tmp_path)).facts


def only_seen(record: Record) -> dict[str, object]:
    """The fields of `record`, every unseen fact replaced by a seen one that holds any value."""
    replaced: dict[str, object] = {}
    for field in type(record).model_fields:
        value = getattr(record, field)
        if isinstance(value, Observed) and value.reason is not None:
            replaced[field] = seen(value.source, "any")
        elif isinstance(value, Record) and not isinstance(value, Observed):
            replaced[field] = value.model_copy(update=only_seen(value))
    return replaced


def test_every_gap_is_named_with_source_and_reason(facts: FactsDocument) -> None:
    page = " ".join(doctor_page(facts, Look(width=120)).split())
    assert missing(facts)
    for gap in missing(facts):
        assert gap.source in page
        assert " ".join(gap.reason.split()) in page


def test_exit_code_is_3_while_anything_is_missing(facts: FactsDocument) -> None:
    assert doctor_exit_code(facts) == 3
    assert doctor_page(facts, Look()).startswith("NOT ALL SEEN")


def test_exit_code_is_0_when_everything_was_seen(facts: FactsDocument) -> None:
    whole = facts.model_copy(update={"host": facts.host.model_copy(update=only_seen(facts.host))})
    assert doctor_exit_code(whole) == 0
    assert doctor_page(whole, Look()).startswith("ALL SEEN")
    assert "Not seen" not in doctor_page(whole, Look())


def test_what_unlocks_most_comes_first(facts: FactsDocument) -> None:
    root, group = "run as root", "join the group kvm"
    host = facts.host.model_copy(
        update={
            "cpu": unseen("/a", "denied", unlock=group),
            "mitigations": unseen("/b", "denied", unlock=root),
            "qemu": unseen("/c", "denied", unlock=root),
        }
    )
    page = doctor_page(facts.model_copy(update={"host": host}), Look())
    assert "1. run as root  (2 facts)" in page
    assert "2. join the group kvm  (1 fact)" in page


def test_what_can_be_seen_is_listed_too(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.1.0-56-amd64\n")
    page = doctor_page(observe(AuditRequest(sysroot=tmp_path)).facts, Look())
    assert "+ kernel release  /proc/sys/kernel/osrelease" in page


def test_domains_that_could_not_be_listed_are_not_counted_as_none(facts: FactsDocument) -> None:
    assert "domains not listed" in doctor_page(facts, Look())


def with_gap(facts: FactsDocument, kind: TargetKind, unlock: str) -> str:
    """The page for a target of which one more fact is missing, for want of a privilege."""
    target = Target(kind=kind, uri=None if kind is TargetKind.SYSROOT else "qemu:///system", sysroot=facts.host.target.sysroot)
    update = {"target": target, "unmanaged": unseen("/proc/*/fd", "permission denied", unlock=unlock)}
    host = facts.host.model_copy(update=update)
    return doctor_page(facts.model_copy(update={"host": host}), Look(width=100), user="user exitguard")


def test_privilege_comes_with_the_drop_in_that_grants_it(facts: FactsDocument) -> None:
    page = with_gap(facts, TargetKind.LOCAL, "run as root, or grant CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE")
    assert "systemctl edit exitguard-audit.service" in page
    assert "         [Service]\n         CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_SYS_PTRACE\n" in page
    assert "         AmbientCapabilities=CAP_DAC_READ_SEARCH CAP_SYS_PTRACE\n" in page


def test_no_drop_in_shows_what_a_package_or_another_host_would(facts: FactsDocument) -> None:
    assert "[Service]" not in with_gap(facts, TargetKind.LOCAL, "install the package rpm")
    assert "[Service]" not in with_gap(facts, TargetKind.SYSROOT, "run as root, or grant CAP_DAC_READ_SEARCH")


def test_missing_evidence_says_what_it_costs(facts: FactsDocument) -> None:
    page = " ".join(with_gap(facts, TargetKind.LOCAL, "run as root, or grant CAP_SYS_PTRACE").split())
    assert "why permission denied costs guests that were started past libvirt; no rule fails by that, and none counts them" in page


def test_page_says_who_looked(facts: FactsDocument) -> None:
    assert ", as user exitguard)" in with_gap(facts, TargetKind.LOCAL, "run as root").splitlines()[0]


def test_every_cost_is_of_a_fact_that_there_is() -> None:
    """A field that is renamed would leave its cost behind, never to be shown."""
    for topic in _COSTS:
        record: type[Record] = FactsDocument
        for name in topic.split("."):
            field = record.model_fields[name]
            record = _record_in(field.annotation) or Record


def _record_in(annotation: object) -> type[Record] | None:
    """The record inside of `Observed[Record] | None`, `tuple[Record, ...]` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, Observed):
        return _record_in(annotation.__pydantic_generic_metadata__["args"][0])
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    return next((found for each in get_args(annotation) if (found := _record_in(each)) is not None), None)
