"""`exitguard report FILE...`: many hosts, several formats in one run, and files that are not what they should be."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from exitguard.schemas import schema

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def files(exitguard: Run, tmp_path: Path, compliant_host: Path, failing_host: Path) -> Path:
    """A folder with the fresh reports of one compliant and one failing host."""
    folder = tmp_path / "reports"
    folder.mkdir()
    for name, tree in (("good", compliant_host), ("bad", failing_host)):
        state = tmp_path / f"state-{name}"
        exitguard("audit", "--sysroot", tree, "--state-dir", state, "--format", "json", "--output", folder / f"{name}.json")
    return folder


def test_folder_of_reports_is_told_as_a_fleet(exitguard: Run, files: Path) -> None:
    result = exitguard("report", files)
    assert result.returncode == 2, result.stderr
    assert result.stdout.startswith("NOT COMPLIANT  2 hosts: 1 not compliant, 1 compliant.")
    assert "What to do next" in result.stdout


def test_one_file_is_told_as_the_host_tells_itself(exitguard: Run, files: Path) -> None:
    result = exitguard("report", files / "good.json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("COMPLIANT  compute-17")


def test_several_formats_come_of_one_run(exitguard: Run, files: Path, tmp_path: Path) -> None:
    document = tmp_path / "all.json"
    result = exitguard("report", files, "--format", "table", "--format", f"json:{document}")
    assert result.returncode == 2
    assert result.stdout.startswith("NOT COMPLIANT")
    written = json.loads(document.read_text())
    Draft202012Validator(schema("reports")).validate(written)
    assert written["summary"]["hosts_by_exit_code"] == {"0": 1, "2": 1}
    assert len(written["reports"]) == 2


def test_only_fail_leaves_out_the_rest_and_tells_it_by_the_same_exit_code(exitguard: Run, files: Path) -> None:
    result = exitguard("report", files / "bad.json", "--only", "fail", "--format", "json")
    assert result.returncode == 2
    assert {each["verdict"] for each in json.loads(result.stdout)["findings"]} == {"fail"}
    good = exitguard("report", files / "good.json", "--only", "fail", "--format", "json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["findings"] == []


def test_newest_of_several_reports_of_a_host_counts(exitguard: Run, files: Path) -> None:
    old = json.loads((files / "good.json").read_text())
    old["observed_at"] = "2026-01-01T00:00:00.000000Z"
    old["summary"]["exit_code"] = 2
    (files / "aa-old.json").write_text(json.dumps(old))
    assert exitguard("report", files).stdout.startswith("NOT COMPLIANT  2 hosts: 1 not compliant, 1 compliant.")


def test_at_takes_the_report_in_force_then(exitguard: Run, files: Path) -> None:
    old = json.loads((files / "good.json").read_text())
    old["observed_at"] = "2026-01-01T00:00:00.000000Z"
    (files / "aa-old.json").write_text(json.dumps(old))
    result = exitguard("report", files, "--at", "2026-01-01T12:00:00Z", "--format", "json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["observed_at"] == "2026-01-01T00:00:00.000000Z"


def test_old_report_in_a_file_is_stale(exitguard: Run, files: Path) -> None:
    old = json.loads((files / "good.json").read_text())
    old["observed_at"] = "2026-01-01T00:00:00.000000Z"
    (files / "good.json").write_text(json.dumps(old))
    result = exitguard("report", files / "good.json")
    assert result.returncode == 3
    assert result.stdout.startswith("STALE")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 1}', '{"observed_at": 5}', "\0", "null"])
def test_file_that_is_no_report_is_named_and_the_others_are_told(exitguard: Run, files: Path, content: str) -> None:
    (files / "broken.json").write_text(content)
    result = exitguard("report", files)
    assert result.returncode == 1
    assert "broken.json" in result.stderr
    assert "audit --format json" in result.stderr
    assert "2 hosts" in result.stdout


@pytest.mark.parametrize(("code", "said"), [(0, "its summary says exit code 0, and its findings make 2"), (7, "summary.exit_code")])
def test_summary_that_is_better_than_its_findings_is_not_believed(exitguard: Run, files: Path, code: int, said: str) -> None:
    report = json.loads((files / "bad.json").read_text())
    report["summary"]["exit_code"] = code
    (files / "bad.json").write_text(json.dumps(report))
    result = exitguard("report", files)
    assert result.returncode == 1
    assert said in result.stderr
    assert "1 host" in result.stdout


def test_file_that_could_not_be_read_is_in_every_document_that_is_left(exitguard: Run, files: Path, tmp_path: Path) -> None:
    (files / "bad.json").write_text("{}")
    names = {name: tmp_path / name for name in ("json", "csv", "prometheus", "junit", "sarif", "html", "markdown", "nagios")}
    result = exitguard("report", files, *(word for name, file in names.items() for word in ("--format", f"{name}:{file}")))
    assert result.returncode == 1
    written = {name: file.read_text() for name, file in names.items()}
    assert json.loads(written["json"])["summary"]["unread"]
    assert json.loads(written["json"])["summary"]["exit_code"] == 1
    assert "exitguard_fleet_unread_reports 1.0" in written["prometheus"]
    assert all("bad.json" in written[name] for name in ("json", "csv", "junit", "sarif", "html", "markdown", "nagios"))


def test_only_lists_and_hides_nothing_from_sums_and_monitoring(exitguard: Run, files: Path) -> None:
    table = exitguard("report", files / "bad.json", "--only", "pass").stdout
    whole = exitguard("report", files / "bad.json").stdout
    assert table.splitlines()[0] == whole.splitlines()[0]
    assert "Listed are only findings that are pass" in table
    assert "no failure, no doubt" not in table
    for name in ("prometheus", "junit", "nagios"):
        told = [exitguard("report", files, *words, "--format", name) for words in ((), ("--only", "pass"))]
        lines = slice(1) if name == "nagios" else slice(None)  # behind its first line is a list
        assert told[0].stdout.splitlines()[lines] == told[1].stdout.splitlines()[lines], name
        assert told[0].returncode == told[1].returncode


def test_report_of_many_hosts_beside_those_of_single_ones_is_left_out(exitguard: Run, files: Path) -> None:
    assert exitguard("report", files, "--format", f"json:{files / 'all.json'}").returncode == 2
    again = exitguard("report", files)
    assert again.returncode == 2
    assert "all.json: is a report of many hosts" in again.stderr


def test_file_that_is_named_twice_is_one_file(exitguard: Run, files: Path) -> None:
    twice = exitguard("report", files, files / ".." / files.name, "--format", "html")
    assert "Over time" not in twice.stdout


def test_two_formats_to_one_file_are_refused_however_it_is_spelt(exitguard: Run, files: Path, tmp_path: Path) -> None:
    other = tmp_path / "x" / ".." / "out"
    (tmp_path / "x").mkdir()
    result = exitguard("report", files, "--format", f"html:{tmp_path / 'out'}", "--format", f"csv:{other}")
    assert result.returncode == 64
    assert "two formats would go to one file" in result.stderr


@pytest.mark.parametrize("name", ["json", "csv", "html", "sarif"])
def test_full_disk_is_told_as_such(exitguard: Run, files: Path, name: str) -> None:
    result = exitguard("report", files, "--format", f"{name}:/dev/full")
    assert result.returncode == 1
    assert "/dev/full: could not be written: no space left on device" in result.stderr


def test_nagios_is_told_what_cannot_be_told(exitguard: Run, tmp_path: Path) -> None:
    result = exitguard("report", "--state-dir", tmp_path / "nothing", "--format", "nagios")
    assert result.returncode == 3
    assert result.stdout.startswith("EXITGUARD UNKNOWN - ")
    assert "host-id" in result.stdout


def test_pipe_and_missing_file_do_not_hold_it_up(exitguard: Run, files: Path) -> None:
    os.mkfifo(files / "pipe.json")
    result = exitguard("report", files, files / "missing.json")
    assert result.returncode == 1
    assert "pipe.json: is no regular file" in result.stderr
    assert "missing.json: no such file" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "pdf"], "is none of table, html"),
        (["--format", "html:"], "names no file"),
        (["--format", "json", "--format", "csv"], "would both go to one place"),
        (["--format", "json:x", "--format", "csv:x"], "two formats would go to one file"),
        (["--format", "json:x", "--output", "y"], "has its file already"),
        (["--format", "json", "--group-by", "kernel"], "is for table, markdown and html"),
        (["--since", "2026-01-01T00:00:00Z"], "give no FILE"),
    ],
)
def test_options_that_make_no_sense_are_refused(exitguard: Run, files: Path, arguments: list[str], said: str) -> None:
    result = exitguard("report", files, *arguments)
    assert result.returncode == 64
    assert said in result.stderr
