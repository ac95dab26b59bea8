"""What the doctor says of a host of which nothing, something or everything was seen."""

from pathlib import Path

import pytest

from exitguard.cycle import AuditRequest, observe
from exitguard.model.documents import FactsDocument
from exitguard.model.record import Observed, Record, seen, unseen
from exitguard.report.doctor import doctor_exit_code, doctor_page
from exitguard.report.observed import missing
from exitguard.report.page import Look


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
