"""`exitguard explain`: rules, words and domains, and a hand for who mistypes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_rule_in_any_case(exitguard: Run) -> None:
    result = exitguard("explain", "dom-pmu-live")
    assert result.returncode == 0
    assert result.stdout.startswith("DOM-PMU-LIVE  ")


@pytest.mark.parametrize("topic", ["pending_restart", "pending-restart", "Pending Restart"])
def test_state_as_json_or_as_tables_write_it(exitguard: Run, topic: str) -> None:
    result = exitguard("explain", topic)
    assert result.returncode == 0
    assert "cold start" in result.stdout


@pytest.mark.parametrize("topic", ["web-1", "6695eb01-f6a4-8304-79aa-97f2502e193f", "6695EB01-F6A4-8304-79AA-97F2502E193F"])
def test_domain_by_name_or_uuid_with_links_and_evidence(exitguard: Run, failing_host: Path, topic: str, tmp_path: Path) -> None:
    result = exitguard("explain", topic, "--sysroot", failing_host)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("web-1  ")
    assert "Links of the chain" in result.stdout
    assert "/etc/libvirt/qemu/web-1.xml" in result.stdout
    assert not (tmp_path / "state").exists()


def test_explaining_begins_no_store(exitguard: Run, tmp_path: Path) -> None:
    result = exitguard("explain", "6695eb01-f6a4-8304-79aa-97f2502e193f", env={"EXITGUARD_CONNECT": "test:///default"})
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "state").exists()


def test_domain_as_the_last_audit_saw_it(exitguard: Run, failing_host: Path, tmp_path: Path) -> None:
    directory = tmp_path / "its-own"
    exitguard("audit", "--sysroot", failing_host, "--state-dir", directory)
    (failing_host / "etc/libvirt/qemu/web-1.xml").unlink()
    result = exitguard("explain", "web-1", "--stored", "--state-dir", directory)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("web-1  ")


def test_unknown_topic_is_a_usage_error_with_what_is_near(exitguard: Run, failing_host: Path) -> None:
    result = exitguard("explain", "DOM-PMU-LIFE", "--sysroot", failing_host)
    assert (result.returncode, result.stdout) == (64, "")
    assert "DOM-PMU-LIVE" in result.stderr
    near_domain = exitguard("explain", "web-2", "--sysroot", failing_host)
    assert near_domain.returncode == 64
    assert "web-1" in near_domain.stderr


def test_unknown_topic_where_no_domain_could_be_seen_says_so(exitguard: Run, empty_host: Path) -> None:
    result = exitguard("explain", "zzzzzzzz", "--sysroot", empty_host)
    assert result.returncode == 64
    assert "no domain was seen" in result.stderr
    assert "expected a rule such as" in result.stderr


def test_hostile_topic_is_told_harmlessly(exitguard: Run, empty_host: Path) -> None:
    result = exitguard("explain", "\x1b[31m\u202e" + "x" * 20_000, "--sysroot", empty_host)
    assert result.returncode == 64
    assert "\x1b" not in result.stderr
    assert len(result.stderr) < 5000


@pytest.mark.parametrize(
    "topic",
    [
        "set",
        "live",
        "next",
        "state",
        "owner",
        "enable_pmu",
        "Compliant",
        "not compliant",
        "provisional",
        "stale",
        "severity",
        "TCG",
        "remedy",
    ],
)
def test_words_that_reports_print_are_explained(exitguard: Run, topic: str) -> None:
    result = exitguard("explain", topic)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{topic.lower()}  ")


def test_locked_tells_the_command_that_sets_the_mark(exitguard: Run) -> None:
    told = " ".join(exitguard("explain", "locked").stdout.split())
    assert "`virsh metadata DOMAIN urn:exitguard:domain:1 --key exitguard --set '<locked/>' --config`" in told


def test_a_word_that_is_like_none_gets_no_far_fetched_hint(exitguard: Run, failing_host: Path) -> None:
    near = exitguard("explain", "complient", "--sysroot", failing_host)
    assert "near it are: compliant\n" in near.stderr
    far = exitguard("explain", "rarity", "--sysroot", failing_host)
    assert far.returncode == 64
    assert "near it" not in far.stderr
    assert "not the one domain that was seen; expected a rule such as" in far.stderr


def test_rule_about_the_host_is_told_with_what_this_host_shows(exitguard: Run, failing_host: Path, tmp_path: Path) -> None:
    result = exitguard("explain", "host-kernel-guard", "--sysroot", failing_host)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("HOST-KERNEL-GUARD  ")
    assert "This host  compute-17  observed " in result.stdout
    told = " ".join(result.stdout.split())
    assert "Evidence strongest first - symbols /proc/kallsyms: kvm_pmu_trigger_event is there" in told
    assert "The instructions that decide not read" in told
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert not (tmp_path / "state").exists()


def test_rule_about_the_host_as_the_last_audit_saw_it(exitguard: Run, failing_host: Path, tmp_path: Path) -> None:
    directory = tmp_path / "its-own"
    exitguard("audit", "--sysroot", failing_host, "--state-dir", directory)
    (failing_host / "proc/kallsyms").unlink()
    result = exitguard("explain", "HOST-KERNEL-GUARD", "--stored", "--state-dir", directory)
    assert result.returncode == 0, result.stderr
    assert "kvm_pmu_trigger_event is there" in " ".join(result.stdout.split())


def test_rule_about_the_host_without_a_stored_audit_says_what_to_do(exitguard: Run, tmp_path: Path) -> None:
    result = exitguard("explain", "HOST-KERNEL-GUARD", "--stored", "--state-dir", tmp_path / "none")
    assert (result.returncode, result.stdout) == (1, "")
    assert "run `exitguard audit" in result.stderr


@pytest.mark.parametrize("rule", ["HOST-KERNEL-REBOOT", "HOST-SOURCES", "HOST-QEMU-PMU-CAP", "HOST-IDENTITY", "NOVA-DEFAULT-OFF"])
def test_other_rules_about_the_host_have_this_hosts_verdict(exitguard: Run, failing_host: Path, rule: str) -> None:
    result = exitguard("explain", rule, "--sysroot", failing_host)
    assert (result.returncode, result.stderr) == (0, "")
    assert "This host  compute-17" in result.stdout
    assert "\nEvidence\n" in result.stdout
