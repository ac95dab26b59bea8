"""libvirt that does not answer: one domain, several, or the whole daemon; stopped, killed, and started again."""

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from audits import (
    CommandResult,
    audit_command,
    command_environment,
    domain_facts,
    domain_report,
    observe_uri,
    run_command,
)
from blocking_proxy import blocking_proxy
from domain_documents import guest_xml, uuid_of
from libvirt_lab import LibvirtLab
from recorded_hosts import on_debian_12

from exitguard.audit.judge import judge
from exitguard.model.documents import FactsDocument
from exitguard.model.finding import EXIT_UNKNOWN, Verdict
from exitguard.model.pmu import ChainState, PmuSetting
from exitguard.policy.schema import Rulebook

pytestmark = pytest.mark.integration

NAMES = tuple(f"guest-{number}" for number in range(8))
RUNNING = NAMES[:3]
#: Short, so that the tests are; the real default is five times as long.
CALL_TIMEOUT_SECONDS = 1.0
NO_ANSWER = "libvirt did not answer within 1 s"


@pytest.fixture(scope="module")
def guests(lab: LibvirtLab) -> LibvirtLab:
    """Eight guests, three of them running, all defined off."""
    lab.define(*(guest_xml(name, mode="maximum", pmu="off") for name in NAMES))
    lab.start(*RUNNING)
    return lab


@pytest.fixture
def healthy(guests: LibvirtLab) -> LibvirtLab:
    """The same with its daemon running, whatever the test before did to it."""
    guests.ensure_daemon()
    return guests


def reasons(facts: FactsDocument) -> dict[str, str]:
    """Why a domain's definition is unknown, by name, for those where it is."""
    return {
        domain.name: domain.definition.reason
        for domain in facts.domains
        if domain.definition is not None and domain.definition.reason is not None
    }


@pytest.mark.parametrize("name", [NAMES[0], NAMES[5]], ids=["running", "shut-off"])
def test_stuck_domain_is_the_only_unknown_one_and_is_asked_once(
    healthy: LibvirtLab, tmp_path: Path, tcg_rulebook: Rulebook, name: str
) -> None:
    with blocking_proxy(tmp_path, healthy.socket, stuck=frozenset({uuid_of(name)})) as proxy:
        facts = observe_uri(proxy.uri, call_timeout_seconds=CALL_TIMEOUT_SECONDS)
    assert sorted(domain.name for domain in facts.domains) == sorted(NAMES)
    assert reasons(facts) == {name: NO_ANSWER}
    assert proxy.asked.count(uuid_of(name)) == 1
    # Whoever is stuck on a connection is left behind with it; with nothing left to ask no other is opened.
    assert proxy.connections == (1 if proxy.asked[-1] == uuid_of(name) else 2)
    report = judge(on_debian_12(facts), tcg_rulebook)
    chains = {domain.name: domain.chain.state for domain in report.domains}
    assert chains.pop(name) is (ChainState.UNKNOWN if name in RUNNING else ChainState.NOT_RUNNING)
    assert ChainState.UNKNOWN not in chains.values()
    assert domain_report(report, name).pmu.persistent is PmuSetting.UNKNOWN
    unknown = [finding for finding in report.findings if finding.rule == "DOM-PMU-PERSISTENT" and finding.verdict is Verdict.UNKNOWN]
    assert [finding.subject.name for finding in unknown] == [name]
    assert NO_ANSWER in unknown[0].reason


def test_what_the_process_shows_of_a_stuck_domain_is_still_told(healthy: LibvirtLab, tmp_path: Path, tcg_rulebook: Rulebook) -> None:
    with blocking_proxy(tmp_path, healthy.socket, stuck=frozenset({uuid_of(NAMES[0])})) as proxy:
        facts = observe_uri(proxy.uri, call_timeout_seconds=CALL_TIMEOUT_SECONDS)
    domain = domain_report(judge(on_debian_12(facts), tcg_rulebook), NAMES[0])
    assert domain.active is True
    assert domain.pmu.live is PmuSetting.OFF


def test_no_domain_is_asked_about_twice_in_the_same_words(healthy: LibvirtLab, tmp_path: Path) -> None:
    with blocking_proxy(tmp_path, healthy.socket) as proxy:
        facts = observe_uri(proxy.uri)
    assert reasons(facts) == {}
    asked = Counter(proxy.asked)
    # The definition of each, and the run of those that run.
    assert asked == {uuid_of(name): 2 if name in RUNNING else 1 for name in NAMES}


def test_after_three_stuck_domains_nothing_more_is_asked(healthy: LibvirtLab, tmp_path: Path) -> None:
    with blocking_proxy(tmp_path, healthy.socket, stuck=frozenset(map(uuid_of, NAMES))) as proxy:
        facts = observe_uri(proxy.uri, call_timeout_seconds=CALL_TIMEOUT_SECONDS)
    found = Counter(reasons(facts).values())
    assert found == {NO_ANSWER: 3, "not asked: 3 domains before it blocked libvirt": len(NAMES) - 3}
    assert len(proxy.asked) == len(set(proxy.asked)) == 3
    assert proxy.connections == 3


def test_daemon_that_takes_connections_and_answers_nothing_is_a_partial_audit(healthy: LibvirtLab, tmp_path: Path) -> None:
    with blocking_proxy(tmp_path, healthy.socket, silent=True) as proxy:
        result = run_command(tmp_path / "home", "--connect", proxy.uri, "--format", "json", "--no-store", "--timeout", "0.5")
    assert proxy.connections == 1
    assert_blind(result, "no answer within 2 s: the daemon may hang")


def test_stopped_daemon_is_a_partial_audit(healthy: LibvirtLab, tmp_path: Path) -> None:
    with healthy.stopped_daemon():
        result = run_command(tmp_path / "home", "--connect", healthy.uri, "--format", "json", "--no-store", "--timeout", "0.5")
    assert_blind(result, "no answer within 2 s: the daemon may hang")


def assert_blind(result: CommandResult, reason: str) -> None:
    document = result.document
    assert document["host"]["libvirt"]["listing"]["reason"] == reason
    assert document["domains"] == []
    # Whatever this machine's kernel is, what could not be seen never passes.
    sources = [finding for finding in document["findings"] if finding["rule"] == "HOST-SOURCES"]
    assert [finding["verdict"] for finding in sources] == [Verdict.UNKNOWN]
    assert reason in sources[0]["reason"]
    expected = {"fail": 2, "unknown": EXIT_UNKNOWN}[next(word for word in ("fail", "unknown") if document["summary"]["by_verdict"][word])]
    assert result.exit_code == expected


def test_libvirtd_killed_in_the_middle_leaves_the_rest_unknown(healthy: LibvirtLab, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with blocking_proxy(tmp_path, healthy.socket, hold_at=5) as proxy:
        command = audit_command("--connect", proxy.uri, "--format", "json", "--no-store")
        with subprocess.Popen(
            command, env=command_environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        ) as audit:
            proxy.wait_until_held()
            healthy.kill_daemon()
            proxy.release()
            stdout, stderr = audit.communicate(timeout=120)
    assert "Traceback" not in stderr
    result = CommandResult(audit.returncode, stdout, stderr)
    assert sorted(domain["name"] for domain in result.document["domains"]) == sorted(NAMES)
    unknown = [domain for domain in result.domains.values() if domain["pmu"]["persistent"] == "unknown"]
    known = [domain for domain in result.domains.values() if domain["pmu"]["persistent"] == "off"]
    assert len(unknown) + len(known) == len(NAMES)
    assert known
    assert len(unknown) >= len(NAMES) - 4
    for domain in unknown:
        assert any("not seen: " in evidence["value"] for evidence in domain["evidence"])
        assert "connect" in str(domain["evidence"]).lower(), domain["evidence"]
    assert result.exit_code in (2, EXIT_UNKNOWN)


def test_libvirtd_that_comes_back_in_the_middle_is_asked_on(healthy: LibvirtLab, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with blocking_proxy(tmp_path, healthy.socket, hold_at=5) as proxy:
        command = audit_command("--connect", proxy.uri, "--format", "json", "--no-store", "--timeout", "60")
        with subprocess.Popen(
            command, env=command_environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        ) as audit:
            proxy.wait_until_held()
            healthy.kill_daemon()
            healthy.ensure_daemon()
            proxy.release()
            stdout, stderr = audit.communicate(timeout=120)
    assert "Traceback" not in stderr
    result = CommandResult(audit.returncode, stdout, stderr)
    unknown = {domain["name"]: domain["evidence"] for domain in result.domains.values() if domain["pmu"]["persistent"] == "unknown"}
    assert unknown == {}
    assert {domain["name"]: domain["pmu"]["persistent"] for domain in result.domains.values()} == dict.fromkeys(NAMES, "off")


def test_guests_run_on_without_their_daemon_and_are_found_again(healthy: LibvirtLab) -> None:
    before = {name: healthy.pid(uuid_of(name)) for name in RUNNING}
    healthy.kill_daemon()
    healthy.ensure_daemon()
    facts = observe_uri(healthy.uri)
    assert {name: healthy.pid(uuid_of(name)) for name in RUNNING} == before
    assert sorted(domain.name for domain in facts.domains if domain.active.value) == sorted(RUNNING)


def test_stopped_qemu_holds_nobody_up(healthy: LibvirtLab) -> None:
    pid = healthy.pid(uuid_of(RUNNING[0]))
    os.kill(pid, signal.SIGSTOP)
    try:
        facts = observe_uri(healthy.uri, call_timeout_seconds=2.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert sorted(domain.name for domain in facts.domains) == sorted(NAMES)
    stopped = domain_facts(facts, RUNNING[0])
    assert stopped.active.value is True
    assert stopped.run is not None
    assert stopped.run.known or stopped.run.reason
    assert {name: why for name, why in reasons(facts).items() if name != RUNNING[0]} == {}
    assert stopped.process is not None
    assert stopped.process.known


def test_stopped_qemu_whose_monitor_somebody_waits_for_holds_nobody_up(healthy: LibvirtLab) -> None:
    pid = healthy.pid(uuid_of(RUNNING[1]))
    os.kill(pid, signal.SIGSTOP)
    command = ["virsh", "-c", healthy.uri, "qemu-monitor-command", RUNNING[1], "--hmp", "info status"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as waiting:
        try:
            facts = observe_uri(healthy.uri, call_timeout_seconds=2.0)
            assert waiting.poll() is None, "nobody waited for the monitor"
        finally:
            os.kill(pid, signal.SIGCONT)
    assert sorted(domain.name for domain in facts.domains) == sorted(NAMES)
    assert {name: why for name, why in reasons(facts).items() if name != RUNNING[1]} == {}
