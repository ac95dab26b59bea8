"""Processes of real QEMUs: deleted programs, other mount namespaces, impostors, and guests that libvirt does not know."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from audits import domain_facts, observe_uri
from domain_documents import guest_xml, uuid_of
from libvirt_lab import CAPABILITY_STRING, QEMU, LibvirtLab

from exitguard.facts.processes import read_processes, read_unmanaged
from exitguard.facts.qemu import QemuReader
from exitguard.facts.qemu_command_line import _WITHOUT_VALUE
from exitguard.facts.tree import HostTree
from exitguard.facts.unchanged_program import MARGIN_SECONDS
from exitguard.model.host import QemuBinary
from exitguard.model.record import Observed

pytestmark = pytest.mark.integration

PLAIN_OPTIONS = ("-nodefaults", "-no-user-config", "-display", "none", "-m", "16", "-S")


@pytest.fixture(scope="module")
def version() -> str:
    """What QEMU itself says it is: `7.2.22 (Debian ...)`."""
    text = subprocess.run([str(QEMU), "--version"], capture_output=True, text=True, check=True).stdout
    return text.splitlines()[0].removeprefix("QEMU emulator version ")


@contextlib.contextmanager
def plain_qemu(*words: str) -> Iterator[int]:
    """A process of QEMU, or one that becomes one, running its program; it ends with the block."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def wait_for(found: object) -> None:
    """Until `found()` is true."""
    assert callable(found)
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_program_that_was_removed_under_a_running_guest_is_still_read(lab: LibvirtLab, version: str) -> None:
    copy = lab.copy_qemu("removed")
    with copy.open("ab") as file:
        file.write(b"\0" + CAPABILITY_STRING + b"\0")
    lab.define(guest_xml("removed", mode="maximum", emulator=copy))
    lab.start("removed")
    copy.unlink()
    facts = observe_uri(lab.uri)
    process = domain_facts(facts, "removed").process
    assert process is not None
    executable = process.get().executable.get()
    assert executable.deleted is True
    assert executable.path == str(copy)
    assert f"{executable.version.get().version} ({executable.version.get().package})" == version
    assert executable.capability_string.value is True
    # What the next start would run is another matter: there is nothing at that path any more.
    on_disk = {binary.path: binary for binary in facts.host.qemu.get()}
    assert on_disk[str(copy)].capability_string.value is None


def test_program_that_was_replaced_under_a_running_guest_is_told_apart(lab: LibvirtLab) -> None:
    copy = lab.copy_qemu("replaced")
    lab.define(guest_xml("replaced", mode="maximum", emulator=copy))
    lab.start("replaced")
    upgraded = copy.with_name("upgraded")
    upgraded.write_bytes(copy.read_bytes() + b"\0" + CAPABILITY_STRING + b"\0")
    upgraded.chmod(0o755)
    upgraded.rename(copy)
    facts = observe_uri(lab.uri)
    process = domain_facts(facts, "replaced").process
    assert process is not None
    executable = process.get().executable.get()
    assert executable.deleted is True
    assert executable.capability_string.value is (CAPABILITY_STRING in QEMU.read_bytes())
    assert {binary.path: binary.capability_string.value for binary in facts.host.qemu.get()}[str(copy)] is True


def test_program_in_another_mount_namespace_is_read_there(lab: LibvirtLab, version: str) -> None:
    """The path that the process shows leads, on this side, to another file."""
    hidden = lab.copy_qemu("hidden")
    decoy = lab.copy_qemu("decoy")
    decoy.write_bytes(b"QEMU emulator version 99.9 (decoy)\0")
    mount = 'mount --make-rprivate / && mount --bind "$1" "$2" && shift && exec "$@"'
    words = ("unshare", "--mount", "sh", "-c", mount, "sh", str(hidden), str(decoy), *PLAIN_OPTIONS, "-accel", "tcg")
    with plain_qemu(*words) as pid:
        link = Path(f"/proc/{pid}/exe")
        wait_for(lambda: link.readlink() == decoy)
        binary = QemuReader(HostTree()).read_running(pid)
    assert binary.path == str(decoy)
    assert f"{binary.version.get().version} ({binary.version.get().package})" == version
    assert QemuReader(HostTree()).read_file(str(decoy)).version.get().version == "99.9"


@pytest.mark.usefixtures("kvm")
def test_kvm_guest_outside_libvirt_is_unmanaged(lab: LibvirtLab) -> None:
    ours = lab.copy_qemu("unmanaged")
    managed = lab.copy_qemu("managed")
    lab.define(guest_xml("managed", kind="kvm", mode="custom", emulator=managed))
    lab.start("managed")
    with plain_qemu(str(ours), *PLAIN_OPTIONS, "-accel", "kvm", "-cpu", "kvm64") as pid:
        wait_for(lambda: any("kvm-vm" in name for name in links(pid)))
        unmanaged = observe_uri(lab.uri).host.unmanaged.get()
    by_program = {guest.executable: guest.command for guest in unmanaged}
    assert by_program[str(ours)] == QEMU.name[:15]
    assert str(managed) not in by_program


@pytest.mark.usefixtures("kvm")
def test_who_holds_a_virtual_machine_is_told_by_its_descriptors_too(lab: LibvirtLab) -> None:
    """Where debugfs cannot be read: from /proc/<pid>/fd, with the pids of the managed guests left out."""
    ours = lab.copy_qemu("by-descriptor")
    with plain_qemu(str(ours), *PLAIN_OPTIONS, "-accel", "kvm", "-cpu", "kvm64") as pid:
        wait_for(lambda: any("kvm-vm" in name for name in links(pid)))
        assert str(ours) in {guest.executable for guest in read_unmanaged(HostTree(), ()).get()}
        assert str(ours) not in {guest.executable for guest in read_unmanaged(HostTree(), (pid,)).get()}


def links(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for name in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(name.readlink()))
    return found


@contextlib.contextmanager
def impostor(uuid: str, *, user_id: int) -> Iterator[int]:
    """A process of another program whose command line says that it runs the domain, with its PMU off."""
    code = f"import os, sys; os.setgroups([]); os.setuid({user_id}); print(flush=True); sys.stdin.read()"
    arguments = [sys.executable, "-c", code, "-uuid", uuid, "-cpu", "max,pmu=off"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def test_impostor_of_another_user_is_not_taken_for_the_guest(lab: LibvirtLab) -> None:
    lab.define(guest_xml("imitated", mode="maximum", pmu="on"))
    lab.start("imitated")
    with impostor(uuid_of("imitated"), user_id=65534) as pid:
        assert pid in {running.pid for running in read_processes(HostTree()).by_uuid[uuid_of("imitated")]}
        process = domain_facts(observe_uri(lab.uri), "imitated").process
    assert process is not None
    assert process.get().cpu.get().pmu == "on"


def test_two_processes_of_the_guests_own_user_are_one_too_many(lab: LibvirtLab) -> None:
    lab.define(guest_xml("doubled", mode="maximum", pmu="on"))
    lab.start("doubled")
    owner = Path(f"/proc/{lab.pid(uuid_of('doubled'))}").stat().st_uid
    with impostor(uuid_of("doubled"), user_id=owner):
        process = domain_facts(observe_uri(lab.uri), "doubled").process
    assert process is not None
    assert process.reason == "2 processes claim this domain: expected one"


def options_of_help() -> set[str]:
    """Every option that -help shows: `-k language`, `-fda/-fdb file`, `-h or -help`, `--preconfig`."""
    text = subprocess.run([str(QEMU), "-help"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^-(-?[A-Za-z0-9_-]+)(?:/-([a-z]+))?(?: or -([a-z]+))?(?=\s|$)", text, re.MULTILINE)
    return {"-" + name.lstrip("-") for names in found for name in names if name}


def takes_value(option: str) -> bool:
    """Told by QEMU itself: it refuses the first word that is neither an option nor an option's value, before it does anything."""
    refused = subprocess.run([str(QEMU), option, "-first-trap", "-second-trap"], capture_output=True, text=True, check=False).stderr
    assert ("-first-trap" in refused) != ("-second-trap" in refused), refused
    return "-second-trap" in refused


def test_options_without_a_value_are_those_of_the_real_qemu() -> None:
    """A word is taken for an option's value by this list alone: one mistake, and the rest of a command line is out of step."""
    options = options_of_help()
    assert {"-h", "-help", "-S", "-cpu", "-preconfig", "-hdd"} <= options
    without_value = {option for option in options if not takes_value(option)}
    assert without_value - _WITHOUT_VALUE == set(), "take no value, and are not known to"
    assert _WITHOUT_VALUE & (options - without_value) == set(), "take a value, and are said not to"


def test_process_numbers_are_those_of_this_machine(lab: LibvirtLab) -> None:
    """The lab's libvirt counts processes in a namespace of its own, as one in a container does; the uuid is what joins them."""
    lab.define(guest_xml("counted", mode="maximum"))
    lab.start("counted")
    inner = int((lab.root / "run/libvirt/qemu/counted.pid").read_text())
    running = read_processes(HostTree()).by_uuid[uuid_of("counted")]
    assert [each.pid for each in running] == [lab.pid(uuid_of("counted"))]
    assert inner != running[0].pid
    assert Path(f"/proc/{running[0].pid}").stat().st_uid == running[0].uid


# What another user sees of the program that runs


# Its modules are loaded while it is root: an unprivileged user need not be able to read this Python.
AS_NOBODY = """
import os, sys
from exitguard.facts.processes import describe_process, read_processes
from exitguard.facts.qemu import QemuReader
from exitguard.facts.tree import HostTree
from exitguard.facts.unchanged_program import BootClock
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
pid, boot_seconds = int(sys.argv[1]), float(sys.argv[2])
running, = (each for found in read_processes(HostTree()).by_uuid.values() for each in found if each.pid == pid)
reader = QemuReader(HostTree())
if boot_seconds:
    reader.program_files.clock = BootClock(boot_seconds, boot_seconds + 3, os.sysconf("SC_CLK_TCK"))
print(describe_process(running, reader).executable.model_dump_json())
"""


def seen_by_nobody(pid: int, *, allow_no_margin: bool = True) -> Observed[QemuBinary]:
    """The program of a process as an unprivileged user tells it.

    By this machine's own clock; or by one that was never set, and by which a file has to be no more than older than the process.
    """
    boot_seconds = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + MARGIN_SECONDS if allow_no_margin else 0
    command = [sys.executable, "-c", AS_NOBODY, str(pid), str(boot_seconds)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Observed[QemuBinary].model_validate_json(shown)


@contextlib.contextmanager
def guest_of_root(program: Path, *prefix: str) -> Iterator[int]:
    """A QEMU outside libvirt, started by its path when that is older than a clock tick; it has its command line when this returns."""
    time.sleep(0.1)
    words = (*prefix, str(program), "-uuid", "0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004", *PLAIN_OPTIONS, "-accel", "tcg")
    with plain_qemu(*words) as pid:
        wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(bytes(program) + b"\0"))
        yield pid


def test_unprivileged_user_knows_an_unchanged_program(lab: LibvirtLab, version: str) -> None:
    copy = lab.copy_qemu("unchanged")
    with guest_of_root(copy) as pid:
        executable = seen_by_nobody(pid)
        by_root = QemuReader(HostTree()).read_running(pid)
    assert executable.source == f"{copy}, unchanged since before the process started"
    assert executable.get() == by_root.model_copy(
        update={name: getattr(by_root, name).model_copy(update={"source": str(copy)}) for name in ("version", "capability_string")}
    )
    assert f"{executable.get().version.get().version} ({executable.get().version.get().package})" == version


def test_unprivileged_user_does_not_take_an_upgraded_program_for_the_one_that_runs(lab: LibvirtLab) -> None:
    copy = lab.copy_qemu("upgraded-since")
    with guest_of_root(copy) as pid:
        upgraded = copy.with_name("new")
        upgraded.write_bytes(copy.read_bytes() + b"\0" + CAPABILITY_STRING + b"\0")
        upgraded.chmod(0o755)
        upgraded.rename(copy)
        executable = seen_by_nobody(pid)
    assert executable.value is None
    assert f"{copy} was replaced or changed after the process started" in (executable.reason or "")
    assert executable.unlock == "run as root, or grant CAP_SYS_PTRACE"


def test_unprivileged_user_does_not_take_the_hosts_file_for_a_containers(lab: LibvirtLab) -> None:
    hidden, shown = lab.copy_qemu("of-the-container"), lab.copy_qemu("of-the-host")
    mount = 'mount --make-rprivate / && mount --bind "$1" "$2" && shift && exec "$@"'
    with guest_of_root(shown, "unshare", "--mount", "sh", "-c", mount, "sh", str(hidden)) as pid:
        executable = seen_by_nobody(pid)
    assert executable.reason == f"permission denied, and {shown} is another one for the process: it lives in another mount namespace"


def test_unprivileged_user_does_not_trust_a_program_that_was_just_installed(lab: LibvirtLab) -> None:
    with guest_of_root(lab.copy_qemu("just-installed")) as pid:
        executable = seen_by_nobody(pid, allow_no_margin=False)
    assert executable.value is None
    assert (executable.reason or "").startswith("permission denied, and ")


def test_private_mounts_of_libvirts_own_do_not_hide_the_program(lab: LibvirtLab) -> None:
    """The lab's libvirtd lives in a mount namespace with other folders for its state; the programs in it are this machine's."""
    copy = lab.copy_qemu("in-the-lab")
    lab.define(guest_xml("in-the-lab", mode="maximum", emulator=copy))
    time.sleep(0.1)
    lab.start("in-the-lab")
    assert seen_by_nobody(lab.pid(uuid_of("in-the-lab"))).get().path == str(copy)
