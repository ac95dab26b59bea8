"""`policy`, `waiver` and `config`: good in one line, bad with every problem at once."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from exitguard.settings import Settings

Run = Callable[..., subprocess.CompletedProcess[str]]

GOOD_WAIVER = """\
kind: waivers
schema_version: 1
waivers:
  - id: legacy-db
    rules: [DOM-PMU-PERSISTENT]
    scope: {domains: [db-1]}
    justification: profiled until the migration is over
    approver: Ada
    created: "2026-01-01T00:00:00Z"
    expires: "2036-01-01T00:00:00Z"
"""


def test_shipped_policy_is_good(exitguard: Run) -> None:
    result = exitguard("policy", "check")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("good: policy pmu-off ")
    assert result.stdout.count("\n") == 1


def test_bad_policy_tells_all_problems_at_once(exitguard: Run, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("kind: policy\nschema_version: 2\nid: Mine\nversion: '1'\ntitle: t\nrules: []\n")
    result = exitguard("policy", "check", file)
    assert (result.returncode, result.stdout) == (1, "")
    for place in (f"{file}:2: schema_version: ", f"{file}:3: id: ", f"{file}:6: rules: "):
        assert place in result.stderr


def test_policy_that_is_not_there_is_named(exitguard: Run, tmp_path: Path) -> None:
    result = exitguard("policy", "check", tmp_path / "absent.yaml")
    assert result.returncode == 1
    assert f"{tmp_path}/absent.yaml: expected a file, found none" in result.stderr


def test_policy_is_shown_rule_by_rule(exitguard: Run) -> None:
    table = exitguard("policy", "show")
    assert table.returncode == 0
    assert "DOM-PMU-LIVE  " in table.stdout
    document = yaml.safe_load(exitguard("policy", "show", "--format", "json").stdout)
    assert [rule["id"] for rule in document["rules"]] == [line.split()[0] for line in table.stdout.split("\n\n")[1:]]


def test_good_waivers_are_listed(exitguard: Run, tmp_path: Path) -> None:
    (tmp_path / "waivers.yaml").write_text(GOOD_WAIVER)
    result = exitguard("waiver", "check", tmp_path / "waivers.yaml")
    assert (result.returncode, result.stdout) == (0, "good: 1 waiver, legacy-db\n")


def test_file_without_waivers_is_good(exitguard: Run, tmp_path: Path) -> None:
    (tmp_path / "waivers.yaml").write_text("kind: waivers\nschema_version: 1\nwaivers: []\n")
    result = exitguard("waiver", "check", tmp_path / "waivers.yaml")
    assert (result.returncode, result.stdout) == (0, "good: 0 waivers\n")


def test_bad_waivers_of_every_file_are_told(exitguard: Run, tmp_path: Path) -> None:
    bad_date, bad_scope = tmp_path / "date.yaml", tmp_path / "scope.yaml"
    bad_date.write_text(GOOD_WAIVER.replace("2036-01-01T00:00:00Z", "2036-01-01"))
    bad_scope.write_text(GOOD_WAIVER.replace("{domains: [db-1]}", "{}"))
    result = exitguard("waiver", "check", bad_date, bad_scope)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{bad_date}:10: " in result.stderr
    assert f"{bad_scope}:6: " in result.stderr


def test_waiver_for_an_unknown_rule_is_not_good(exitguard: Run, tmp_path: Path) -> None:
    file = tmp_path / "waivers.yaml"
    file.write_text(GOOD_WAIVER.replace("DOM-PMU-PERSISTENT", "DOM-PMU-LIFE"))
    result = exitguard("waiver", "check", file)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{file}:5: waivers[0].rules[0]: " in result.stderr
    assert "did you mean 'DOM-PMU-LIVE'?" in result.stderr


def test_expired_waiver_is_not_good(exitguard: Run, tmp_path: Path) -> None:
    file = tmp_path / "waivers.yaml"
    file.write_text(GOOD_WAIVER.replace("2036-01-01", "2026-01-02"))
    result = exitguard("waiver", "check", file)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{file}:10: waivers[0].expires: expired on 2026-01-02T00:00:00" in result.stderr


def test_waivers_are_checked_by_the_rules_of_the_given_or_configured_policy(exitguard: Run, tmp_path: Path) -> None:
    policy, waivers, config = tmp_path / "policy.yaml", tmp_path / "waivers.yaml", tmp_path / "config.yaml"
    rule = "id: SITE-RULE, severity: low, title: t, rationale: r, subject: domain, check: pmu_live"
    policy.write_text(f"kind: policy\nschema_version: 1\nid: site\nversion: '1'\ntitle: t\nrules: [{{{rule}}}]\n")
    waivers.write_text(GOOD_WAIVER.replace("DOM-PMU-PERSISTENT", "SITE-RULE"))
    assert exitguard("waiver", "check", waivers).returncode == 1
    assert exitguard("waiver", "check", waivers, "--policy", policy).returncode == 0
    config.write_text(f"policy_files: [{policy}]\n")
    assert exitguard("waiver", "check", waivers).returncode == 0


@pytest.mark.parametrize("arguments", [(), ("FILE",)])
def test_good_settings(exitguard: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = exitguard("config", "check", *(tmp_path / "config.yaml" for _ in arguments))
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(rf"good: {tmp_path}/config\.yaml; policy pmu-off [0-9.]+, 0 waivers\n", result.stdout)


def test_bad_settings_are_told_all_at_once(exitguard: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("call_timeout_seconds: 0\nstate_dirr: /x\n")
    result = exitguard("config", "check", file)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{file}:1: call_timeout_seconds: " in result.stderr
    assert f"{file}:2: state_dirr: this key is unknown: did you mean 'state_dir'?" in result.stderr


def test_settings_are_good_only_with_the_policy_that_they_name(exitguard: Run, tmp_path: Path) -> None:
    config, policy = tmp_path / "mine.yaml", tmp_path / "policy.yaml"
    config.write_text(f"policy_files: [{policy}]\n")
    missing = exitguard("config", "check", config)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert f"{policy}: expected a file, found none" in missing.stderr
    policy.write_text("kind: policy\nschema_version: 2\n")
    assert f"{policy}:2: schema_version: " in exitguard("config", "check", config).stderr


def test_settings_are_good_only_with_the_waivers_that_they_name(exitguard: Run, tmp_path: Path) -> None:
    config, waivers = tmp_path / "mine.yaml", tmp_path / "waivers.yaml"
    config.write_text(f"waiver_files: [{waivers}]\n")
    waivers.write_text(GOOD_WAIVER)
    good = exitguard("config", "check", config)
    assert good.returncode == 0
    assert good.stdout.endswith(", 1 waiver\n")
    waivers.write_text(GOOD_WAIVER.replace("DOM-PMU-PERSISTENT", "DOM-PMU-LIFE"))
    bad = exitguard("config", "check", config)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert f"{waivers}:5: waivers[0].rules[0]: " in bad.stderr


def test_expired_waiver_is_no_fault_of_the_settings(exitguard: Run, tmp_path: Path) -> None:
    config, waivers = tmp_path / "mine.yaml", tmp_path / "waivers.yaml"
    config.write_text(f"waiver_files: [{waivers}]\n")
    waivers.write_text(GOOD_WAIVER.replace("2036-01-01", "2026-01-02"))
    assert exitguard("config", "check", config).returncode == 0


def test_state_directory_that_is_none_is_warned_of(exitguard: Run, tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    result = exitguard("config", "check")
    assert result.returncode == 0
    assert result.stderr.startswith(f"Warning: environment EXITGUARD_STATE_DIR: state_dir: {tmp_path}/state is no directory that user id ")
    assert result.stderr.count("\n") == 1


def test_state_directory_of_another_user_is_warned_of(environment: dict[str, str], tmp_path: Path) -> None:
    """Root may write anywhere: where root runs the tests, another user asks."""
    (tmp_path / "state").mkdir(mode=0o555)
    code = (
        "import os; from exitguard.cli.config import _state_dir_warning; from exitguard.config import load_settings;"
        "loaded = load_settings(None, os.environ); os.geteuid() or os.seteuid(65534); print(*_state_dir_warning(loaded))"
    )
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert f"state_dir: {tmp_path}/state is no directory that user id {os.geteuid() or 65534} may write to" in told


def test_shown_settings_are_those_set_here_and_name_their_origin(exitguard: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("call_timeout_seconds: 7\n")
    shown = exitguard("config", "show", "--config", file)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == [
        f'state_dir: "{tmp_path}/state"  # environment EXITGUARD_STATE_DIR',
        f"call_timeout_seconds: 7.0  # {file}:1",
    ]


def test_where_nothing_is_set_nothing_is_shown_and_the_reader_is_told_so(exitguard: Run, tmp_path: Path) -> None:
    shown = exitguard("config", "show", env={"EXITGUARD_STATE_DIR": ""})
    assert (shown.returncode, shown.stdout) == (0, "")
    assert f"Nothing is set: {tmp_path}/config.yaml sets nothing" in shown.stderr
    assert "--effective" in shown.stderr


def test_effective_settings_are_all_of_them_and_are_settings_themselves(exitguard: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("call_timeout_seconds: 7\nmetrics_listen: '[::1]:9478'\n")
    shown = exitguard("config", "show", "--effective", "--config", file)
    assert shown.returncode == 0
    assert f"call_timeout_seconds: 7.0  # {file}:1" in shown.stdout
    assert f'state_dir: "{tmp_path}/state"  # environment EXITGUARD_STATE_DIR' in shown.stdout
    assert "audit_interval_seconds: 600  # default" in shown.stdout
    assert list(yaml.safe_load(shown.stdout)) == list(Settings.model_fields)
    again = tmp_path / "again.yaml"
    again.write_text(shown.stdout)
    assert exitguard("config", "check", again).returncode == 0
    reread = exitguard("config", "show", "--effective", "--config", again).stdout
    assert yaml.safe_load(reread) == yaml.safe_load(shown.stdout)


@pytest.mark.parametrize("arguments", [("config", "show", "--effective"), ("config", "check"), ("audit",), ("doctor",), ("facts",)])
@pytest.mark.parametrize("place", ["file", "environment"])
def test_password_in_the_configured_uri_is_never_printed(exitguard: Run, tmp_path: Path, arguments: tuple[str, ...], place: str) -> None:
    uri = "qemu+tcp://ada:s3cret@192.0.2.1/system"
    (tmp_path / "config.yaml").write_text(f"connect: {uri}\n" if place == "file" else "")
    result = exitguard(*arguments, env={"EXITGUARD_DEBUG": "1", "EXITGUARD_CONNECT": uri if place == "environment" else ""})
    assert (result.returncode, result.stdout) == (1, "")
    assert "qemu+tcp://ada:***@192.0.2.1/system" in result.stderr
    assert "s3cret" not in result.stderr
