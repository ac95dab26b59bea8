"""`exitguard doctor` and `exitguard facts`: without libvirt, without root, never a traceback."""

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from jsonschema import Draft202012Validator

from exitguard.model.documents import FactsDocument
from exitguard.schemas import schema

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_doctor_without_anything_to_see_names_it_all_and_is_3(exitguard: Run, empty_host: Path) -> None:
    result = exitguard("doctor", "--sysroot", empty_host)
    assert result.returncode == 3
    assert result.stderr == ""
    assert result.stdout.startswith("NOT ALL SEEN")
    assert "/proc/sys/kernel/osrelease" in result.stdout


def test_doctor_without_a_daemon_says_what_would_show_it(exitguard: Run) -> None:
    result = exitguard("doctor", "--connect", "qemu+unix:///system?socket=/nonexistent/libvirt.sock", "--timeout", "2")
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
    assert "libvirt" in result.stdout
    assert "domains not listed" in result.stdout


def test_doctor_without_root_ends_in_order(environment: dict[str, str]) -> None:
    command = [sys.executable, "-B", "-m", "exitguard", "doctor", "--connect", "test:///default"]
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs", *command]
    environment = {name: value for name, value in environment.items() if not name.startswith("EXITGUARD")} | {"HOME": "/nonexistent"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    assert "permission denied" in result.stdout
    assert "unlock" in result.stdout
    assert f"as user {pwd.getpwuid(65534 if os.geteuid() == 0 else os.geteuid()).pw_name}" in result.stdout


def test_doctor_writes_to_a_file(exitguard: Run, empty_host: Path, tmp_path: Path) -> None:
    result = exitguard("doctor", "--sysroot", empty_host, "--output", tmp_path / "page")
    assert (result.returncode, result.stdout) == (3, "")
    assert (tmp_path / "page").read_text().startswith("NOT ALL SEEN")


def test_facts_are_a_document_that_fits_its_schema(exitguard: Run, failing_host: Path) -> None:
    result = exitguard("facts", "--sysroot", failing_host, "--format", "json")
    assert (result.returncode, result.stderr) == (0, "")
    Draft202012Validator(schema("facts")).validate(json.loads(result.stdout))
    assert FactsDocument.model_validate_json(result.stdout).domains[0].name == "web-1"


def test_facts_for_people_show_set_and_unseen(exitguard: Run, failing_host: Path) -> None:
    result = exitguard("facts", "--sysroot", failing_host)
    assert result.returncode == 0
    assert "release                   6.1.0-56-amd64" in result.stdout
    assert "not seen: " in result.stdout
    assert "web-1  6695eb01-f6a4-8304-79aa-97f2502e193f" in result.stdout


def test_facts_bear_the_id_under_which_audits_are_remembered(exitguard: Run, tmp_path: Path) -> None:
    env = {"EXITGUARD_CONNECT": "test:///default"}
    before = json.loads(exitguard("facts", "--format", "json", env=env).stdout)["host"]["identity"]
    assert before["provisional"] is True
    assert not (tmp_path / "state").exists()
    report = json.loads(exitguard("audit", "--format", "json", env=env).stdout)
    after = json.loads(exitguard("facts", "--format", "json", env=env).stdout)["host"]["identity"]
    assert (after["id"], after["provisional"]) == (report["host"]["id"], False)
    assert after["id"] != before["id"]


def test_facts_of_another_host_do_not_bear_this_hosts_id(exitguard: Run, failing_host: Path) -> None:
    env = {"EXITGUARD_CONNECT": "test:///default"}
    exitguard("audit", env=env)
    identity = json.loads(exitguard("facts", "--sysroot", failing_host, "--format", "json", env=env).stdout)["host"]["identity"]
    assert identity["provisional"] is True
