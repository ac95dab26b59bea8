"""playbooks/qemu_pmu_cap.yml by the real ansible-playbook, apt and dpkg in a small Debian, with small packages in the place of QEMU's.

Their qemu-system-x86_64 is a C program that answers `-machine help` with what a real QEMU answered, and refuses to run as root. Guests
are of libvirt's own test driver. Several of the hosts of one play are this one Debian, looked at one after another with other variables.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deb_package import Entry, entries
from debian_root import REPOSITORY, DebianRoot, clean_root

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

DEPENDS = "initramfs-tools, kmod, python3, python3-libvirt"
PLAYBOOK = REPOSITORY / "playbooks" / "qemu_pmu_cap.yml"
MACHINE_HELP = REPOSITORY / "tests" / "playbooks" / "qemu_packages" / "machine-help-7.2.22" / "input"
MESSAGE = "Failed to set KVM_PMU_CAP_DISABLE"
CONTROL, WORK = "/srv/control", "/var/cache/exitguard"
SHOWN = [REPOSITORY / ".venv", REPOSITORY / "playbooks", *([] if sys.base_prefix == "/usr" else [Path(sys.base_prefix)])]
#: What a play or apt writes although nothing is installed: Ansible's own files, the lists of packages, logs.
RECORDS = [
    "/proc",
    "/dev",
    "/sys",
    CONTROL,
    "/root/.ansible",
    "/var/lib/apt",
    "/var/cache/apt",
    "/var/log",
    "/run",
    str(REPOSITORY),
    sys.base_prefix,
]
_PROGRAM = """
#include <stdio.h>
#include <string.h>
#include <unistd.h>
extern int needed(void);
static const char text[] = TEXT;
const char *message = MESSAGE;
int main(int count, char **words) {
    if (geteuid() == 0 || count != 3 || strcmp(words[1], "-machine") || strcmp(words[2], "help")) return 64;
    fputs(text, stdout);
    return NEEDED;
}
"""
X86, SYSTEM_DATA = "qemu-system-x86", "qemu-system-data"


def pinned(version: str, *more: tuple[str, str]) -> list[dict[str, str]]:
    packages = [(X86, version), (SYSTEM_DATA, "1:11.1"), *more]
    return [{"name": name, "version": version} for name, version in packages]


def domain(name: str, machine: str) -> str:
    return (
        f"<domain type='test'><name>{name}</name><memory>1024</memory><os><type arch='x86_64' machine='{machine}'>hvm</type></os></domain>"
    )


class Archive:
    """A repository of packages that are made here."""

    def __init__(self, root: DebianRoot, place: Path) -> None:
        self.folder = root.at("/srv/archive")
        self.folder.mkdir()
        self.place = place

    def add(self, name: str, version: str, *, depends: str = "", files: dict[str, Path] | None = None, postinst: str = "") -> None:
        tree = self.place / f"{name}-{version.replace(':', '_')}"
        (tree / "DEBIAN").mkdir(parents=True)
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Tests <tests@example.org>\nDescription: of a test\n"
        )
        (tree / "DEBIAN/control").write_text(control + (f"Depends: {depends}\n" if depends else ""))
        if postinst:
            (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\n{postinst}\n")
            (tree / "DEBIAN/postinst").chmod(0o755)
        for path, source in (files or {}).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / path)
        must("dpkg-deb", "--root-owner-group", "--build", tree, self.folder)

    def list(self) -> None:
        (self.folder / "Packages").write_text(must("dpkg-scanpackages", "--multiversion", ".", folder=self.folder))

    def qemu(self, machine_help: str, *, message: str = MESSAGE, library: Path | None = None) -> Path:
        """A program that lists these machine types, and may need a library."""
        path = self.place / f"program-{len(list(self.place.glob('program-*')))}"
        defined = {"TEXT": json.dumps(machine_help), "MESSAGE": json.dumps(message), "NEEDED": "needed()" if library else "0"}
        source = path.with_suffix(".c")
        source.write_text("".join(f"#define {name} {value}\n" for name, value in defined.items()) + _PROGRAM)
        must("gcc", "-o", path, source, *([library] if library else []))
        return path

    def library(self) -> Path:
        (self.place / "needed.c").write_text("int needed(void) { return 0; }\n")
        path = self.place / "libneeded.so.7"
        must("gcc", "-shared", "-fPIC", "-Wl,-soname,libneeded.so.7", "-o", path, self.place / "needed.c")
        return path


def must(*command: str | Path, folder: Path | None = None) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@dataclass
class Host:
    root: DebianRoot

    def play(self, cases: dict[str, dict[str, Any]], *options: str) -> dict[str, dict[str, Any]]:
        """The step of each case, with what the task told beside it."""
        usual = {
            "qemu_pmu_cap_packages": pinned("1:11.1"),
            "qemu_pmu_cap_migration_checked": True,
            "qemu_pmu_cap_uri": f"test://{CONTROL}/node.xml",
        }
        hosts = {name: {**usual, **variables} for name, variables in cases.items()}
        self.root.at(f"{CONTROL}/inventory.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
        settings = {"ansible_python_interpreter": "/usr/bin/python3", "ansible_connection": "local"}
        words = [
            "-m",
            "ansible",
            "playbook",
            "-i",
            f"{CONTROL}/inventory.yml",
            "-e",
            json.dumps(settings),
            "-v",
            "-f",
            "1",
            *options,
            PLAYBOOK,
        ]
        environment = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"ANSIBLE_DISPLAY_FAILED_STDERR": "0", "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
        done = self.root.run(REPOSITORY / ".venv/bin/python", *words, environment=environment, shows=SHOWN)
        found = {}
        for line in done.stdout.splitlines():
            head, arrow, text = line.partition(" => ")
            if arrow and '"exitguard": {"steps"' in text:
                result = json.loads(text)
                (step,) = result["exitguard"]["steps"]
                assert result["changed"] == (step["outcome"] == "done")
                assert head.startswith("fatal:") == (step["outcome"] in ("refused", "failed"))
                found[head.partition("[")[2].partition("]")[0]] = {**result, **step}
        assert set(found) == set(cases), done.stdout + done.stderr
        return found

    def play_once(self, *options: str, **variables: Any) -> dict[str, Any]:
        return self.play({"hv": variables}, *options)["hv"]

    def guests(self, *documents: str) -> None:
        self.root.at(f"{CONTROL}/node.xml").write_text(f"<node>{''.join(documents)}</node>")

    def versions(self) -> dict[str, str]:
        out = self.root.run(
            "dpkg-query", "--show", "--showformat=${Package} ${Version} ${db:Status-Status}\n", "qemu-*", "libneeded*"
        ).stdout
        return {name: version for name, version, status in re.findall(r"^(\S+) (\S+) (\S+)$", out, re.MULTILINE) if status == "installed"}

    def automatic(self) -> list[str]:
        return [name for name in self.root.must("apt-mark", "showauto").split() if name.startswith("qemu")]

    def files(self) -> dict[str, Entry]:
        return entries(self.root.path, without=RECORDS)


@pytest.fixture(scope="module")
def made(needs_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:  # noqa: ARG001 - skips
    if shutil.which("gcc") is None or shutil.which("dpkg-scanpackages") is None:
        pytest.skip("missing: gcc or dpkg-scanpackages (`make test` installs what it can)")
    with clean_root(DEPENDS) as root:
        archive = Archive(root, tmp_path_factory.mktemp("packages"))
        fill(archive)
        root.at("/etc/apt/sources.list").write_text("deb [trusted=yes] file:/srv/archive ./\n")
        shutil.rmtree(root.at("/var/lib/apt/lists"))
        root.must("apt-get", "-q", "update")
        root.at(CONTROL).mkdir()
        root.run("true", shows=SHOWN)  # the folders to show them in are there from now on
        yield Host(root)


def fill(archive: Archive) -> None:
    machine_help = MACHINE_HELP.read_text()
    fine, library = archive.qemu(machine_help), archive.library()
    programs = {
        "1:7.2": archive.qemu(machine_help, message="none"),
        "1:10.0": archive.qemu(machine_help, message="none"),
        "1:11.1": fine,
        "1:11.2": archive.qemu(machine_help, library=library),
        "1:11.3": fine,
        "1:12.0": archive.qemu("".join(line for line in machine_help.splitlines(keepends=True) if not line.startswith("pc-i440fx-2."))),
    }
    for version, program in programs.items():
        data = "1:7.2" if version == "1:7.2" else "1:11.1"
        archive.add(
            X86,
            version,
            depends=f"{SYSTEM_DATA} (= {data})",
            files={"usr/bin/qemu-system-x86_64": program},
            postinst="exit 1" if version == "1:11.3" else "",
        )
    archive.add(X86, "1:6.0", depends=f"{SYSTEM_DATA} (= 1:7.2)", files={"usr/bin/qemu-system-x86_64": fine})
    archive.add(SYSTEM_DATA, "1:7.2")
    archive.add(SYSTEM_DATA, "1:11.1")
    archive.add("qemu-system-gui", "1:7.2", depends=f"{X86} (= 1:7.2)")
    archive.add("qemu-nothing", "1:1")
    archive.add("libneeded7", "7", files={"usr/lib/x86_64-linux-gnu/libneeded.so.7": library})
    archive.list()


@pytest.fixture
def host(made: Host) -> Host:
    """The Debian with the old QEMU, whose data came along automatically, and two guests."""
    if made.versions() != {X86: "1:7.2", SYSTEM_DATA: "1:7.2"}:
        made.root.must("apt-mark", "unhold", X86)
        made.root.run("dpkg", "--purge", "--force-all", X86, SYSTEM_DATA, "qemu-system-gui", "libneeded7", "qemu-nothing")
        made.root.must("apt-get", "-q", "-y", "install", f"{X86}=1:7.2", f"{SYSTEM_DATA}=1:7.2")
    made.root.must("apt-mark", "auto", SYSTEM_DATA)
    made.guests(domain("web", "pc-q35-7.2"), domain("old-one", "pc-i440fx-2.1"), domain("alias", "q35"))
    return made


REFUSED = {
    "no word": ({"qemu_pmu_cap_migration_checked": False}, ["qemu_pmu_cap_migration_checked is not true"]),
    "no message": (
        {"qemu_pmu_cap_packages": pinned("1:10.0")},
        ["/usr/bin/qemu-system-x86_64 of the pinned packages does not hold", MESSAGE],
    ),
    "no machine": (
        {"qemu_pmu_cap_packages": pinned("1:12.0")},
        ["has no machine type pc-i440fx-2.1 (old-one): these guests would not start"],
    ),
    "not planned": ({"qemu_pmu_cap_machine_types": ["pc-q35-2.3", "pc"]}, ["has no machine type pc-q35-2.3 (the plan)"]),
    "no library": (
        {"qemu_pmu_cap_packages": pinned("1:11.2")},
        ["cannot tell which machine types", "it needs libneeded.so.7, which neither this host nor the pinned packages have"],
    ),
    "no version": (
        {"qemu_pmu_cap_packages": pinned("1:99")},
        ["qemu-system-x86 1:99 is not to be had; the archives of this host have 1:12.0, "],
    ),
    "no package": (
        {"qemu_pmu_cap_packages": [{"name": "qemu-none", "version": "1"}]},
        ["qemu-none 1 is not to be had; the archives of this host have no such package"],
    ),
    "not pinned": (
        {"qemu_pmu_cap_packages": [{"name": X86, "version": "1:11.1"}]},
        ["it would also install qemu-system-data 1:11.1, which nobody pinned"],
    ),
    "older": (
        {"qemu_pmu_cap_packages": [{"name": X86, "version": "1:6.0"}, {"name": SYSTEM_DATA, "version": "1:7.2"}]},
        ["it would go back to qemu-system-x86 1:6.0"],
    ),
    "no program": (
        {"qemu_pmu_cap_packages": [{"name": "qemu-nothing", "version": "1:1"}]},
        ["none of the pinned packages holds /usr/bin/qemu-system"],
    ),
    "no user": ({"qemu_pmu_cap_run_as": "nobody-at-all"}, ["there is no user 'nobody-at-all' to run it"]),
    "no libvirt": (
        {"qemu_pmu_cap_uri": "qemu+unix:///system?socket=/nonexistent"},
        ["which machine types the guests use cannot be told: libvirt at"],
    ),
    "no help": (
        {"qemu_pmu_cap_packages": [{"name": X86, "version": "1:7.2"}, {"name": SYSTEM_DATA, "version": "1:7.2"}]},
        ["are installed, and no QEMU there holds", "pin a build that does"],
    ),
}


@pytest.fixture(scope="module")
def refusals(made: Host) -> tuple[dict[str, dict[str, Any]], dict[str, Entry], dict[str, Entry]]:
    """What every case of REFUSED ended with, and the files before and after."""
    made.root.must("apt-get", "-q", "-y", "install", f"{X86}=1:7.2", f"{SYSTEM_DATA}=1:7.2")
    made.guests(domain("web", "pc-q35-7.2"), domain("old-one", "pc-i440fx-2.1"), domain("alias", "q35"))
    before = made.files()
    return made.play({name.replace(" ", "-"): variables for name, (variables, _) in REFUSED.items()}), before, made.files()


@pytest.mark.parametrize("name", REFUSED)
def test_host_is_refused_with_the_reason(refusals: tuple[dict[str, dict[str, Any]], Any, Any], name: str) -> None:
    step = refusals[0][name.replace(" ", "-")]
    assert step["outcome"] == "refused", step
    for words in REFUSED[name][1]:
        assert words in step["reason"]
    assert step["reason"].endswith("Nothing was changed")


def test_refused_hosts_are_as_they_were(refusals: tuple[Any, dict[str, Entry], dict[str, Entry]]) -> None:
    _, before, after = refusals
    assert after == before


def test_check_mode_tells_what_would_be_installed_and_changes_nothing(host: Host) -> None:
    before = host.files()
    step = host.play_once("--check")
    assert (step["outcome"], step["undo"]) == ("done", None)
    assert step["reason"].startswith("would install qemu-system-x86 1:11.1, qemu-system-data 1:11.1; guests that run keep their QEMU")
    assert step["machine_types"] == {"pc-i440fx-2.1": ["old-one"], "pc-q35-7.2": ["web"], "q35": ["alias"]}
    assert host.files() == before
    assert not host.root.at(WORK).exists()


def test_pinned_packages_are_installed_once_and_nothing_is_left_behind(host: Host) -> None:
    host.guests(domain("older", "pc-i440fx-1.7"))
    host.root.at(f"{WORK}/qemu-interrupted/tree").mkdir(parents=True)
    step = host.play_once()
    assert step["outcome"] == "done", step
    assert step["deprecated"] == ["pc-i440fx-1.7"]
    assert "deprecated there, and gone in a later one: pc-i440fx-1.7" in step["reason"]
    assert host.versions() == {X86: "1:11.1", SYSTEM_DATA: "1:11.1"}
    assert host.automatic() == [SYSTEM_DATA]
    assert list(host.root.at(WORK).iterdir()) == []

    before = host.files()
    again = host.play_once()
    assert (again["outcome"], again["changed"]) == ("already", False), again
    assert host.files() == before


def test_library_that_is_pinned_too_lets_the_program_run(host: Host) -> None:
    step = host.play_once(qemu_pmu_cap_packages=pinned("1:11.2", ("libneeded7", "7")))
    assert step["outcome"] == "done", step
    assert host.versions() == {X86: "1:11.2", SYSTEM_DATA: "1:11.1", "libneeded7": "7"}


def test_package_that_would_have_to_go_and_one_that_is_held_are_named(host: Host) -> None:
    host.root.must("apt-get", "-q", "-y", "install", "qemu-system-gui=1:7.2")
    before = host.files()
    step = host.play_once()
    assert step["outcome"] == "refused"
    assert "it would remove qemu-system-gui 1:7.2. Nothing is ever removed for a QEMU" in step["reason"]
    assert host.files() == before
    host.root.must("dpkg", "--purge", "qemu-system-gui")

    host.root.must("apt-mark", "hold", X86)
    step = host.play_once()
    host.root.must("apt-mark", "unhold", X86)
    assert step["outcome"] == "refused"
    assert "somebody holds qemu-system-x86 as it is (apt-mark hold)" in step["reason"]
    assert host.versions() == {X86: "1:7.2", SYSTEM_DATA: "1:7.2"}


def test_installation_that_breaks_off_says_what_is_there_and_is_not_tried_over_it(host: Host) -> None:
    step = host.play_once(qemu_pmu_cap_packages=pinned("1:11.3"))
    assert step["outcome"] == "failed"
    assert "the installation did not end well: apt-get" in step["reason"]
    assert "Installed are now qemu-system-data 1:11.1: look at the host before trying again" in step["reason"]
    assert list(host.root.at(WORK).iterdir()) == []

    again = host.play_once()
    assert again["outcome"] == "refused"
    assert "dpkg has left packages half-way: qemu-system-x86" in again["reason"]
