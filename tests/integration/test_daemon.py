"""The daemon with a real libvirtd: audits, events, reload, end; and what becomes of it when libvirtd, the store or the policy fails."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from domain_documents import guest_xml, uuid_of
from libvirt_lab import LibvirtLab
from running_daemon import LIMIT_SECONDS, RunningDaemon, running_daemon

from exitguard.model.pmu import PmuSetting
from exitguard.store.host import HostStore

pytestmark = pytest.mark.integration

#: Rare enough that in a test only the first audit is by the plan.
RARELY = {"audit_interval_seconds": 3600, "sample_interval_seconds": 3600}
#: Before anything that these tests do.
EVER = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def daemon(lab: LibvirtLab, tmp_path: Path) -> Iterator[RunningDaemon]:
    """A daemon that has made its first audit and hears libvirt's events; no guest is there."""
    lab.ensure_daemon()
    lab.clear()
    with running_daemon(tmp_path, {**RARELY, "connect": lab.uri}, watchdog_seconds=30) as running:
        settled(running)
        yield running


def settled(running: RunningDaemon) -> None:
    """The first audit is made, and events arrive."""
    running.wait_for_event("audit.finished", job="audit")
    running.wait_for_event("events.connected")


def report_of(running: RunningDaemon) -> dict[str, str]:
    """The chain state of every domain, by name, as `exitguard report` would tell it."""
    with HostStore.open(running.state_dir, now=datetime.now(UTC), read_only=True) as store:
        report = store.report()
    return {} if report is None else {domain.name: domain.chain.state for domain in report.domains}


def settings_of(running: RunningDaemon) -> dict[str, PmuSetting]:
    """What the next start of every domain has, by name."""
    with HostStore.open(running.state_dir, now=datetime.now(UTC), read_only=True) as store:
        report = store.report()
    return {} if report is None else {domain.name: domain.pmu.persistent for domain in report.domains}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT_SECONDS) as answer:
        return str(answer.read().decode())


def metric(port: int, name: str) -> float:
    return next(float(line.rpartition(" ")[2]) for line in scrape(port).splitlines() if line.startswith(f"{name} "))


def destroy(lab: LibvirtLab, name: str) -> None:
    with lab.connection() as connection:
        connection.lookupByName(name).destroy()


def undefine(lab: LibvirtLab, name: str) -> None:
    with lab.connection() as connection:
        connection.lookupByName(name).undefine()


def test_daemon_is_ready_audits_and_remembers(daemon: RunningDaemon) -> None:
    finished = daemon.wait_for_event("audit.finished", job="audit")
    assert finished["stored"] is True
    assert len(finished["run_id"]) == 12
    assert finished["host"] == socket.gethostname()
    assert any(message.startswith("READY=1\n") for message in daemon.notified)
    daemon.wait_for("a status", lambda: any("observed" in message for message in daemon.notified))
    assert report_of(daemon) == {}
    with HostStore.open(daemon.state_dir, now=datetime.now(UTC), read_only=True) as store:
        assert store.report() is not None


def test_each_lifecycle_event_judges_its_domain_anew(lab: LibvirtLab, daemon: RunningDaemon) -> None:
    uuid = uuid_of("event-1")
    lab.define(guest_xml("event-1", pmu="off"))
    daemon.wait_for_event("domain.judged", domain=uuid)
    assert set(report_of(daemon)) == {"event-1"}
    lab.start("event-1")
    daemon.wait_for("the start is judged", lambda: len(daemon.named("domain.judged", domain=uuid)) >= 2)
    destroy(lab, "event-1")
    daemon.wait_for("the stop is judged", lambda: len(daemon.named("domain.judged", domain=uuid)) >= 3)
    undefine(lab, "event-1")
    daemon.wait_for_event("domain.gone", domain=uuid)
    assert report_of(daemon) == {}
    # None of this took an audit of the whole host, but for one that follows a connection that came late.
    assert len(daemon.named("audit.finished")) <= 2
    with HostStore.open(daemon.state_dir, now=datetime.now(UTC), read_only=True) as store:
        changes = [change for change in store.transitions(datetime(2026, 1, 1, tzinfo=UTC)) if change.subject.id == uuid]
    assert {change.now for change in changes} >= {None}
    assert changes[0].before is None


def test_ten_thousand_events_are_a_few_audits_and_end_with_the_truth(lab: LibvirtLab, tmp_path: Path) -> None:
    names = [f"storm-{number}" for number in range(40)]
    port = free_port()
    with running_daemon(tmp_path, {**RARELY, "connect": lab.uri, "metrics_listen": f"127.0.0.1:{port}"}) as running:
        settled(running)
        with lab.connection() as connection:
            for turn in range(250):
                for name in names:
                    connection.defineXML(guest_xml(name, pmu="off" if turn % 2 else "on"))
        running.wait_for("all events", lambda: metric(port, "exitguard_lifecycle_events_total") >= 10_000)
        running.wait_for("the last state of every guest", lambda: settings_of(running) == dict.fromkeys(names, PmuSetting.OFF))
        # Far fewer than events: what it costs is bounded, whatever happens.
        assert len(running.named("audit.finished")) + len(running.named("domain.judged")) < 1000
        assert not running.named("job.failed")
        assert running.end() == 0


def test_reload_takes_up_a_new_policy_and_keeps_the_old_one_when_the_new_one_is_bad(
    lab: LibvirtLab, tmp_path: Path, tcg_policy: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_bytes(tcg_policy.read_bytes())
    settings = {**RARELY, "connect": lab.uri, "policy_files": [str(policy)]}
    with running_daemon(tmp_path / "run", settings) as running:
        settled(running)
        audits = len(running.named("audit.finished"))
        policy.write_text("garbage: [")
        running.reload()
        refused = running.wait_for_event("reload.refused")
        assert str(policy) in refused["problem"]
        running.wait_for("READY after the refusal", lambda: "RELOADING=1" in "".join(running.notified) and running.notified[-1] != "")
        running.reload()
        running.wait_for_event("reload.refused", count=2)
        assert len(running.named("condition.begun", condition="reload")) == 1  # said once
        assert len(running.named("audit.finished")) == audits

        policy.write_bytes(tcg_policy.read_bytes())
        running.reload()
        running.wait_for_event("reload.applied")
        running.wait_for_event("condition.over", condition="reload")
        running.wait_for("an audit by the new policy", lambda: len(running.named("audit.finished")) > audits)
        reloads = [message for message in running.notified if message.startswith("RELOADING=1\nMONOTONIC_USEC=")]
        assert len(reloads) == 3
        assert running.end() == 0


def test_bad_policy_at_the_start_names_its_fault_and_nothing_runs(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("garbage: [")
    with running_daemon(tmp_path / "run", {"policy_files": [str(policy)]}) as running:
        assert running.process.wait(LIMIT_SECONDS) == 1
        assert str(policy) in running.log.read_text()
        assert not any("READY" in message for message in running.notified)


def test_sigterm_ends_it_cleanly_between_audits(daemon: RunningDaemon) -> None:
    assert daemon.end() == 0
    assert daemon.events[-1]["event"] == "daemon.ended"
    assert "STOPPING=1" in "".join(daemon.notified)


def test_sigterm_ends_it_cleanly_in_the_middle_of_an_audit(lab: LibvirtLab, tmp_path: Path) -> None:
    with running_daemon(tmp_path, {**RARELY, "connect": lab.uri, "call_timeout_seconds": 60}) as running, lab.stopped_daemon():
        running.wait_for_event("daemon.started")
        time.sleep(1.0)  # the first audit waits for libvirt now
        assert not running.named("audit.finished")
        assert running.end() == 0
        assert running.events[-1]["event"] == "daemon.ended"
        assert not running.named("job.failed")


def test_second_daemon_on_one_state_directory_is_refused(daemon: RunningDaemon) -> None:
    command = [sys.executable, "-m", "exitguard", "--log-format", "json", "daemon", "--config", str(daemon.config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert result.returncode == 1
    assert "another exitguard daemon" in result.stderr
    assert daemon.process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could write into another user's directory")
def test_root_s_daemon_is_refused_in_the_state_directory_of_another_user(tmp_path: Path) -> None:
    state_dir = tmp_path / "run" / "state"
    state_dir.mkdir(parents=True)
    os.chown(state_dir, 65534, 65534)
    with running_daemon(tmp_path / "run", {"connect": "test:///default"}) as running:
        assert running.process.wait(LIMIT_SECONDS) == 1
        assert "belongs to user nobody, and root does not write there" in running.log.read_text()
    assert list(state_dir.iterdir()) == []


def test_libvirtd_that_is_killed_and_comes_back_is_said_once_and_caught_up_with(lab: LibvirtLab, daemon: RunningDaemon) -> None:
    lab.define(guest_xml("back-1", pmu="off"))
    daemon.wait_for_event("domain.judged", domain=uuid_of("back-1"))
    lab.kill_daemon()
    daemon.wait_for_event("condition.begun", condition="events")
    lab.ensure_daemon()
    lab.define(guest_xml("back-2", pmu="off"))  # while nobody listens, or just after
    daemon.wait_for_event("condition.over", condition="events")
    daemon.wait_for("both guests", lambda: set(report_of(daemon)) == {"back-1", "back-2"})
    lab.start("back-1")
    daemon.wait_for("its events arrive again", lambda: len(daemon.named("domain.judged", domain=uuid_of("back-1"))) >= 2)
    destroy(lab, "back-1")


def test_libvirtd_that_restarts_again_and_again_leaves_nothing_behind(lab: LibvirtLab, daemon: RunningDaemon) -> None:
    def restart(times: int) -> None:
        for _ in range(times):
            ends = len(daemon.named("condition.over", condition="events"))
            lab.kill_daemon()
            lab.ensure_daemon()
            daemon.wait_for("events again", lambda ends=ends: len(daemon.named("condition.over", condition="events")) > ends)

    restart(2)
    threads, descriptors = daemon.threads(), daemon.descriptors()
    restart(4)
    daemon.wait_for("no more threads than before", lambda: daemon.threads() <= threads)
    daemon.wait_for("no more open files than before", lambda: daemon.descriptors() <= descriptors)


def test_libvirtd_that_hangs_is_noticed_and_caught_up_with(lab: LibvirtLab, daemon: RunningDaemon) -> None:
    with lab.stopped_daemon():
        lost = daemon.wait_for_event("condition.begun", condition="events")
        assert "probe" in lost["reason"]
        assert daemon.process.poll() is None
    daemon.wait_for_event("condition.over", condition="events")
    daemon.wait_for("an audit after it", lambda: daemon.named("audit.finished")[-1]["timestamp"] > lost["timestamp"])


def test_store_that_is_replaced_under_the_daemon_is_noticed(lab: LibvirtLab, daemon: RunningDaemon) -> None:
    for path in daemon.state_dir.glob("host.sqlite*"):
        path.unlink()
    lab.define(guest_xml("replaced", pmu="off"))
    daemon.wait_for_event("store.replaced")
    daemon.reload()  # an audit of everything
    daemon.wait_for_event("audit.finished", stored=True, count=2)
    daemon.wait_for("the guest in the new store", lambda: "replaced" in report_of(daemon))


def test_metrics_are_served_on_loopback_and_follow_a_reload(lab: LibvirtLab, tmp_path: Path) -> None:
    port = free_port()
    settings = {**RARELY, "connect": lab.uri, "metrics_listen": f"127.0.0.1:{port}"}
    with running_daemon(tmp_path, settings) as running:
        settled(running)
        text = scrape(port)
        assert 'exitguard_job_runs_total{job="audit",outcome="finished"} 1.0' in text
        assert "exitguard_libvirt_connected 1.0" in text
        assert "exitguard_process_resident_memory_bytes" in text
        textfile = tmp_path / "exitguard.prom"
        running.configure({**RARELY, "connect": lab.uri, "metrics_textfile": str(textfile)})
        running.reload()
        running.wait_for("the file", textfile.exists)
        running.wait_for("its content", lambda: "exitguard_last_reload_successful 1.0" in textfile.read_text())
        with pytest.raises(OSError, match="refused"):
            scrape(port)
        assert running.end() == 0


def test_watchdog_is_fed_while_idle_and_not_while_stopped(daemon: RunningDaemon) -> None:
    def signs() -> int:
        return sum("WATCHDOG=1" in message for message in daemon.notified)

    daemon.wait_for("a sign of life while nothing happens", lambda: signs() >= 2)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        before = signs()
        time.sleep(9)  # more than a quarter of the watchdog's time
        assert signs() == before
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    daemon.wait_for("signs of life again", lambda: signs() > before)


@pytest.mark.usefixtures("kvm")
def test_exits_of_a_kvm_guest_are_in_samples_and_ledger_and_told(lab: LibvirtLab, tmp_path: Path) -> None:
    lab.define(guest_xml("counted", kind="kvm", mode="custom"))
    lab.start("counted")
    settings = {"audit_interval_seconds": 3600, "sample_interval_seconds": 10, "connect": lab.uri}
    with running_daemon(tmp_path, settings) as running:
        settled(running)

        def booked() -> bool:
            with HostStore.open(running.state_dir, now=datetime.now(UTC), read_only=True) as store:
                asked = store.ledger.read(EVER, datetime.now(UTC), beside=timedelta()).asked
            return bool(asked.by_run) and asked.own_running_seconds > 0

        running.wait_for("rows in the ledger", booked)
        assert running.end() == 0
    with HostStore.open(running.state_dir, now=datetime.now(UTC), read_only=True) as store:
        first, *_, last = [each for each in store.samples(EVER) if any(domain.counters for domain in each.domains)]
        rows = store.ledger.read(EVER, datetime.now(UTC), beside=timedelta()).asked.by_run
        ends = [next(domain.counters["exits"] for domain in each.domains if domain.counters) for each in (first, last)]
    assert 0 <= sum(row.exits for row in rows) <= ends[1] - ends[0]
    assert {row.domain_name for row in rows} == {"counted"}
    destroy(lab, "counted")
    command = [sys.executable, "-m", "exitguard", "savings", "--format", "json", "--config", str(running.config)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert told.returncode == 0, told.stderr
    document = json.loads(told.stdout)
    assert [domain["name"] for domain in document["domains"]] == ["counted"]
    assert document["domains"][0]["accounted_seconds"] > 0
    assert document["asked"]["own"]["cpu_seconds"] > 0


def test_nothing_of_the_current_directory_is_run(lab: LibvirtLab, tmp_path: Path) -> None:
    for name in ("apscheduler", "structlog", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')")
    with running_daemon(tmp_path / "run", {**RARELY, "connect": lab.uri}, folder=tmp_path) as running:
        running.wait_for_event("audit.finished")
        assert running.end() == 0


def _ignores_sighup(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored.split()[1], 16) & 1 << (signal.SIGHUP - 1))


@pytest.mark.parametrize("after_seconds", [0.0, 0.3, 0.6, 0.9])
def test_reload_that_is_asked_for_too_early_ends_nothing(lab: LibvirtLab, tmp_path: Path, after_seconds: float) -> None:
    """Too early is while everything is still imported; the interpreter itself takes what it takes on a busy machine."""
    with running_daemon(tmp_path, {**RARELY, "connect": lab.uri}) as running:
        running.wait_for("its first statement", lambda: _ignores_sighup(running.process.pid))
        time.sleep(after_seconds)
        running.reload()
        running.wait_for_event("audit.finished")
        assert running.end() == 0


def test_libvirtd_that_hung_for_a_moment_is_looked_at_again_without_an_event(lab: LibvirtLab, tmp_path: Path) -> None:
    """Shorter than it takes for the connection for events to count as lost."""
    lab.clear()
    lab.define(guest_xml("hung-1", pmu="off"))
    with running_daemon(tmp_path, {**RARELY, "connect": lab.uri, "call_timeout_seconds": 0.5}) as running:
        settled(running)
        with lab.stopped_daemon():
            running.reload()
            running.wait_for_event("condition.begun", condition="libvirt")
        running.wait_for_event("condition.over", condition="libvirt")
        running.wait_for("the guest again", lambda: set(report_of(running)) == {"hung-1"})
        assert running.end() == 0
