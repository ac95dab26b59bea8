"""`exitguard report`: what was stored, told again, and how old it is."""

import csv
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from exitguard.cycle import AuditRequest, run_audit
from exitguard.model.documents import Observation
from exitguard.model.time import format_rfc3339
from exitguard.schemas import schema
from exitguard.store import gap
from exitguard.store.host import HostStore

Store = Callable[[Path, timedelta], Path]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stored(tmp_path: Path) -> Store:
    """Store a real audit of a file tree as if it had been made `age` ago; gives the state directory."""

    def store(tree: Path, age: timedelta) -> Path:
        directory = tmp_path / "state"
        outcome = run_audit(AuditRequest(sysroot=tree))
        moment = datetime.now(UTC) - age
        facts = outcome.observation.facts.model_copy(update={"observed_at": moment})
        report = outcome.report.model_copy(update={"observed_at": moment})
        with HostStore.open(directory, now=moment) as host_store:
            host_store.record(
                Observation(facts=facts, samples=outcome.observation.samples.model_copy(update={"observed_at": moment})), report
            )
        return directory

    return store


def test_fresh_report_is_told_as_it_was(exitguard: Run, stored: Store, compliant_host: Path) -> None:
    stored(compliant_host, timedelta(hours=1))
    result = exitguard("report")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("COMPLIANT  compute-17")


def test_report_of_a_failing_host_is_2(exitguard: Run, stored: Store, failing_host: Path) -> None:
    stored(failing_host, timedelta(hours=1))
    assert exitguard("report").returncode == 2


def test_report_older_than_a_day_is_stale_and_3(exitguard: Run, stored: Store, compliant_host: Path) -> None:
    stored(compliant_host, timedelta(days=1, minutes=1))
    table = exitguard("report")
    assert table.returncode == 3
    assert table.stdout.startswith("STALE  compute-17")
    assert "COMPLIANT" not in table.stdout
    document = exitguard("report", "--format", "json")
    assert document.returncode == 3
    assert json.loads(document.stdout)["summary"]["exit_code"] == 3
    assert "stale: this report is of" in document.stderr


def test_stale_failure_stays_a_failure(exitguard: Run, stored: Store, failing_host: Path) -> None:
    stored(failing_host, timedelta(days=9))
    result = exitguard("report")
    assert result.returncode == 2
    assert "does not speak for the host now" in result.stdout


def test_at_gives_the_report_that_was_in_force_then(exitguard: Run, stored: Store, compliant_host: Path, failing_host: Path) -> None:
    stored(compliant_host, timedelta(days=30))
    stored(failing_host, timedelta(hours=1))
    then = format_rfc3339(datetime.now(UTC) - timedelta(days=29, hours=12))
    result = exitguard("report", "--at", then)
    assert result.returncode == 0, result.stdout
    assert exitguard("report").returncode == 2


def test_nothing_stored_at_that_time_is_3(exitguard: Run, stored: Store, compliant_host: Path) -> None:
    stored(compliant_host, timedelta(hours=1))
    result = exitguard("report", "--at", "2020-01-01T00:00:00Z")
    assert (result.returncode, result.stdout) == (3, "")
    assert "holds no audit of 2020-01-01 00:00:00 UTC or earlier" in result.stderr


def test_no_store_at_all_is_an_error_that_says_what_to_do(exitguard: Run) -> None:
    result = exitguard("report")
    assert (result.returncode, result.stdout) == (1, "")
    assert "run `exitguard audit" in result.stderr
    assert "Traceback" not in result.stderr


def test_since_lists_what_changed(exitguard: Run, stored: Store, compliant_host: Path, failing_host: Path) -> None:
    stored(compliant_host, timedelta(hours=2))
    stored(failing_host, timedelta(hours=1))
    since = format_rfc3339(datetime.now(UTC) - timedelta(hours=1, minutes=30))
    table = exitguard("report", "--since", since)
    assert table.returncode == 2
    assert "new → fail  DOM-PMU-PERSISTENT  web-1" in table.stdout
    document = json.loads(exitguard("report", "--since", since, "--format", "json").stdout)
    Draft202012Validator(schema("changes")).validate(document)
    assert ("DOM-PMU-PERSISTENT", "fail") in {(change["rule"], change["now"]) for change in document["transitions"]}


def test_changes_are_rows_for_a_spreadsheet_and_a_ticket(exitguard: Run, stored: Store, compliant_host: Path, failing_host: Path) -> None:
    directory = stored(compliant_host, timedelta(hours=2))
    stored(failing_host, timedelta(hours=1))
    gap.note_dropped(directory / "gap-note", datetime.now(UTC), "=no space left")
    since = format_rfc3339(datetime.now(UTC) - timedelta(hours=1, minutes=30))
    told = exitguard("report", "--since", since, "--format", "csv", "--format", f"markdown:{directory.parent / 'changes.md'}")
    assert told.returncode == 2
    rows = list(csv.DictReader(told.stdout.splitlines()))
    document = json.loads(exitguard("report", "--since", since, "--format", "json").stdout)
    assert [row["kind"] for row in rows].count("change") == len(document["transitions"])
    assert {(row["rule"], row["now"]) for row in rows if row["kind"] == "change"} == {
        (change["rule"], change["now"]) for change in document["transitions"]
    }
    (lost,) = [row for row in rows if row["kind"] == "gap"]
    assert (lost["reason"], lost["dropped"]) == ("'=no space left", "1")
    text = (directory.parent / "changes.md").read_text()
    assert text.startswith(f"## exitguard: {len(document['transitions'])} verdict")
    assert "`DOM-PMU-PERSISTENT`" in text
    assert "- **gap**" in text
    refused = exitguard("report", "--since", since, "--format", "junit")
    assert refused.returncode == 64
    assert "changes are told as table, markdown, csv, json, not as junit" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("words", [("--only", "fail"), ("--group-by", "chain")])
def test_changes_take_no_option_that_they_would_ignore(exitguard: Run, stored: Store, compliant_host: Path, words: tuple[str, str]) -> None:
    stored(compliant_host, timedelta(hours=2))
    result = exitguard("report", "--since", "2026-01-01T00:00:00Z", *words)
    assert result.returncode == 64
    assert "give no --only or --group-by" in " ".join(result.stderr.split())


def test_changes_since_a_time_to_come_are_refused(exitguard: Run, stored: Store, compliant_host: Path) -> None:
    stored(compliant_host, timedelta(hours=2))
    assert "still to come" in exitguard("report", "--since", "2126-01-01T00:00:00Z").stderr


def test_observations_that_were_lost_since_are_told(exitguard: Run, stored: Store, compliant_host: Path) -> None:
    directory = stored(compliant_host, timedelta(hours=1))
    gap.note_dropped(directory / "gap-note", datetime.now(UTC), "no space left on device")
    result = exitguard("report")
    assert result.returncode == 0
    assert "at least 1 could not be stored" in result.stderr
    since = format_rfc3339(datetime.now(UTC) - timedelta(hours=2))
    assert "no space left on device" in exitguard("report", "--since", since).stdout
