"""The units and what surrounds them: understood by systemd, confined, and without a setting that hides evidence."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from exitguard.report.privileges import documented_costs, drop_in_for

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
AUDIT = DEPLOY / "systemd/exitguard-audit.service"
REMEDY = DEPLOY / "systemd/exitguard-remedy.service"
WATCH = DEPLOY / "systemd/exitguard-remedy.path"
OPERATIONS = ROOT / "docs/operations.md"
#: Each of these hides something that a verdict needs; docs/operations.md says what.
HIDES_EVIDENCE = (
    *("ProtectKernelTunables", "ProtectKernelModules", "PrivateDevices", "PrivateUsers"),
    *("ProtectProc", "ProcSubset", "ProtectHostname", "PrivateNetwork"),
)


def settings(unit: Path) -> dict[str, list[str]]:
    """Every value of every key of a unit, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if not line.startswith(("#", "[")) and "=" in line:
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    """A copy of deploy to plant faults in."""
    missing = [program for program in ("systemd-analyze", "systemd-sysusers") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"missing: {', '.join(missing)} (package systemd)")
    for folder in ("systemd", "sysusers.d", "tmpfiles.d"):
        shutil.copytree(DEPLOY / folder, tmp_path / "deploy" / folder)
    return tmp_path / "deploy"


def check(deploy: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "scripts/check_units.sh", deploy], capture_output=True, text=True, check=False)


def plant(unit: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, unit.read_text(), flags=re.MULTILINE)
    assert count > 0, f"{pattern} is nowhere in {unit.name}"
    unit.write_text(text)


def test_units_pass_their_gates(deploy: Path) -> None:
    result = check(deploy)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("unit", "pattern", "replacement", "told"),
    [
        ("exitguard-audit.service", "^ProtectSystem=.*", "ProtectSystem=strikt", "Failed to parse protect system value"),
        (
            "exitguard-audit.service",
            "^NoNewPrivileges=",
            "NoNewPriviledges=",
            "Unknown key (name )?'NoNewPriviledges'",
        ),
        ("exitguard-audit.service", "^ExecStart=.*", "ExecStart=/usr/bin/exitgard daemon", "/usr/bin/exitgard is not executable"),
        ("exitguard-audit.service", "^CapabilityBoundingSet=.*", "", "is more exposed than 1.5"),
        ("exitguard-audit.service", "^SystemCallFilter=.*", "", "is more exposed than 1.5"),
        ("exitguard-audit.service", "^User=.*", "User=exitgard", "makes no such user"),
        ("exitguard-remedy.service", "^ExecStart=.*", "", "has a bad unit file setting"),
        ("exitguard-remedy.service", "^Type=.*", "Type=onceshot", "Failed to parse service type"),
        ("exitguard-remedy.service", "^CapabilityBoundingSet=.*", "", "is more exposed than 6.3"),
        ("exitguard-remedy.service", "^SystemCallFilter=.*", "", "is more exposed than 6.3"),
        ("exitguard-remedy.path", "^PathChanged=.*", "", "has a bad unit file setting|lacks path setting"),
        ("exitguard-remedy.path", "^TriggerLimitBurst=", "TriggerLimitBursts=", "Unknown key (name )?'TriggerLimitBursts'"),
    ],
)
def test_planted_fault_fails_the_check(deploy: Path, unit: str, pattern: str, replacement: str, told: str) -> None:
    plant(deploy / "systemd" / unit, pattern, replacement)
    result = check(deploy)
    assert result.returncode == 1
    assert re.search(told, result.stderr), result.stderr


def test_user_that_cannot_be_made_fails_the_check(deploy: Path) -> None:
    plant(deploy / "sysusers.d/exitguard.conf", "^u ", "user ")
    result = check(deploy)
    assert result.returncode == 1
    assert "sysusers.d/exitguard.conf is not understood" in result.stderr


def test_service_without_a_bound_of_its_exposure_fails_the_check(deploy: Path) -> None:
    (deploy / "systemd/exitguard-audit.service").rename(deploy / "systemd/exitguard-other.service")
    result = check(deploy)
    assert result.returncode == 1
    assert "exitguard-other.service: check_units.sh says nowhere how exposed it may be" in result.stderr


def test_folder_without_units_fails_the_check(deploy: Path) -> None:
    shutil.rmtree(deploy / "systemd")
    assert check(deploy).returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="giving folders to other users needs root")
def test_folders_are_made_with_the_owners_that_keep_the_audit_from_approving(deploy: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for program, kind in (("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")):
        action = ["--create"] if kind == "tmpfiles.d" else []
        subprocess.run([program, f"--root={root}", *action, deploy / kind / "exitguard.conf"], capture_output=True, check=True)
    users = dict(line.split(":")[:3:2] for line in (root / "etc/passwd").read_text().splitlines())
    for folder, owner, mode in (
        ("var/lib/exitguard", int(users["exitguard"]), 0o40750),
        *((f"var/lib/exitguard-remedy{below}", 0, 0o40700) for below in ("", "/approvals", "/approvals/used", "/plans", "/runs")),
        ("run/exitguard", 0, 0o40755),
    ):
        status = (root / folder).stat()
        assert (status.st_uid, status.st_mode) == (owner, mode), folder
    assert re.search(r"^kvm:x:\d+:exitguard$", (root / "etc/group").read_text(), re.MULTILINE)


# What the audit unit must have, whatever its exposure


def test_no_setting_of_the_audit_unit_hides_evidence() -> None:
    found = settings(AUDIT)
    assert not set(HIDES_EVIDENCE) & set(found)
    assert found["DeviceAllow"] == ["/dev/kvm rw"]
    hidden = " ".join(found.get("InaccessiblePaths", []))
    assert not re.search(r"kallsyms|/boot|/lib|/sys|/etc", hidden)


def test_audit_unit_has_no_privilege_and_no_network() -> None:
    found = settings(AUDIT)
    assert (found["CapabilityBoundingSet"], found["AmbientCapabilities"], found["User"]) == ([""], [""], ["exitguard"])
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert found["IPAddressDeny"] == ["any"]


def test_audit_unit_is_watched_restarted_and_bounded() -> None:
    found = settings(AUDIT)
    assert found["Type"] == ["notify"]
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert found["Restart"] == ["on-failure"]
    assert found["StartLimitIntervalSec"] == ["0"]
    assert all(found[key] for key in ("WatchdogSec", "CPUQuota", "MemoryMax", "TasksMax", "TimeoutStopSec"))
    assert found["IOSchedulingClass"] == ["idle"]


# What lies between the audit and the root that changes things


def test_remedy_unit_takes_nothing_from_whoever_started_it() -> None:
    found = settings(REMEDY)
    assert found["ExecStart"] == ["/usr/bin/exitguard apply --here"]
    assert found["User"] == ["root"]
    assert not {"EnvironmentFile", "StandardInput", "PassEnvironment", "ExecStartPre"} & set(found)
    assert not re.search(r"%[iIj]|\$", REMEDY.read_text().partition("[Service]")[2])


def test_remedy_unit_is_started_by_hand_or_by_its_watch_and_by_nothing_else() -> None:
    assert "[Install]" not in REMEDY.read_text()
    for unit in DEPLOY.glob("systemd/*"):
        named = {key for key, values in settings(unit).items() if any("exitguard-remedy.service" in value for value in values)}
        assert named == set(), unit.name
    assert "Unit" not in settings(WATCH)  # so it starts its namesake


def test_watch_looks_at_what_the_audit_touches_and_at_approvals_and_is_bounded() -> None:
    found = settings(WATCH)
    assert found["PathChanged"] == ["/var/lib/exitguard/proposal", "/var/lib/exitguard-remedy/approvals"]
    assert found["TriggerLimitIntervalSec"] == ["1h"]
    assert 6 < int(found["TriggerLimitBurst"][0]) <= 60
    # A failed start would stop the watch for good; the watch is what bounds the starts.
    assert settings(REMEDY)["StartLimitIntervalSec"] == ["0"]


def test_plan_that_waits_for_its_approval_is_no_failed_unit_and_a_boot_waits_for_no_remedy() -> None:
    found = settings(REMEDY)
    assert found["SuccessExitStatus"] == ["3"]
    assert found["Type"] == ["exec"]


def test_nothing_of_the_remedy_unit_closes_what_a_remedy_needs() -> None:
    """ProtectClock and PrivateDevices close /dev/kvm and the disks, NoNewPrivileges keeps Ansible's `become` from working."""
    closed = {
        "ProtectSystem",
        "ProtectKernelModules",
        "ProtectClock",
        "PrivateDevices",
        "NoNewPrivileges",
        "DevicePolicy",
        "RuntimeDirectory",
    }
    assert not closed & set(settings(REMEDY))


# What the documentation says of it


def prose(path: Path) -> str:
    return " ".join(path.read_text().split())


def test_documentation_names_every_setting_that_is_left_out_with_what_it_would_cost() -> None:
    for setting in HIDES_EVIDENCE:
        assert re.search(rf"^\| `{setting}=\w+`.* \| \S.* \|$", OPERATIONS.read_text(), re.MULTILINE), setting


def test_documentation_says_what_the_doctor_says() -> None:
    documented = prose(OPERATIONS)
    for cost in documented_costs():
        assert cost in documented
    for unlock in ("run as root, or grant CAP_SYS_PTRACE", "run as root, or grant CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE"):
        assert " ".join(drop_in_for(unlock)) in documented


@pytest.mark.parametrize("unlock", ["grant CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE", "membership in group kvm (or root)"])
def test_drop_in_leaves_the_unit_valid(deploy: Path, unlock: str) -> None:
    """A later line of a unit adds to an earlier one just as a drop-in does."""
    unit = deploy / "systemd/exitguard-audit.service"
    plant(unit, r"\n\[Install\]", "\n" + "\n".join(drop_in_for(unlock)) + "\n[Install]")
    assert "does not verify" not in check(deploy).stderr
    assert not re.search(r"Unknown|Failed to parse", check(deploy).stderr)


def test_documented_settings_are_those_of_the_unit() -> None:
    found = settings(AUDIT)
    table = OPERATIONS.read_text().partition("### The sandbox")[2].partition("These are left out")[0]
    named = re.findall(r"^\| `(\w+)=([^`]*)`", table, re.MULTILINE)
    assert len(named) >= 5
    for key, value in named:
        assert found[key] == [value]
