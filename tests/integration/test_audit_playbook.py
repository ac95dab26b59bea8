"""playbooks/audit.yml, played by the real ansible-playbook over a local connection."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

PLAYBOOK = Path(__file__).resolve().parents[2] / "playbooks" / "audit.yml"
PROGRAMS = Path(sys.executable).parent

RESULT = {"summary": {"by_verdict": {"pass": 3, "fail": 1}}, "findings": [{"rule": "DOM-PMU-LIVE", "verdict": "fail"}]}


def play(folder: Path, *options: str, connect: str | None = None, **variables: object) -> subprocess.CompletedProcess[str]:
    """One play over the host `hv1`, which is this machine, started in `folder`; `connect` is the libvirt of its settings."""
    settings = {"ansible_python_interpreter": sys.executable, **variables}
    command = [str(PROGRAMS / "ansible-playbook"), "-i", "hv1,", "-c", "local", "-e", json.dumps(settings), *options, str(PLAYBOOK)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "COV"))}
    environment |= {
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        "EXITGUARD_STATE_DIR": str(folder / "state"),
        "LC_ALL": "C.UTF-8",
        "PWD": str(folder),
        **({"EXITGUARD_CONNECT": connect} if connect else {}),
    }
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False
    )


def stand_in(folder: Path, body: str) -> str:
    """A program in exitguard's place, for the answers that a sound host does not give."""
    program = folder / "exitguard-stand-in"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo exitguard 9\n{body}\n')
    program.chmod(0o755)
    return str(program)


def answering(folder: Path, exit_code: int) -> str:
    return stand_in(folder, f"cat <<'END'\n{json.dumps(RESULT)}\nEND\nexit {exit_code}")


def recap(output: str) -> dict[str, int]:
    line = output.rpartition("PLAY RECAP")[2].partition("hv1")[2].partition(":")[2].splitlines()[0]
    return {name: int(count) for name, _, count in (word.partition("=") for word in line.split())}


def test_real_audit_is_brought_home_and_judged_by_its_exit_code(tmp_path: Path) -> None:
    result = play(tmp_path, audit_command=str(PROGRAMS / "exitguard"), audit_arguments=["--connect", "test:///default"])
    brought_home = tmp_path / "audit-results" / "hv1.json"
    assert brought_home.exists(), result.stdout
    document = json.loads(brought_home.read_text())
    meaning = {0: "compliant", 2: "not compliant", 3: "unknown"}[document["summary"]["exit_code"]]
    assert document["tool"]["name"] == "exitguard"
    assert f"hv1: {meaning} (" in result.stdout
    assert (result.returncode == 0) == (document["summary"]["exit_code"] == 0), result.stdout


def test_audit_leaves_the_memory_of_the_host_alone_unless_told_to_remember(tmp_path: Path) -> None:
    command = str(PROGRAMS / "exitguard")
    audited = play(tmp_path, connect="test:///default", audit_command=command)
    assert (tmp_path / "audit-results" / "hv1.json").exists(), audited.stdout
    play(tmp_path, "--check", connect="test:///default", audit_command=command, audit_remember=True)
    assert not (tmp_path / "state").exists()

    remembered = play(tmp_path, connect="test:///default", audit_command=command, audit_remember=True)
    assert (tmp_path / "state" / "host.sqlite").exists(), remembered.stdout


def test_stored_audit_is_brought_home_without_looking_at_the_host_again(tmp_path: Path) -> None:
    command = str(PROGRAMS / "exitguard")
    play(tmp_path, connect="test:///default", audit_command=command, audit_remember=True)
    brought_home = tmp_path / "audit-results" / "hv1.json"
    remembered = json.loads(brought_home.read_text())
    brought_home.unlink()
    result = play(tmp_path, audit_command=command, audit_stored=True)
    stored = json.loads(brought_home.read_text())
    assert stored["observed_at"] == remembered["observed_at"], result.stdout
    assert stored["host"]["id"] == remembered["host"]["id"]


def test_host_without_a_stored_audit_is_told_apart_from_a_verdict(tmp_path: Path) -> None:
    result = play(tmp_path, audit_command=str(PROGRAMS / "exitguard"), audit_stored=True)
    assert result.returncode == 2, result.stdout
    assert "hv1: not audited." in result.stdout
    assert "report ended with exit code" in result.stdout
    assert not (tmp_path / "audit-results" / "hv1.json").exists()


def test_compliant_host_passes(tmp_path: Path) -> None:
    result = play(tmp_path, audit_command=answering(tmp_path, 0))
    assert result.returncode == 0, result.stdout
    assert json.loads((tmp_path / "audit-results" / "hv1.json").read_text()) == RESULT


@pytest.mark.parametrize(("exit_code", "meaning"), [(2, "not compliant"), (3, "unknown")])
def test_host_fails_by_the_exit_code_and_says_which_rules_are_open(tmp_path: Path, exit_code: int, meaning: str) -> None:
    result = play(tmp_path, audit_command=answering(tmp_path, exit_code))
    assert result.returncode == 2, result.stdout
    assert f"hv1: {meaning} (1 fail, 3 pass); open: DOM-PMU-LIVE." in result.stdout
    assert (tmp_path / "audit-results" / "hv1.json").exists()


def test_exit_code_that_the_operator_accepts_does_not_fail_the_host(tmp_path: Path) -> None:
    result = play(tmp_path, audit_command=answering(tmp_path, 3), audit_accepted_exit_codes=[0, 3])
    assert result.returncode == 0, result.stdout
    assert "hv1: unknown (" in result.stdout


def test_host_without_exitguard_is_reported_as_not_audited_and_keeps_no_old_result(tmp_path: Path) -> None:
    old = tmp_path / "audit-results" / "hv1.json"
    old.parent.mkdir()
    old.write_text("{}")
    result = play(tmp_path, audit_command="/nowhere/exitguard")
    assert result.returncode == 2, result.stdout
    assert "hv1: not audited. /nowhere/exitguard --version gave exit code 127 there" in result.stdout
    assert "No such file or directory" in result.stdout
    assert not old.exists()


def test_broken_audit_is_no_verdict(tmp_path: Path) -> None:
    result = play(tmp_path, audit_command=stand_in(tmp_path, "echo 'policy.yaml:3: no such check' >&2; exit 1"))
    assert result.returncode == 2, result.stdout
    assert "ended with exit code 1: policy.yaml:3: no such check" in result.stdout
    assert not (tmp_path / "audit-results" / "hv1.json").exists()


def test_hanging_audit_is_stopped(tmp_path: Path) -> None:
    result = play(tmp_path, audit_command=stand_in(tmp_path, "exec sleep 120"), audit_time_limit_seconds=1)
    assert result.returncode == 2, result.stdout
    assert "was stopped after 1 seconds" in result.stdout


def test_check_mode_tells_the_verdict_and_writes_nothing(tmp_path: Path) -> None:
    answer = f"echo '{json.dumps(RESULT)}'"
    result = play(tmp_path, "--check", audit_command=stand_in(tmp_path, f'[ "$*" = "audit --format json --no-store" ] && {answer}'))
    assert result.returncode == 0, result.stdout
    assert "hv1: compliant (" in result.stdout
    assert not (tmp_path / "audit-results").exists()


def test_second_run_changes_only_the_result_file(tmp_path: Path) -> None:
    command = answering(tmp_path, 0)
    play(tmp_path, audit_command=command)
    second = play(tmp_path, audit_command=command)
    assert recap(second.stdout)["changed"] == 2, second.stdout  # the old result went, the new one came


def test_text_of_a_guest_is_never_evaluated(tmp_path: Path) -> None:
    hostile = {**RESULT, "domains": [{"name": "{{ lookup('pipe', 'touch owned') }}"}]}
    command = stand_in(tmp_path, f"cat <<'END'\n{json.dumps(hostile)}\nEND")
    result = play(tmp_path, audit_command=command)
    assert result.returncode == 0, result.stdout
    assert json.loads((tmp_path / "audit-results" / "hv1.json").read_text()) == hostile
    assert not list(tmp_path.rglob("owned"))
