"""`exitguard savings` by the command line: out of a store with real rows, and without one."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from exitguard.bookkeeping import keep_books
from exitguard.model.documents import Observation
from exitguard.model.samples import Samples
from exitguard.schemas import schema
from exitguard.store.host import HostStore

sys.path.append(str(Path(__file__).parents[1] / "store"))
import store_builders

Run = Callable[..., subprocess.CompletedProcess[str]]


def counted(observation: Observation, at: datetime, exits: int) -> Samples:
    """The observation's samples as they would be at `at`, when each guest had made so many exits, a tenth of them HLT."""
    samples = observation.samples
    counters = {"exits": exits, "halt_exits": exits // 10}
    later = samples.boottime_nanoseconds + (at - samples.observed_at) // timedelta(microseconds=1) * 1000
    domains = tuple(domain.model_copy(update={"counters": counters}) for domain in samples.domains)
    return samples.model_copy(
        update={"observed_at": at, "boottime_nanoseconds": later, "boot_id": store_builders.BOOT_ID, "domains": domains}
    )


@pytest.fixture
def state(tmp_path: Path) -> Callable[[timedelta], None]:
    """Store an audit of `age` ago, and three samples five minutes apart after it."""

    def store(age: timedelta) -> None:
        begin = datetime.now(UTC) - age
        observation = store_builders.observe(begin, domains=2)
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "host-id").write_text(f"{store_builders.HOST_ID}\n")
        with HostStore.open(tmp_path / "state", now=begin) as opened:
            opened.record(observation, store_builders.judge(observation))
            for minutes, exits in ((0, 1000), (5, 31_000), (10, 61_000)):
                opened.record_samples(counted(observation, begin + timedelta(minutes=minutes), exits))
            keep_books(opened)

    return store


def test_exits_of_each_guest_are_told_with_their_bounds(exitguard: Run, state: Callable[[timedelta], None]) -> None:
    state(timedelta(hours=1))
    result = exitguard("savings", "--format", "json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    Draft202012Validator(schema("savings")).validate(document)
    assert [domain["exits_per_second"] for domain in document["domains"]] == [100.0, 100.0]
    assert document["domains"][0]["skip_exits_per_second"] == {"low": 10.0, "high": 100.0, "at_least": False}


def test_page_names_the_guests_and_what_is_not_quantified(exitguard: Run, state: Callable[[timedelta], None]) -> None:
    state(timedelta(hours=1))
    result = exitguard("savings")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("UNQUANTIFIED")
    assert "skips a second would save is in no sum" in result.stdout


def test_hours_before_the_time_asked_for_are_left_out(exitguard: Run, state: Callable[[timedelta], None]) -> None:
    state(timedelta(hours=5))
    since = (datetime.now(UTC) - timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    result = exitguard("savings", "--since", since)
    assert result.returncode == 3
    assert "exitguard daemon" in result.stdout


def test_judgement_older_than_a_day_is_stale_and_3(exitguard: Run, state: Callable[[timedelta], None]) -> None:
    state(timedelta(days=2))
    since = (datetime.now(UTC) - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
    result = exitguard("savings", "--since", since)
    assert result.returncode == 3
    assert result.stdout.startswith("STALE")


def test_host_that_was_never_audited_is_told_so(exitguard: Run) -> None:
    result = exitguard("savings")
    assert result.returncode != 0
    assert result.stdout == ""
    assert "exitguard audit" in result.stderr


def test_report_says_what_is_saved_now_and_one_of_an_earlier_time_does_not(exitguard: Run, state: Callable[[timedelta], None]) -> None:
    state(timedelta(hours=1))
    document = json.loads(exitguard("report", "--format", "json").stdout)
    Draft202012Validator(schema("audit")).validate(document)
    savings = json.loads(exitguard("savings", "--format", "json").stdout)
    assert document["savings"]["now"]["standings"] == savings["now"]["standings"] != []
    assert document["savings"]["booked_until"] == savings["booked_until"]
    assert "savings unquantified saved unquantified, available unquantified" in " ".join(exitguard("report").stdout.split())
    earlier = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert json.loads(exitguard("report", "--at", earlier, "--format", "json").stdout)["savings"] is None


def test_audit_of_a_host_without_a_ledger_says_nothing_of_savings(exitguard: Run) -> None:
    document = json.loads(exitguard("audit", "--connect", "test:///default", "--format", "json").stdout)
    assert document["savings"] is None
