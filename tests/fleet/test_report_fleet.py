"""`exitguard report --fleet`: the command line asks a real hub, and tells what only a hub can tell of hosts."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hub_process import RunningHub
from push_builders import EPOCH, record
from store_builders import finding, judge, observe

from exitguard.fleet.keys import HostKey
from exitguard.model.finding import Verdict
from exitguard.model.host import QemuBinary, QemuVersion
from exitguard.model.hub import Role
from exitguard.model.push import PushBatch, SavingsText
from exitguard.model.rates import OwnUse
from exitguard.model.record import seen
from exitguard.model.time import format_rfc3339
from exitguard.report.fleet_savings_page import FleetSavings
from exitguard.savings.account import Sums, savings_now

pytestmark = pytest.mark.integration

QEMU_11 = QemuBinary(
    path="/usr/bin/qemu-system-x86_64",
    version=seen("qemu", QemuVersion(version="11.1.3", package="Debian 1:11.1.3+ds-1")),
    capability_string=seen("qemu", True),
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A hub of its own: these tests tell of all its hosts."""
    directory = tmp_path_factory.mktemp("fleet")
    database = str(directory / "hub.sqlite") if request.param == "sqlite" else request.getfixturevalue("postgresql").new_database()
    with RunningHub(database, directory / "log") as running:
        yield running


class Fleet:
    """A hub with five hosts: two that report, of which one has another QEMU; a skewed one; one without a report; one that is shut out."""

    def __init__(self, hub: RunningHub, directory: Path) -> None:
        self.hub = hub
        self.token = directory / "token"
        self.token.write_text(hub.operator()["Authorization"].removeprefix("Bearer ") + "\n")
        self.now = datetime.now(UTC)
        self.plain, self.newer, self.skewed, self.unheard, self.gone = (hub.let_in(str(uuid4())) for _ in range(5))
        self.push(self.plain, "compute-plain", self.now - timedelta(hours=3), Verdict.PASS, seq=1)
        self.push(self.plain, "compute-plain", self.now, Verdict.FAIL, seq=2)
        self.push(self.newer, "compute-newer", self.now, Verdict.PASS, qemu=QEMU_11)
        self.push(
            self.skewed, "compute-skewed", self.now + timedelta(hours=1), Verdict.PASS, sent_at=datetime.now(UTC) + timedelta(hours=1)
        )
        self.push(self.gone, "compute-gone", self.now, Verdict.PASS)
        hub.client.post(f"/v1/hosts/{self.gone.host_id}/revoke", headers=hub.operator(Role.OPERATOR)).raise_for_status()

    def push(
        self,
        key: HostKey,
        hostname: str,
        at: datetime,
        verdict: Verdict,
        *,
        seq: int = 1,
        qemu: QemuBinary | None = None,
        sent_at: datetime | None = None,
    ) -> None:
        judged = judge(observe(at, hostname=hostname), (finding(0, verdict, at),))
        changes: dict[str, Any] = {"id": key.host_id}
        if qemu is not None:
            changes["qemu"] = seen("processes", (qemu,))
        report = judged.model_copy(update={"host": judged.host.model_copy(update=changes)})
        sent = sent_at or datetime.now(UTC)
        batch = PushBatch(host_id=key.host_id, spool_epoch=EPOCH, sent_at=sent, records=(record(seq, report, at),))
        answer = self.hub.push(key, batch)
        assert answer.status_code == 200, answer.text

    def run(self, *words: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "EXITGUARD_HUB_URL": url or self.hub.url, "EXITGUARD_HUB_TOKEN_FILE": str(self.token)}
        command = [sys.executable, "-m", "exitguard", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    def reports(self, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
        done = self.run("report", "--fleet", "--format", "json", *words)
        assert done.stdout, done.stderr
        return done.returncode, {each["host"]["id"]: each for each in json.loads(done.stdout)["reports"]}


@pytest.fixture(scope="module")
def fleet(hub: RunningHub, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(hub, tmp_path_factory.mktemp("operator"))


def verdicts(report: dict[str, Any], rules: Sequence[str] = ("FLEET-HOST-SILENT", "FLEET-CLOCK", "FLEET-QEMU-MIXED")) -> list[str]:
    told = {each["rule"]: each["verdict"] for each in report["findings"]}
    return [told[rule] for rule in rules]


def test_every_host_is_told_with_what_only_the_hub_knows(fleet: Fleet) -> None:
    code, told = fleet.reports()
    assert code == 2
    assert set(told) == {each.host_id for each in (fleet.plain, fleet.newer, fleet.skewed, fleet.unheard, fleet.gone)}
    assert verdicts(told[fleet.plain.host_id]) == ["pass", "pass", "fail"]
    assert verdicts(told[fleet.newer.host_id]) == ["pass", "pass", "fail"]
    assert verdicts(told[fleet.skewed.host_id]) == ["pass", "fail", "fail"]
    assert verdicts(told[fleet.gone.host_id])[0] == "not_applicable"
    assert verdicts(told[fleet.unheard.host_id]) == ["unknown", "not_applicable", "not_applicable"]
    plain = told[fleet.plain.host_id]
    assert plain["summary"]["by_verdict"]["fail"] == 2
    mixed = next(each for each in plain["findings"] if each["rule"] == "FLEET-QEMU-MIXED")
    assert "1 host clears enable_pmu" in mixed["reason"]
    assert any("compute-newer" in each["value"] for each in mixed["evidence"])
    unheard = told[fleet.unheard.host_id]
    assert (unheard["host"]["kernel"]["state"], unheard["domains"], unheard["summary"]["exit_code"]) == ("unknown", [], 3)


def test_the_past_is_told_as_it_was(fleet: Fleet) -> None:
    done = fleet.run("report", "--fleet", "--at", format_rfc3339(fleet.now - timedelta(hours=2)), "--format", "json")
    assert json.loads(done.stdout)["reports"] == [], "no host was let in by then"
    _, told = fleet.reports("--at", format_rfc3339(datetime.now(UTC)))
    assert verdicts(told[fleet.plain.host_id])[1] == "not_applicable"
    assert told[fleet.plain.host_id]["summary"]["by_verdict"]["fail"] == 2


@pytest.mark.parametrize("words", [(), ("--only", "fail"), ("--format", "html"), ("--format", "csv"), ("--format", "sarif")])
def test_every_form_tells_a_fleet(fleet: Fleet, words: tuple[str, ...]) -> None:
    done = fleet.run("report", "--fleet", *words)
    assert done.returncode == 2, done.stderr
    assert "compute-skewed" in done.stdout


def test_a_fleet_is_grouped_and_told_to_nagios(fleet: Fleet) -> None:
    assert "6.1.0-56-amd64" in fleet.run("report", "--fleet", "--group-by", "kernel").stdout
    told = fleet.run("report", "--fleet", "--format", "nagios")
    assert told.returncode == 3, "what is not known of the host that never reported outweighs failures of medium severity"
    assert "FLEET-QEMU-MIXED" in told.stdout


def test_changes_of_all_hosts_are_told(fleet: Fleet) -> None:
    done = fleet.run("report", "--fleet", "--since", format_rfc3339(fleet.now - timedelta(days=1)), "--format", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["transitions"]
    assert ("pass", "fail") in {(each["before"], each["now"]) for each in told if "on compute-plain" in each["subject"]["name"]}
    assert len(told) == 5


def test_what_a_fleet_saves_is_told_now_and_of_then(fleet: Fleet) -> None:
    key, now = fleet.hub.let_in(str(uuid4())), datetime.now(UTC)
    own = OwnUse(cpu_seconds=1.0, running_seconds=3600.0)
    saved = savings_now(now, Sums(now - timedelta(hours=1), now, (), 3600.0, own), seen("test", 2_000_000_000), now)
    batch = PushBatch(host_id=key.host_id, spool_epoch=EPOCH, sent_at=now, records=(record(1, SavingsText.of(saved), now),))
    assert fleet.hub.push(key, batch).status_code == 200
    done = fleet.run("savings", "--fleet", "--format", "json")
    assert done.returncode == 0, done.stderr
    told = FleetSavings.model_validate_json(done.stdout)
    assert (told.accounted, told.own_cycles_per_second) == (1, saved.now.own_cycles_per_second)
    assert told.hosts >= 6
    assert "1 of them told" in fleet.run("savings", "--fleet").stdout
    before = fleet.run("savings", "--fleet", "--at", format_rfc3339(now - timedelta(minutes=1)), "--format", "json")
    assert (before.returncode, json.loads(before.stdout)["accounted"]) == (3, 0)
    assert fleet.run("savings", "--at", format_rfc3339(now)).returncode == 64
    assert fleet.run("savings", "--fleet", "--since", format_rfc3339(now)).returncode == 64


@pytest.mark.parametrize("words", [("report", "--fleet"), ("savings", "--fleet")])
def test_what_is_missing_is_said(fleet: Fleet, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = fleet.run(*words, url="http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Expected the hub to answer there" in done.stderr
    config = tmp_path / "config.yaml"
    config.write_text("log_level: info\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EXITGUARD_")}
    command = [sys.executable, "-m", "exitguard", *words, "--config", str(config)]
    bare = subprocess.run(command, capture_output=True, text=True, env=clean, timeout=60, check=False)
    assert (bare.returncode, bare.stdout) == (1, "")
    assert "hub_url (or $EXITGUARD_HUB_URL) is not set" in bare.stderr
    assert fleet.run(*words, str(tmp_path)).returncode == 64
