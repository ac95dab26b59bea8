"""The outer edge: exit codes, and one sentence instead of a traceback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exitguard import cycle
from exitguard.cli.edge import run

Run = Callable[..., subprocess.CompletedProcess[str]]

MODULE = [sys.executable, "-m", "exitguard"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Usage: exitguard"),
        (("policy",), "Usage: exitguard policy"),
        (("adit",), "No such command 'adit'"),
        (("audit", "--frobnicate"), "No such option: --frobnicate"),
        (("audit", "--format", "xml"), "Invalid value for '--format' / '-f': 'xml' is not one of"),
        (("--log-format", "xml", "audit"), "Invalid value for '--log-format': 'xml' is not one of"),
        (("audit", "--timeout", "0"), "--timeout"),
        (("audit", "--timeout", "soon"), "--timeout"),
        (("audit", "--sysroot", "/", "--connect", "test:///default"), "give either --sysroot or --connect"),
        (("audit", "--sysroot", "/nonexistent"), "'--sysroot': directory '/nonexistent' does not exist"),
        (("audit", "--sysroot", "/dev/null"), "'/dev/null' is not a directory"),
        (("audit", "--no-store", "--state-dir", "/tmp"), "give either --no-store or --state-dir"),  # noqa: S108 - refused, not used
        (("audit", "surplus"), "surplus"),
        (("schema", "nope"), "expected one of audit, changes"),
        (("report", "--at", "2026-01-31"), "not an RFC 3339 time with an offset"),
        (("report", "--since", "yesterday"), "not an RFC 3339 time with an offset"),
        (("report", "--at", "2026-01-31T00:00:00Z", "--since", "2026-01-31T00:00:00Z"), "give either --at or --since"),
        (("waiver", "check"), "FILE"),
        (("explain",), "RULE|STATE|DOMAIN"),
    ],
)
def test_usage_errors_are_64_and_leave_standard_output_alone(exitguard: Run, arguments: tuple[str, ...], complaint: str) -> None:
    result = exitguard(*arguments)
    assert result.returncode == 64
    assert result.stdout == ""
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("option", ["--connect", "--sysroot", "--state-dir", "--output", "--policy", "--waivers", "--config"])
@pytest.mark.parametrize("value", ["", " "])
def test_empty_value_is_refused_and_never_means_the_default_or_the_current_directory(
    exitguard: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    result = exitguard("audit", option, value)
    assert (result.returncode, result.stdout) == (64, "")
    assert result.stderr.startswith(f"exitguard audit: Invalid value for '{option}'")
    assert "expected a value, found an empty one" in result.stderr
    assert not list(here.iterdir())
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("verb", [("policy", "check"), ("policy", "show"), ("waiver", "check"), ("config", "check")])
def test_empty_file_name_is_refused(exitguard: Run, verb: tuple[str, str]) -> None:
    result = exitguard(*verb, "")
    assert (result.returncode, result.stdout) == (64, "")
    assert "expected a value, found an empty one" in result.stderr


@pytest.mark.parametrize("option", ["-v", "--debug", "--log-format"])
def test_an_option_that_stands_before_the_verb_is_said_to(exitguard: Run, option: str) -> None:
    result = exitguard("doctor", option)
    assert result.returncode == 64
    assert f"{option} stands before the verb" in result.stderr


def test_hostile_argument_is_told_harmlessly(exitguard: Run) -> None:
    result = exitguard("audit", "--\x1b[31m\u202e")
    assert result.returncode == 64
    assert "\x1b" not in result.stderr
    assert r"\x1b[31m\u202e" in result.stderr


def test_unexpected_error_is_one_sentence_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def break_down(request: cycle.AuditRequest) -> cycle.AuditOutcome:
        raise RuntimeError(f"the flux\x1b[31m capacitor of {request.sysroot}")

    monkeypatch.setattr(cycle, "run_audit", break_down)
    monkeypatch.setenv("EXITGUARD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("EXITGUARD_DEBUG", raising=False)
    assert run(["audit", "--sysroot", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert r"exitguard: unexpected RuntimeError: the flux\x1b[31m capacitor" in told.err
    assert "EXITGUARD_DEBUG=1" in told.err

    assert run(["--debug", "audit", "--sysroot", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("EXITGUARD_DEBUG", "1")
    assert run(["audit", "--sysroot", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_check_that_broke_makes_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    real = cycle.run_audit(cycle.AuditRequest(sysroot=tmp_path))
    summary = real.report.summary.model_copy(update={"exit_code": 1})
    broken = cycle.AuditOutcome(real.observation, real.report.model_copy(update={"summary": summary}), ("a notice\nin two lines",))
    monkeypatch.setattr(cycle, "run_audit", lambda _: broken)
    assert run(["audit", "--no-store", "--sysroot", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("ERROR")
    assert told.err == "a notice\nin two lines\n"


def wait_until_asleep(pid: int) -> None:
    """Until every thread sleeps, and keeps sleeping: a signal between the last look for one and the sleep would come too early."""
    asleep = 0
    while asleep < 5:
        states = {stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")}
        asleep = asleep + 1 if states == {"S"} else 0
        time.sleep(0.02)


def test_ctrl_c_ends_quietly_with_130(environment: dict[str, str], tmp_path: Path) -> None:
    # A libvirt that accepts and never answers: the command waits, and is interrupted while it does.
    path = tmp_path / "libvirt.sock"
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()
        daemon.settimeout(60)
        uri = f"qemu+unix:///system?socket={path}"
        command = [*MODULE, "audit", "--connect", uri, "--timeout", "60"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = daemon.accept()
            with connection:
                connection.recv(1)
                wait_until_asleep(process.pid)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "")


@pytest.mark.parametrize("arguments", [["audit", "--no-store"], ["facts"], ["doctor"], ["audit", "--no-store", "--format", "json"]])
def test_reader_that_went_away_is_no_error_and_the_verdict_stays(
    environment: dict[str, str], empty_host: Path, arguments: list[str]
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [*MODULE, *arguments, "--sysroot", str(empty_host)]
    result = subprocess.run(command, env=environment, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert result.stderr == ""
    assert result.returncode == (0 if arguments == ["facts"] else 3)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["schema"], ["schema", "audit"], ["policy", "show"]])
def test_reader_that_went_away_hears_nothing_more(environment: dict[str, str], arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run([*MODULE, *arguments], env=environment, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert result.stderr == ""
    assert result.returncode in {0, 1}


def test_full_disk_behind_standard_output_is_an_error(environment: dict[str, str], empty_host: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*MODULE, "audit", "--no-store", "--sysroot", str(empty_host)]
        result = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "exitguard: standard output could not be written: no space left on device\n"


@pytest.mark.parametrize("arguments", [["--help"], ["audit", "--help"], ["waiver", "-h"]])
def test_full_disk_behind_the_help_is_told_as_behind_any_verb(environment: dict[str, str], arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([*MODULE, *arguments], env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "exitguard: standard output could not be written: no space left on device\n"


def test_full_disk_elsewhere_is_not_blamed_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def break_down(_: cycle.AuditRequest) -> cycle.AuditOutcome:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cycle, "run_audit", break_down)
    assert run(["audit", "--sysroot", str(tmp_path)]) == 1
    assert "exitguard: unexpected OSError" in capsys.readouterr().err


def test_closed_standard_output_is_an_error(environment: dict[str, str], empty_host: Path) -> None:
    command = f'exec "$0" -m exitguard audit --sysroot {empty_host} >&-'
    result = subprocess.run(["/bin/sh", "-c", command, sys.executable], env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert "standard output is closed" in result.stderr


def test_installed_script_is_the_same_command(environment: dict[str, str]) -> None:
    script = Path(sys.executable).with_name("exitguard")
    result = subprocess.run([script, "adit"], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 64
    assert result.stderr.startswith("exitguard: No such command 'adit'")


def test_completion_for_shells_ships(exitguard: Run) -> None:
    result = exitguard("--show-completion", "bash", env={"SHELL": "/bin/bash", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert result.returncode == 0
    assert "_EXITGUARD_COMPLETE" in result.stdout
