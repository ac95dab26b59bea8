"""The facts page shows every fact of the model, set or not."""

from pathlib import Path

from exitguard.cycle import AuditRequest, observe
from exitguard.report.facts_table import facts_table
from exitguard.report.page import Look


def test_every_part_of_the_host_has_a_section_and_the_unseen_its_reason(tmp_path: Path) -> None:
    facts = observe(AuditRequest(sysroot=tmp_path)).facts
    page = facts_table(facts, Look())
    for part in type(facts.host).model_fields:
        assert f"\n{part.replace('_', ' ')}\n" in page
    assert facts.host_hash in page
    assert "release                   not seen: no such file or directory" in page


def test_a_seen_fact_is_shown_with_its_value(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.1.0-56-amd64\n")
    page = facts_table(observe(AuditRequest(sysroot=tmp_path)).facts, Look())
    assert "release                   6.1.0-56-amd64" in page


def test_every_fact_of_a_domain_is_there() -> None:
    facts = observe(AuditRequest(uri="test:///default")).facts
    page = facts_table(facts, Look())
    assert facts.domains[0].uuid in page
    for label in ("active", "managed save", "definition type", "definition pmu", "run pmu", "owner kind", "locked"):
        assert f"    {label} " in page


def test_thousands_of_domains_are_capped_and_counted() -> None:
    facts = observe(AuditRequest(uri="test:///default")).facts
    many = facts.model_copy(update={"domains": facts.domains * 5000})
    page = facts_table(many, Look())
    assert "… and 4,950 more, see --format json" in page
