"""`exitguard audit` on real file trees and on libvirt's test driver."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from exitguard.model.documents import AuditReport
from exitguard.schemas import schema

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=["table", "json"])
def output_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_compliant_host_is_0(exitguard: Run, compliant_host: Path, output_format: str) -> None:
    result = exitguard("audit", "--sysroot", compliant_host, "--format", output_format)
    assert result.returncode == 0, result.stdout + result.stderr


def test_failing_host_is_2(exitguard: Run, failing_host: Path, output_format: str) -> None:
    result = exitguard("audit", "--sysroot", failing_host, "--format", output_format)
    assert result.returncode == 2, result.stdout + result.stderr


def test_host_of_which_nothing_can_be_seen_is_3(exitguard: Run, empty_host: Path, output_format: str) -> None:
    result = exitguard("audit", "--sysroot", empty_host, "--format", output_format)
    assert result.returncode == 3, result.stdout + result.stderr


def test_json_is_a_report_that_fits_its_schema_and_agrees_with_the_exit_code(exitguard: Run, failing_host: Path) -> None:
    result = exitguard("audit", "--sysroot", failing_host, "--no-store", "--format", "json")
    document = json.loads(result.stdout)
    Draft202012Validator(schema("audit"), format_checker=Draft202012Validator.FORMAT_CHECKER).validate(document)
    assert document["summary"]["exit_code"] == result.returncode == 2
    assert AuditReport.model_validate_json(result.stdout).domains[0].name == "web-1"
    assert result.stderr == ""


def test_table_names_the_host_the_domain_and_the_failing_rule(exitguard: Run, failing_host: Path) -> None:
    result = exitguard("audit", "--sysroot", failing_host)
    assert result.stdout.startswith("NOT COMPLIANT  compute-17")
    assert "web-1" in result.stdout
    assert "FAIL DOM-PMU-PERSISTENT" in result.stdout
    assert "\x1b" not in result.stdout
    assert max(len(line) for line in result.stdout.split("\n")) <= 80


def test_embedded_test_driver_needs_no_daemon(exitguard: Run) -> None:
    result = exitguard("audit", "--connect", "test:///default", "--format", "json")
    assert result.returncode in {0, 2, 3}
    assert [domain["name"] for domain in json.loads(result.stdout)["domains"]] == ["test"]


def test_output_file_holds_the_same_and_standard_output_nothing(
    exitguard: Run, failing_host: Path, tmp_path: Path, output_format: str
) -> None:
    target = tmp_path / "report"
    result = exitguard("audit", "--sysroot", failing_host, "--format", output_format, "--output", target)
    assert (result.returncode, result.stdout) == (2, "")
    text = target.read_text()
    assert text.startswith("{" if output_format == "json" else "NOT COMPLIANT")
    assert text.endswith("\n")
    assert not list(tmp_path.glob(".report*"))


def test_full_disk_leaves_the_old_file_whole(environment: dict[str, str], compliant_host: Path, tmp_path: Path) -> None:
    target = tmp_path / "report"
    target.write_text("old")
    command = f'ulimit -f 1; exec "$0" -B -m exitguard audit --no-store --sysroot {compliant_host} --format json --output {target}'
    result = subprocess.run(["/bin/bash", "-c", command, sys.executable], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"exitguard: {target}: could not be written: file too large")
    assert target.read_text() == "old"
    assert not list(tmp_path.glob(".report*"))


def test_output_that_cannot_be_written_is_an_error_whatever_the_verdict(exitguard: Run, compliant_host: Path, tmp_path: Path) -> None:
    result = exitguard("audit", "--sysroot", compliant_host, "--output", tmp_path / "missing" / "report")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tmp_path}/missing/report: could not be written: no such file or directory" in result.stderr


def test_bad_policy_is_told_with_file_and_line_and_nothing_is_judged(exitguard: Run, compliant_host: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("kind: policy\nschema_version: 1\nid: mine\nversion: '1'\ntitle: t\nrules: []\n")
    result = exitguard("audit", "--sysroot", compliant_host, "--policy", policy)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{policy}:6: rules: " in result.stderr
    assert "nothing was done" in result.stderr


def test_bad_settings_are_told_with_file_and_line(exitguard: Run, compliant_host: Path, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("state_dir: relative\ntypo: 1\n")
    result = exitguard("audit", "--sysroot", compliant_host, "--config", config)
    assert result.returncode == 1
    assert f"{config}:1: state_dir: " in result.stderr
    assert f"{config}:2: typo: " in result.stderr


def test_c_locale_gets_ascii(exitguard: Run, failing_host: Path) -> None:
    hostile = failing_host / "etc/libvirt/qemu" / "größe\u202e.xml"
    hostile.write_text((failing_host / "etc/libvirt/qemu/web-1.xml").read_text().replace("9193f", "91940"))
    for env in ({"LANG": "C", "LC_ALL": "C"}, {"LANG": "C"}):
        result = exitguard("audit", "--sysroot", failing_host, env=env)
        assert result.returncode == 2, result.stderr
        assert result.stdout.isascii()
        assert r"\xf6" in result.stdout


def test_locale_that_python_takes_for_ascii_does_not_crash(exitguard: Run, failing_host: Path) -> None:
    result = exitguard("audit", "--sysroot", failing_host, env={"LANG": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})
    assert result.returncode == 2, result.stderr
    assert result.stdout.isascii()


@pytest.mark.parametrize("name", ["[red]x[link=y]", "\x1b[31mx", "a\nb", "\u202egpj", "x" * 200, "-rf", "\u200b"])
def test_hostile_name_of_a_guest_reaches_no_terminal(exitguard: Run, failing_host: Path, name: str, output_format: str) -> None:
    source = failing_host / "etc/libvirt/qemu/web-1.xml"
    (source.parent / f"{name}.xml").write_text(source.read_text())
    source.unlink()
    result = exitguard("audit", "--sysroot", failing_host, "--format", output_format)
    assert result.returncode == 2, result.stderr
    assert all(character == "\n" or character.isprintable() for character in result.stdout)
    if output_format == "json":
        assert json.loads(result.stdout)["domains"][0]["name"] == name


def on_a_terminal(arguments: list[str], environment: dict[str, str]) -> str:
    """What the command writes where standard output is a terminal of 60 columns."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
    command = [sys.executable, "-m", "exitguard", *arguments]
    with subprocess.Popen(command, env=environment, stdout=follower, stderr=subprocess.DEVNULL) as process:
        os.close(follower)
        pieces = []
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # EIO: the other side is closed
                break
            if not piece:
                break
            pieces.append(piece)
        process.wait(timeout=60)
    os.close(leader)
    return b"".join(pieces).decode().replace("\r\n", "\n")


def test_terminal_gets_colour_and_its_own_width(environment: dict[str, str], failing_host: Path) -> None:
    text = on_a_terminal(["audit", "--sysroot", str(failing_host)], environment | {"TERM": "xterm"})
    assert text.startswith("\x1b[1;31mNOT COMPLIANT\x1b[0m")
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n")) <= 60


@pytest.mark.parametrize("env", [{"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_and_dumb_terminals_are_respected(environment: dict[str, str], failing_host: Path, env: dict[str, str]) -> None:
    text = on_a_terminal(["audit", "--sysroot", str(failing_host)], environment | env)
    assert text.startswith("NOT COMPLIANT")
    assert "\x1b" not in text


def test_other_host_named_on_the_command_line_is_not_put_into_this_hosts_store(exitguard: Run, failing_host: Path, tmp_path: Path) -> None:
    exitguard("audit", "--sysroot", failing_host)
    assert not (tmp_path / "state").exists()
    exitguard("audit", "--sysroot", failing_host, "--state-dir", tmp_path / "its-own")
    assert (tmp_path / "its-own" / "host-id").exists()


@pytest.mark.parametrize("option", ["--connect", "--sysroot"])
def test_audit_that_is_not_stored_unasked_says_so(exitguard: Run, compliant_host: Path, tmp_path: Path, option: str) -> None:
    target = "test:///default" if option == "--connect" else str(compliant_host)
    result = exitguard("audit", option, target)
    assert result.stderr.startswith(f"Not stored: the configured state directory is not for {target}")
    assert "Give it a --state-dir of its own." in result.stderr
    assert "(provisional: this audit is not stored)" in " ".join(result.stdout.split())
    assert exitguard("audit", option, target, "--no-store").stderr == ""
    assert exitguard("audit", option, target, "--state-dir", tmp_path / "its-own").stderr == ""


def test_configured_target_named_again_is_stored_in_silence(exitguard: Run, tmp_path: Path) -> None:
    result = exitguard("audit", "--connect", "test:///default", env={"EXITGUARD_CONNECT": "test:///default"})
    assert result.stderr == ""
    assert (tmp_path / "state/host-id").exists()


def test_fault_of_a_waiver_file_is_the_operators_to_correct_and_no_defect(exitguard: Run, compliant_host: Path, tmp_path: Path) -> None:
    waivers = tmp_path / "waivers.yaml"
    waivers.write_text("kind: waivers\nschema_version: 1\nwaivers:\n  - nonsense\n")
    result = exitguard("audit", "--no-store", "--sysroot", compliant_host, "--waivers", waivers)
    assert result.returncode == 1
    assert "defect" not in result.stdout
    assert "broke" not in result.stdout
    told = "".join(result.stdout.split())
    assert f"1.Correct{waivers}:4,see`exitguardwaivercheck{waivers}`" in told


def test_configured_target_is_remembered_unless_told_otherwise(exitguard: Run, tmp_path: Path) -> None:
    env = {"EXITGUARD_CONNECT": "test:///default"}
    exitguard("audit", "--no-store", env=env)
    assert not (tmp_path / "state").exists()
    report = json.loads(exitguard("audit", "--format", "json", env=env).stdout)
    assert (tmp_path / "state/host-id").read_text().strip() == report["host"]["id"]
    assert report["host"]["id_provisional"] is False


def test_store_that_cannot_be_used_is_told_and_the_audit_still_speaks(exitguard: Run, failing_host: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = exitguard("audit", "--sysroot", failing_host, "--state-dir", tmp_path / "file")
    assert result.returncode == 2
    assert "Not stored" in result.stderr
    assert result.stdout.startswith("NOT COMPLIANT")


def test_information_is_logged_only_when_asked_for(exitguard: Run, compliant_host: Path) -> None:
    assert exitguard("audit", "--no-store", "--sysroot", compliant_host).stderr == ""
    result = exitguard("-v", "audit", "--no-store", "--sysroot", compliant_host)
    event = json.loads(result.stderr)
    assert (event["event"], event["level"], event["exit_code"]) == ("audit.finished", "info", 0)
    console = exitguard("-v", "--log-format", "console", "audit", "--sysroot", compliant_host)
    assert "audit.finished" in console.stderr
    assert not console.stderr.startswith("{")


def test_what_is_one_value_is_a_plain_value_in_json(exitguard: Run, failing_host: Path, empty_host: Path) -> None:
    known = json.loads(exitguard("audit", "--sysroot", failing_host, "--format", "json").stdout)
    assert (known["host"]["hostname"], known["host"]["kernel"]["release"]) == ("compute-17", "6.1.0-56-amd64")
    assert [domain["active"] for domain in known["domains"]] == [False]
    unknown = json.loads(exitguard("audit", "--sysroot", empty_host, "--format", "json").stdout)
    assert (unknown["host"]["hostname"], unknown["host"]["kernel"]["release"]) == (None, None)
    (failing_host / "run/libvirt/qemu").rmdir()
    hidden = json.loads(exitguard("audit", "--sysroot", failing_host, "--format", "json").stdout)
    assert [domain["active"] for domain in hidden["domains"]] == [None]


def test_empty_variables_count_as_none(exitguard: Run, tmp_path: Path) -> None:
    shown = exitguard(
        "config", "show", "--effective", env={"EXITGUARD_CONNECT": "", "EXITGUARD_STATE_DIR": "", "XDG_STATE_HOME": str(tmp_path)}
    )
    assert "connect: null  # default" in shown.stdout
    assert 'state_dir: "/' in shown.stdout
    assert "environment" not in shown.stdout


def test_libvirt_prints_no_lines_of_its_own(exitguard: Run) -> None:
    result = exitguard("audit", "--no-store", "--connect", "esx://host.invalid", env={"EXITGUARD_CONNECT": ""})
    assert result.returncode == 3
    assert result.stderr == ""
