"""What the Debian package holds, and what it does to a clean Debian: install, upgrade, remove, purge."""

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest
from deb_package import RECORDS, Entry, build_deb, entries, field, install
from debian_root import REPOSITORY, DebianRoot

from exitguard import __version__
from exitguard.cli.examples import EXAMPLES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SETTINGS, STATE, REMEDY = "/etc/exitguard/config.yaml", "/var/lib/exitguard", "/var/lib/exitguard-remedy"
UNIT = "exitguard-audit.service"
WATCH, RUN = "exitguard-remedy.path", "/run/exitguard"
WANTS = "/etc/systemd/system/multi-user.target.wants"
DECLARED_FOLDERS = ("/opt/exitguard/", "/usr/share/doc/exitguard/")
DECLARED_FILES = {
    SETTINGS,
    "/usr/bin/exitguard",
    f"/lib/systemd/system/{UNIT}",
    "/lib/systemd/system/exitguard-remedy.service",
    "/lib/systemd/system/exitguard-remedy.path",
    "/usr/lib/sysusers.d/exitguard.conf",
    "/usr/lib/tmpfiles.d/exitguard.conf",
    "/usr/share/lintian/overrides/exitguard",
    "/usr/share/exitguard/grafana/exitguard.json",
    "/usr/share/exitguard/prometheus/exitguard.rules.yaml",
    "/usr/share/exitguard/prometheus/exitguard.test.yaml",
    "/usr/share/bash-completion/completions/exitguard",
    "/usr/share/zsh/vendor-completions/_exitguard",
    "/usr/share/fish/vendor_completions.d/exitguard.fish",
    *(f"/usr/share/man/man1/{'-'.join(['exitguard', *verb.split()])}.1.gz" for verb in EXAMPLES),
}
READ_BYTECODE = """
import importlib.util, json, marshal, pathlib, sys
found = {}
for source in pathlib.Path(sys.argv[1]).rglob("*.py"):
    compiled = pathlib.Path(importlib.util.cache_from_source(source))
    if compiled.is_file():
        data = compiled.read_bytes()
        assert data[:4] == importlib.util.MAGIC_NUMBER, compiled
        found[str(source)] = [int.from_bytes(data[4:8], "little"), marshal.loads(data[16:]).co_filename]
    else:
        found[str(source)] = None
print(json.dumps(found))
"""


def packaged(unpacked: Path) -> dict[str, Entry]:
    return entries(unpacked, without=["/DEBIAN"])


def describe(root: DebianRoot, *paths: str) -> list[str]:
    return root.must("stat", "--format=%U:%G %a %n", *paths).splitlines()


def reported_host_id(root: DebianRoot, *, user: str | None = None) -> str:
    report = root.run("exitguard", "report", "--format", "json", user=user)
    assert report.returncode == 3, report.stderr  # no libvirt here
    host_id: str = json.loads(report.stdout)["host"]["id"]
    return host_id


def state_of_unit(root: DebianRoot, unit: str = UNIT) -> str:
    return root.run("systemctl", "is-enabled", unit).stdout.strip()


# What the package holds


def test_no_file_names_the_place_of_the_build(unpacked: Path) -> None:
    place = os.fsencode(REPOSITORY)
    files = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 1000
    assert [str(path) for path in files if place in path.read_bytes()] == []
    assert [str(path) for path in unpacked.rglob("*") if path.is_symlink() and str(REPOSITORY) in str(path.readlink())] == []


def test_ordinary_user_elsewhere_builds_the_same_files(unpacked: Path, newer_deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", newer_deb, tmp_path], check=True)
    # The Debian changelog names the version of the package, which differs on purpose.
    own = "/usr/share/doc/exitguard/changelog.Debian.gz"
    assert entries(tmp_path, without=[own]) == entries(unpacked, without=["/DEBIAN", own])


def test_every_file_lies_in_a_declared_place(unpacked: Path) -> None:
    files = {path for path, entry in packaged(unpacked).items() if entry.kind != "directory"}
    assert {path for path in files if not path.startswith(DECLARED_FOLDERS)} == DECLARED_FILES


def test_everything_is_root_s_and_only_root_writes_it(unpacked: Path) -> None:
    odd = {
        path: entry
        for path, entry in packaged(unpacked).items()
        if (entry.user_id, entry.group_id) != (0, 0) or (entry.kind != "link" and entry.mode not in {0o644, 0o755})
    }
    assert odd == {}


def test_man_pages_are_compressed_without_name_or_time(unpacked: Path) -> None:
    pages = list((unpacked / "usr/share/man/man1").iterdir())
    assert {page.read_bytes()[:8] for page in pages} == {b"\x1f\x8b\x08" + bytes(5)}  # RFC 1952: magic, deflate, no flags, no time
    shown = gzip.decompress((unpacked / "usr/share/man/man1/exitguard-report.1.gz").read_bytes()).decode()
    assert shown.startswith(f'.TH EXITGUARD\\-REPORT 1 "" "exitguard {__version__}"')


def test_depends_on_the_python_and_the_libvirt_it_was_built_with(deb: Path) -> None:
    depends = {part.strip() for part in field(deb, "Depends").split(",")}
    asked = "import sys; print(*sys.version_info[:2])"
    major, minor = map(int, subprocess.run(["/usr/bin/python3", "-c", asked], capture_output=True, check=True, text=True).stdout.split())
    assert {f"python3 (>= {major}.{minor}~)", f"python3 (<< {major}.{minor + 1}~)"} <= depends
    assert any(part.startswith("libvirt0 (>= ") for part in depends), depends
    assert any(part.startswith("libc6 (>= ") for part in depends), depends
    assert field(deb, "Version") == __version__


def test_no_installer_left_anything(unpacked: Path) -> None:
    leftovers = {"pip", "uv", "setuptools", "RECORD", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"}
    prefixes = ("pip-", "uv-", "setuptools-", "activate", "Activate")
    names = {Path(path).name for path in packaged(unpacked) if path.startswith("/opt/")}
    assert {name for name in names if name in leftovers or name.startswith(prefixes)} == set()
    commands = {path.name for path in (unpacked / "opt/exitguard/bin").iterdir()}
    assert {name for name in commands if not name.startswith("python")} == {"exitguard", "ansible-playbook"}
    assert (unpacked / "opt/exitguard/bin/exitguard").read_text().splitlines()[0] == "#!/opt/exitguard/bin/python -IB"


def test_bytecode_is_there_and_names_the_files_as_installed(unpacked: Path) -> None:
    answer = subprocess.run(["/usr/bin/python3", "-I", "-c", READ_BYTECODE, unpacked], capture_output=True, text=True, check=True).stdout
    found = json.loads(answer)
    assert len(found) > 500
    assert [source for source, compiled in found.items() if compiled is None] == []
    # Flags 1: by hash, not by time, and unchecked (PEP 552).
    assert {source: compiled for source, compiled in found.items() if compiled != [1, "/" + os.path.relpath(source, unpacked)]} == {}


@pytest.mark.parametrize(
    ("options", "exit_code", "said"),
    [(["--fast", "yes"], 64, "usage:"), (["--output"], 64, "usage:"), (["--version-suffix", "_2"], 1, "expected letters, digits and")],
)
def test_build_refuses_what_it_does_not_understand(options: list[str], exit_code: int, said: str, deb: Path, tmp_path: Path) -> None:  # noqa: ARG001 - the packages to build are there
    result = build_deb(REPOSITORY, *options, home=tmp_path)
    assert result.returncode == exit_code
    assert said in result.stderr


# What an installed package does


@pytest.mark.parametrize("user", [None, "exitguard"])
def test_command_works_as_root_and_as_the_user_of_the_service(installed: DebianRoot, user: str | None) -> None:
    assert installed.must("exitguard", "--version", user=user) == f"exitguard {__version__}\n"
    installed.must("exitguard", "config", "check", user=user)
    audit = installed.run("exitguard", "audit", "--no-store", "--format", "json", user=user)
    assert audit.returncode == 3, audit.stderr
    assert json.loads(audit.stdout)["summary"]["exit_code"] == 3


def test_completion_of_the_package_completes_with_the_command_of_the_package(installed: DebianRoot) -> None:
    script = (
        "source /usr/share/bash-completion/completions/exitguard; COMP_WORDS=(exitguard rep); COMP_CWORD=1; "
        'complete -p exitguard >/dev/null; _exitguard_completion exitguard; echo "${COMPREPLY[@]}"'
    )
    assert installed.must("bash", "-c", script, user="exitguard") == "report\n"


def test_caller_s_directory_and_python_variables_run_nothing(installed: DebianRoot) -> None:
    folder = installed.at("/root/hostile")
    folder.mkdir()
    for name in ("exitguard.py", "yaml.py", "sitecustomize.py"):
        (folder / name).write_text("raise SystemExit('hostile code ran')\n")
    command = 'cd /root/hostile && PYTHONPATH=. PYTHONHOME=. PYTHONSTARTUP=./yaml.py exec exitguard "$@"'
    for arguments in (["--version"], ["config", "check"]):
        result = installed.run("sh", "-c", command, "sh", *arguments)
        assert (result.returncode, "hostile" in result.stdout + result.stderr) == (0, False), result.stderr


def test_installation_neither_enables_nor_starts_the_service(installed: DebianRoot) -> None:
    assert {unit: state_of_unit(installed, unit) for unit in (UNIT, WATCH, "exitguard-remedy.service")} == {
        UNIT: "disabled",
        WATCH: "disabled",
        "exitguard-remedy.service": "static",
    }
    assert not [path for unit in (UNIT, WATCH) if (path := installed.at(f"{WANTS}/{unit}")).exists()]


def test_user_may_use_kvm_and_only_it_and_root_reach_the_state(installed: DebianRoot) -> None:
    assert installed.must("id", "--name", "--groups", "exitguard").split() == ["exitguard", "kvm"]
    assert installed.must("getent", "passwd", "exitguard").strip().endswith(":/usr/sbin/nologin")
    closed = [REMEDY, *(f"{REMEDY}/{folder}" for folder in ("approvals", "approvals/used", "plans", "runs"))]
    assert describe(installed, STATE, *closed, RUN, SETTINGS) == [
        f"exitguard:exitguard 750 {STATE}",
        *(f"root:root 700 {folder}" for folder in closed),
        f"root:root 755 {RUN}",
        f"root:root 644 {SETTINGS}",
    ]
    assert installed.run("touch", f"{REMEDY}/approvals/mine.json", user="exitguard").returncode != 0


def test_running_it_as_root_writes_nothing_beside_the_state(root: DebianRoot, deb: Path) -> None:
    install(root, deb)
    before = entries(root.path, without=["/proc", "/dev", STATE])
    assert root.run("exitguard", "audit").returncode == 3
    for arguments in (["report"], ["doctor"], ["facts"], ["policy", "check"], ["config", "show"], ["explain", "effective"], ["schema"]):
        root.run("exitguard", *arguments)
    assert entries(root.path, without=["/proc", "/dev", STATE]) == before
    assert root.must("dpkg", "--verify", "exitguard") == ""


def test_audit_of_root_s_is_told_and_not_stored_and_leaves_the_store_to_the_service(root: DebianRoot, deb: Path) -> None:
    install(root, deb)
    audit = root.run("exitguard", "audit")
    assert audit.returncode == 3
    assert "belongs to user exitguard" in audit.stderr
    assert list(root.at(STATE).iterdir()) == []
    assert "Not stored" not in root.run("exitguard", "audit", user="exitguard").stderr
    # To read is another matter.
    assert reported_host_id(root) == reported_host_id(root, user="exitguard")


# Upgrade, removal, purge


def test_upgrade_keeps_state_settings_and_what_was_enabled(root: DebianRoot, deb: Path, newer_deb: Path) -> None:
    install(root, deb)
    assert root.run("exitguard", "audit", user="exitguard").returncode == 3
    with root.at(SETTINGS).open("a") as settings:
        settings.write("log_level: debug\n")
    host_id, edited = root.at(f"{STATE}/host-id").read_text(), root.at(SETTINGS).read_text()
    root.must("systemctl", "enable", UNIT, WATCH)

    for package in (deb, newer_deb):
        install(root, package)
        assert root.must("dpkg-query", "--show", "--showformat=${Version}", "exitguard") == field(package, "Version")
        assert root.at(SETTINGS).read_text() == edited
        assert "debug" in root.must("exitguard", "config", "show")
        assert root.at(f"{STATE}/host-id").read_text() == host_id
        assert reported_host_id(root, user="exitguard") == host_id.strip()
        assert [state_of_unit(root, unit) for unit in (UNIT, WATCH)] == ["enabled", "enabled"]
    assert not list(root.at("/etc/exitguard").glob("*.dpkg-*"))


def test_removal_keeps_state_and_settings_and_purge_takes_everything(root: DebianRoot, deb: Path) -> None:
    before = entries(root.path, without=RECORDS)
    install(root, deb)
    root.must("systemctl", "enable", UNIT, WATCH)
    assert root.run("exitguard", "audit", user="exitguard").returncode == 3
    root.at(f"{REMEDY}/approvals/a.json").write_text("{}")
    root.at(f"{RUN}/lock").write_text("")
    with root.at(SETTINGS).open("a") as settings:
        settings.write("log_level: debug\n")

    root.must("dpkg", "--remove", "exitguard")
    left = {path for path in entries(root.path, without=RECORDS).keys() - before.keys() if not path.startswith("/var/lib/systemd/")}
    assert {path for path in left if not path.startswith((f"{STATE}/", f"{REMEDY}/"))} == {
        "/etc/exitguard",
        SETTINGS,
        STATE,
        REMEDY,
        f"{WANTS}/{UNIT}",
        f"{WANTS}/{WATCH}",
    }
    assert root.at(f"{STATE}/host.sqlite").exists()
    assert root.at(f"{REMEDY}/approvals/a.json").exists()

    root.must("dpkg", "--purge", "exitguard")
    assert entries(root.path, without=RECORDS) == before


def test_package_that_comes_back_finds_its_state(root: DebianRoot, deb: Path) -> None:
    install(root, deb)
    assert root.run("exitguard", "audit", user="exitguard").returncode == 3
    host_id = root.at(f"{STATE}/host-id").read_text()
    root.must("dpkg", "--remove", "exitguard")
    install(root, deb)
    assert reported_host_id(root, user="exitguard") == host_id.strip()
    assert state_of_unit(root) == "disabled"


def test_purge_follows_no_link_out_of_the_state(root: DebianRoot, deb: Path) -> None:
    install(root, deb)
    kept = {"/srv/inside/kept", "/srv/elsewhere/kept", "/srv/settings/kept"}
    for path in kept:
        root.at(path).parent.mkdir(parents=True)
        root.at(path).write_text("not ours")
    root.at(f"{STATE}/inside").symlink_to("/srv/inside")
    root.must("rm", "-r", REMEDY)
    root.at(REMEDY).symlink_to("/srv/elsewhere")
    said = root.must("dpkg", "--purge", "exitguard")
    assert f"{REMEDY} is a link to /srv/elsewhere" in said
    assert {path for path in kept if root.at(path).exists()} == kept
    assert not root.at(STATE).exists()
    assert not root.at(REMEDY).is_symlink()


def test_purge_leaves_what_somebody_else_put_beside_the_settings(root: DebianRoot, deb: Path) -> None:
    install(root, deb)
    root.at("/etc/exitguard/waivers.yaml").write_text("kind: waivers\n")
    root.must("dpkg", "--purge", "exitguard")
    assert [path.name for path in root.at("/etc/exitguard").iterdir()] == ["waivers.yaml"]


def test_running_systemd_is_asked_to_reload_then_try_restart_and_at_last_stop(root: DebianRoot, deb: Path, newer_deb: Path) -> None:
    """What the maintainer scripts ask of a systemd that runs: here a program that writes it down, found before the real one."""
    root.at("/run/systemd/system").mkdir(parents=True)
    noted = root.at("/usr/local/bin/systemctl")
    noted.write_text('#!/bin/sh\necho "$*" >>/root/asked\nexec /usr/bin/systemctl "$@"\n')
    noted.chmod(0o755)

    def asked() -> list[str]:
        lines = root.at("/root/asked").read_text().splitlines()
        root.at("/root/asked").write_text("")
        return [line for line in lines if line.split()[0] != "is-enabled"]

    install(root, deb)
    assert asked() == ["--system daemon-reload"]
    install(root, newer_deb)  # and a remedy under way is left to come to its end
    assert asked() == ["--system daemon-reload", f"try-restart {UNIT}"]
    root.must("dpkg", "--remove", "exitguard")
    reloads = 2 * ["--system daemon-reload"]  # one for each of the services
    assert asked() == [f"stop {WATCH} exitguard-remedy.service {UNIT}", *reloads]
