"""playbooks/kvm_enable_pmu_off.yml on hosts that are file trees, with guests of libvirt's own test driver.

Every case is a host of one play; a few more plays show what comes after.
"""

import ast
import contextlib
import fcntl
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.integration
pytest.importorskip("libvirt", reason="libvirt-python cannot be loaded")

PLAYBOOKS = Path(__file__).resolve().parents[2] / "playbooks"
PLAYBOOK = PLAYBOOKS / "kvm_enable_pmu_off.yml"
OWN_FILE = "etc/modprobe.d/exitguard-kvm-enable-pmu.conf"
WORD = {"kvm_enable_pmu_off_opted_out_guests_stay_away": True}
NOVA = "http://openstack.org/xmlns/libvirt/nova/1.1"
KVM_CREATE_VM = 0xAE01  # <linux/kvm.h>

OFF, ON, SILENT = "<features><pmu state='off'/></features>", "<features><pmu/></features>", ""
LOCKED = "<metadata><e:locked xmlns:e='urn:exitguard:domain:1'/></metadata>"
FLAVOR = (
    f"<metadata><nova:instance xmlns:nova='{NOVA}'><nova:flavor name='m1'><nova:extraSpecs>"
    "<nova:extraSpec name='hw:pmu'>True</nova:extraSpec></nova:extraSpecs></nova:flavor></nova:instance></metadata>"
)
IMAGE = (
    f"<metadata><nova:instance xmlns:nova='{NOVA}'><nova:image uuid='x'><nova:properties>"
    "<nova:property name='hw_pmu'>yes</nova:property></nova:properties></nova:image></nova:instance></metadata>"
)


@dataclass
class Case:
    """A host, and what is to become of it. `outcome` is that of the step; all of `words` are in its reason."""

    outcome: str
    words: tuple[str, ...]
    guests: dict[str, str] = field(default_factory=lambda: {"web": SILENT, "db": OFF})
    files: dict[str, str] = field(default_factory=dict)
    built_in: bool = False
    value: str = "Y"
    variables: dict[str, Any] = field(default_factory=lambda: dict(WORD))
    links: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def make(self, folder: Path) -> dict[str, Any]:
        """The host below `folder`, and its variables."""
        root = folder / "root"
        files = {
            "proc/cmdline": "quiet console=ttyS0\n",
            "proc/1/comm": "init\n",
            "proc/1/cmdline": "/sbin/init\0",
            "sys/module/kvm/parameters/enable_pmu": f"{self.value}\n",
            "etc/modprobe.d/README.txt": "options kvm enable_pmu=Y\n",
            **({} if self.built_in else {"sys/module/kvm/initstate": "live\n"}),
            **self.files,
        }
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        for name, target in {"proc/1/fd/0": "/dev/null", **self.links}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(target)
        for name in self.without:
            shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()
        (folder / "node.xml").write_text(f"<node>{''.join(document(name, text) for name, text in self.guests.items())}</node>")
        return {
            "kvm_enable_pmu_off_uri": f"test://{folder}/node.xml",
            "kvm_enable_pmu_off_sysroot": str(root),
            "kvm_enable_pmu_off_lock_file": str(folder / "lock"),
            **self.variables,
        }


def document(name: str, inside: str) -> str:
    return f"<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os>{inside}</domain>"


CASES = {
    "plain": Case("done", (f"/{OWN_FILE}; the module has Y now, in force when the kvm module is next loaded",)),
    "not-loaded": Case(
        "done",
        ("the module's value is not known now",),
        files={f"lib/modules/{platform.release()}/modules.dep": "kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko.xz\n"},
        without=("sys/module/kvm",),
    ),
    "no-guests": Case("done", (), guests={}),
    "locked-and-off": Case("done", (), guests={"locked": f"{LOCKED}{OFF}"}),
    "operator-did-it": Case(
        "already",
        ("/etc/modprobe.d/kvm.conf:3 sets enable_pmu=0",),
        files={"etc/modprobe.d/kvm.conf": "# ours\n\noptions kvm \\\n enable_pmu=0\n"},
    ),
    "vendor-did-it": Case("already", ("/usr/lib/modprobe.d/v.conf:1",), files={"usr/lib/modprobe.d/v.conf": "options kvm enable_pmu=n\n"}),
    "booted-with-it": Case(
        "already", ("/proc/cmdline sets kvm.enable-pmu=N",), files={"proc/cmdline": "quiet kvm.enable-pmu=N\n"}, built_in=True, value="N"
    ),
    "edited-but-off": Case("already", ("sets enable_pmu=N",), files={OWN_FILE: "options kvm enable_pmu=N nx_huge_pages=off\n"}),
    "no-word": Case("refused", ("kvm_enable_pmu_off_opted_out_guests_stay_away is not true",), variables={}),
    "asks": Case("refused", ("perf-lab (<pmu state='on'/> in its ", "silently lose it"), guests={"web": OFF, "perf-lab": ON}),
    "flavor-asks": Case("refused", ("vm-7 (the flavor's hw:pmu in its ",), guests={"vm-7": FLAVOR + OFF}),
    "image-asks": Case("refused", ("vm-8 (the image's hw_pmu in its ",), guests={"vm-8": IMAGE}),
    "locked": Case("refused", ("marked as locked, and may have a PMU to lose: locked",), guests={"locked": LOCKED}),
    "no-libvirt": Case(
        "refused",
        ("cannot be told: libvirt at qemu+unix",),
        variables={**WORD, "kvm_enable_pmu_off_uri": "qemu+unix:///system?socket=/nonexistent"},
    ),
    "outside-libvirt": Case(
        "refused",
        ("KVM guests run outside libvirt", "firecracker (77)"),
        files={"proc/77/comm": "firecracker\n", "proc/77/cmdline": "firecracker\0--id\0x"},
        links={"proc/77/fd/9": "anon_inode:kvm-vm"},
    ),
    "seen-by-debugfs": Case(
        "refused",
        ("KVM guests run outside libvirt", "a process that is not visible here (4711)"),
        files={"sys/kernel/debug/kvm/4711-12/exits": "0"},
    ),
    "no-processes": Case("refused", ("no process is visible in",), without=("proc/1",)),
    "contradicted": Case(
        "refused",
        ("/etc/modprobe.d/tuned.conf:2 sets enable_pmu=Y",),
        files={"etc/modprobe.d/tuned.conf": "options kvm_amd nested=1\noptions kvm enable_pmu=Y\n"},
    ),
    "bare-is-on": Case(
        "refused", ("/etc/modprobe.d/t.conf:1 sets enable_pmu,",), files={"etc/modprobe.d/t.conf": "options kvm enable_pmu\n"}
    ),
    "booted-against-it": Case("refused", ("/proc/cmdline sets kvm.enable_pmu=1",), files={"proc/cmdline": 'a="x y" kvm.enable_pmu=1\n'}),
    "edited-to-on": Case("refused", (f"/{OWN_FILE}:1 sets enable_pmu=Y",), files={OWN_FILE: "options kvm enable_pmu=Y\n"}),
    "emptied": Case("refused", ("is not as this remedy writes it, and sets nothing",), files={OWN_FILE: "# not now\n"}),
    "install-command": Case(
        "refused", ("/etc/modprobe.d/i.conf:1: a command loads kvm",), files={"etc/modprobe.d/i.conf": "install kvm /bin/true\n"}
    ),
    "built-in": Case("refused", ("KVM is built into this kernel", "put kvm.enable_pmu=N on the kernel command line"), built_in=True),
    "old-kernel": Case(
        "refused",
        ("has no parameter enable_pmu",),
        files={"sys/module/kvm/parameters/halt_poll_ns": "1"},
        without=("sys/module/kvm/parameters/enable_pmu",),
    ),
    "no-kvm": Case("refused", ("has no kvm module",), without=("sys/module/kvm",)),
    "unified-image": Case("refused", ("an initramfs may be in there",), files={"boot/efi/EFI/Linux/debian.efi": "MZ"}),
    "unified-image-left": Case(
        "done", (), files={"boot/efi/EFI/Linux/debian.efi": "MZ"}, variables={**WORD, "kvm_enable_pmu_off_initramfs": "leave"}
    ),
    "linked-away": Case("refused", ("is no regular file",), links={OWN_FILE: "/dev/null"}),
}


def play(folder: Path, hosts: dict[str, dict[str, Any]], *options: str) -> dict[str, dict[str, Any]]:
    """The result of every host: the module's, with `task_failed`."""
    inventory = folder / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    settings = {"ansible_connection": "local", "exitguard_become": False, "ansible_python_interpreter": sys.executable}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "COV"))}
    environment |= {"ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"}
    environment |= {"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_PIPELINING": "1", "ANSIBLE_DISPLAY_FAILED_STDERR": "0"}
    command = [
        Path(sys.executable).parent / "ansible-playbook",
        "-i",
        inventory,
        "-e",
        json.dumps(settings),
        "-v",
        "-f",
        "4",
        *options,
        PLAYBOOK,
    ]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False
    )
    found = {}
    for line in done.stdout.splitlines():
        head, arrow, result = line.partition(" => ")
        if arrow and '"exitguard": {"steps"' in result:
            found[head.partition("[")[2].partition("]")[0]] = {**json.loads(result), "task_failed": head.startswith("fatal:")}
    assert set(found) == set(hosts), done.stdout + done.stderr
    for result in found.values():
        result["output"] = done.stdout
    return found


def step_of(result: dict[str, Any]) -> dict[str, Any]:
    (step,) = result["exitguard"]["steps"]
    assert step["subject"] == "host"
    assert step["undo"] is None
    assert result["changed"] == (step["outcome"] == "done")
    assert result["task_failed"] == (step["outcome"] in ("refused", "failed"))
    return step


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.readlink().as_posix() if path.is_symlink() else path.read_text()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@dataclass
class Played:
    hosts: dict[str, dict[str, Any]]
    before: dict[str, dict[str, str]]
    checked: dict[str, dict[str, Any]]
    after_check: dict[str, dict[str, str]]
    results: dict[str, dict[str, Any]]
    after: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Every case once in check mode, then in earnest."""
    folder = tmp_path_factory.mktemp("kvm")
    hosts = {name: case.make(folder / name) for name, case in CASES.items()}

    def look() -> dict[str, dict[str, str]]:
        return {name: contents(folder / name / "root") for name in CASES}

    before = look()
    checked = play(folder, hosts, "--check", "--diff")
    assert not list(folder.glob("*/lock")), "check mode makes no lock"
    after_check = look()
    return Played(hosts, before, checked, after_check, play(folder, hosts), look())


@pytest.mark.parametrize("name", CASES)
def test_host_ends_as_its_state_demands(played: Played, name: str) -> None:
    step = step_of(played.results[name])
    assert step["outcome"] == CASES[name].outcome, step
    for words in CASES[name].words:
        assert words in step["reason"]


@pytest.mark.parametrize("name", CASES)
def test_check_mode_tells_the_same_and_changes_nothing(played: Played, name: str) -> None:
    assert step_of(played.checked[name]) == step_of(played.results[name])
    assert played.after_check[name] == played.before[name]


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_done_changes_nothing_and_what_is_adds_one_file(played: Played, name: str) -> None:
    added = {path: text for path, text in played.after[name].items() if played.before[name].get(path) != text}
    if CASES[name].outcome != "done":
        assert added == {}
        return
    assert list(added) == [OWN_FILE]
    assert [line for line in added[OWN_FILE].splitlines() if not line.startswith("#")] == ["options kvm enable_pmu=N"]
    assert "kvm_enable_pmu_off_state=absent" in added[OWN_FILE]


def test_diff_shows_the_file(played: Played) -> None:
    assert "+options kvm enable_pmu=N\n" in played.checked["plain"]["output"]


def test_second_run_changes_nothing_and_the_way_back_is_exact(tmp_path: Path) -> None:
    hosts = {"hv": CASES["plain"].make(tmp_path / "hv")}
    root = tmp_path / "hv" / "root"
    before = contents(root)
    assert step_of(play(tmp_path, hosts)["hv"])["outcome"] == "done"
    assert (root / OWN_FILE).stat().st_mode & 0o7777 == 0o644
    done = contents(root)

    again = step_of(play(tmp_path, hosts)["hv"])
    assert (again["outcome"], contents(root)) == ("already", done)

    back = {"hv": {**hosts["hv"], "kvm_enable_pmu_off_state": "absent", "kvm_enable_pmu_off_opted_out_guests_stay_away": False}}
    checked = play(tmp_path, back, "--check", "--diff")["hv"]
    assert step_of(checked)["outcome"] == "done"
    assert "-options kvm enable_pmu=N\n" in checked["output"]
    assert contents(root) == done
    assert step_of(play(tmp_path, back)["hv"])["outcome"] == "done"
    assert contents(root) == before
    assert step_of(play(tmp_path, back)["hv"])["outcome"] == "already"


def test_file_that_somebody_edited_stays(tmp_path: Path) -> None:
    hosts = {"hv": {**CASES["edited-but-off"].make(tmp_path / "hv"), "kvm_enable_pmu_off_state": "absent"}}
    before = contents(tmp_path / "hv" / "root")
    step = step_of(play(tmp_path, hosts)["hv"])
    assert step["outcome"] == "refused"
    assert "was edited since this remedy wrote it: remove it by hand" in step["reason"]
    assert contents(tmp_path / "hv" / "root") == before


@contextlib.contextmanager
def silent_socket(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        yield


def test_libvirt_that_never_answers_and_a_lock_that_is_held_end_in_time(tmp_path: Path) -> None:
    folder = Path(os.path.relpath(tmp_path))
    held = {**CASES["plain"].make(tmp_path / "held"), "kvm_enable_pmu_off_timeout_seconds": 1}
    hung = {**CASES["plain"].make(tmp_path / "hung"), "kvm_enable_pmu_off_timeout_seconds": 1}
    hung["kvm_enable_pmu_off_uri"] = f"qemu+unix:///system?socket={tmp_path}/s"
    with silent_socket(folder / "s"), (tmp_path / "held/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = play(tmp_path, {"held": held, "hung": hung})
    assert step_of(results["held"])["outcome"] == "refused"
    assert "another attempt has held" in step_of(results["held"])["reason"]
    assert step_of(results["hung"])["outcome"] == "refused"
    assert "has not answered within 1 seconds" in step_of(results["hung"])["reason"]
    assert not (tmp_path / "hung/root" / OWN_FILE).exists()


def test_real_kvm_guest_of_no_libvirt_is_found(tmp_path: Path) -> None:
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        guest = fcntl.ioctl(device, KVM_CREATE_VM, 0)
    except OSError as error:
        pytest.skip(f"no KVM guest starts here: /dev/kvm: {error.strerror}")
    hosts = {"hv": CASES["plain"].make(tmp_path / "hv")}
    shutil.rmtree(tmp_path / "hv/root/proc")
    (tmp_path / "hv/root/proc").symlink_to("/proc")
    try:
        step = step_of(play(tmp_path, hosts)["hv"])
    finally:
        os.close(guest)
        os.close(device)
    assert step["outcome"] == "refused"
    assert f"({os.getpid()})" in step["reason"]


@pytest.mark.parametrize(
    "path",
    [
        PLAYBOOKS / folder / f"exitguard_{name}.py"
        for folder, names in (
            ("library", ("kvm_enable_pmu", "qemu_package")),
            ("module_utils", ("guests", "host_step", "initramfs", "modprobe", "qemu_packages", "qemu_program")),
        )
        for name in names
    ],
    ids=lambda path: path.stem,
)
def test_module_is_python_3_8_and_imports_what_hosts_have(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names | {"libvirt"}}
    assert {name for name in foreign if not name.startswith("ansible.module_utils.")} == set()
