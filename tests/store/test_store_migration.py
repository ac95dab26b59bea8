"""A database of an earlier schema, as an earlier version wrote it: all that was told of it is told of it still."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from store_builders import START, finding, judge, minutes, observe

from exitguard.model.finding import Verdict
from exitguard.store.errors import StoreError
from exitguard.store.host import HostStore

SCHEMA_1 = Path(__file__).with_name("schema_1")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state directory with the recorded database of schema 1 in it."""
    with closing(sqlite3.connect(tmp_path / "host.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript((SCHEMA_1 / "host.sql").read_text(encoding="utf-8"))
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    (tmp_path / "host-id").write_text("7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11\n", encoding="ascii")
    return tmp_path


def told(store: HostStore) -> dict[str, object]:
    observed = [minutes(minute) for minute in (0, 5, 10, 15)]
    reports = [store.report(at) for at in observed]
    facts = [store.facts(at) for at in observed]
    return {
        "reports": [report and report.model_dump(mode="json", exclude={"host": {"kernel": {"returns_at_once"}}}) for report in reports],
        "hashes": [document and document.host_hash for document in facts],
        "samples": [samples.model_dump(mode="json", exclude={"domains": {"__all__": {"counters"}}}) for samples in store.samples(START)],
        "transitions": [change.model_dump(mode="json") for change in store.transitions(START)],
        "gaps": [gap.model_dump(mode="json") for gap in store.gaps(START)],
        "epoch": store.spool_epoch,
    }


def test_migrated_store_tells_what_the_earlier_version_told(state_dir: Path) -> None:
    expected = json.loads((SCHEMA_1 / "told.json").read_text(encoding="utf-8"))
    for samples in expected["samples"]:  # added later, null where none were read
        for domain in samples["domains"]:
            domain.pop("counters", None)
    for report in expected["reports"]:  # added later, and never stored
        report["savings"] = None
    with HostStore.open(state_dir, now=minutes(20)) as store:
        assert told(store) == expected
    with closing(sqlite3.connect(state_dir / "host.sqlite")) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_older_schema_is_not_migrated_by_a_reader(state_dir: Path) -> None:
    with pytest.raises(StoreError, match=r"written by an older exitguard.*run `exitguard audit"):
        HostStore.open(state_dir, now=START, read_only=True)


def test_migrated_documents_end_where_the_facts_changed(state_dir: Path) -> None:
    with HostStore.open(state_dir, now=START) as store:
        hashes = [store.facts(minutes(minute)) for minute in (0, 10, 15)]
    with closing(sqlite3.connect(state_dir / "host.sqlite")) as connection:
        ends = dict(connection.execute("SELECT hash, until_seq FROM facts_document"))
    first, second, third = (document for document in hashes if document is not None)
    both, other, off = *first.domain_hashes.values(), list(second.domain_hashes.values())[1]
    # Observations 1 and 2 had both domains, 3 had the second with the PMU off, and 4 only the first.
    assert ends == {first.host_hash: 3, other: 3, second.host_hash: 4, off: 4, third.host_hash: None, both: None}


def test_migrated_store_goes_on(state_dir: Path) -> None:
    with HostStore.open(state_dir, now=minutes(20)) as store:
        observation = observe(minutes(20), domains=2)
        findings = tuple(finding(number, Verdict.FAIL, minutes(20)) for number in range(2))
        recorded = store.record(observation, judge(observation, findings))
        assert store.report() == recorded
        assert [entry.since for entry in recorded.findings] == [START, minutes(20)]
        assert store.report(minutes(5)) is not None
        assert [samples.observed_at for samples in store.samples(minutes(15))] == [minutes(15), minutes(20)]
    shutil.rmtree(state_dir)
