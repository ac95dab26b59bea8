"""The processes behind running domains, and virtual machines that libvirt does not know. One pass over /proc for the host.

A command line proves little by itself, since any user can start a process with any arguments. Where libvirt's label names the
user that the domain runs as, only a process of that user counts; and it must be the only one that carries the domain's uuid.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exitguard.facts import qemu_command_line
from exitguard.facts.qemu import EXECUTABLE, TRACE_UNLOCK, QemuReader, executable_path
from exitguard.facts.qemu_command_line import QemuCommandLine
from exitguard.facts.tree import HostTree, unlock_for, why
from exitguard.model.domain import QemuProcess
from exitguard.model.host import QemuBinary, UnmanagedGuest
from exitguard.model.record import Observed, seen, unseen

#: The kernel bounds a command line at a quarter of the stack limit; QEMU's are some kilobytes.
_COMMAND_LINE_LIMIT_BYTES = 1 << 20
_UUID_OPTION = b"\x00-uuid\x00"
_KVM_VM_LINK = "anon_inode:kvm-vm"
#: The source as facts name it: a pid is a sample, and would change the hash of an unchanged domain at every start.
COMMAND_LINE = "/proc/<pid>/cmdline"
_DEBUGFS_KVM = "/sys/kernel/debug/kvm"
_MAX_TICKS = (1 << 64) - 1  # %llu in fs/proc/array.c


@dataclass(frozen=True)
class RunningQemu:
    """One process that was started with `-uuid`."""

    pid: int
    uid: int
    start_ticks: int
    command_line: QemuCommandLine
    #: The first word of its command line: by which path it was started, as it says itself.
    program: str = ""


@dataclass(frozen=True)
class ProcessTable:
    """Every QEMU process of the host that names a uuid, by that uuid; or why /proc could not be read."""

    by_uuid: Mapping[str, tuple[RunningQemu, ...]]
    listing: Observed[int]


def read_processes(tree: HostTree) -> ProcessTable:
    """One pass over /proc."""
    names = tree.names("/proc")
    if names.value is None:
        return ProcessTable({}, Observed(source="/proc", reason=names.reason, unlock=names.unlock))
    pids = [int(name) for name in names.value if name.isascii() and name.isdigit()]
    if not pids:
        return ProcessTable({}, unseen("/proc", "no process is visible there", unlock="a mounted /proc without hidepid"))
    found: dict[str, list[RunningQemu]] = {}
    for pid in pids:
        process = _read_process(tree, pid)
        if process is not None and process.command_line.uuid is not None:
            found.setdefault(process.command_line.uuid, []).append(process)
    return ProcessTable({uuid: tuple(processes) for uuid, processes in found.items()}, seen("/proc", len(pids)))


def _read_process(tree: HostTree, pid: int) -> RunningQemu | None:
    """A process with `-uuid` on its command line; None for any other, and for one that ends meanwhile."""
    content = tree.read_bytes(f"/proc/{pid}/cmdline", limit_bytes=_COMMAND_LINE_LIMIT_BYTES).value
    if content is None or _UUID_OPTION not in content:
        return None
    start_ticks = read_start_ticks(tree, pid)
    try:
        uid = os.stat(tree.locate(f"/proc/{pid}")).st_uid  # noqa: PTH116 - a string, for speed
    except OSError:
        return None
    if start_ticks is None:
        return None
    argv = tuple(content.rstrip(b"\x00").decode("utf-8", "replace").split("\x00"))
    return RunningQemu(pid, uid, start_ticks, qemu_command_line.parse(argv), argv[0])


def read_start_ticks(tree: HostTree, pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat (proc(5)): clock ticks after boot at which the process started; None if it is gone."""
    text = tree.read_text(f"/proc/{pid}/stat").value
    return parse_start_ticks(text) if text is not None else None


def parse_start_ticks(stat: str) -> int | None:
    """The command name, field 2, is in parentheses and may hold anything, so fields are counted after the last one."""
    fields = stat.rpartition(")")[2].split()
    try:
        ticks = int(fields[19])
    except (IndexError, ValueError):
        return None
    return ticks if 0 <= ticks <= _MAX_TICKS else None


def match_process(table: ProcessTable, uuid: str, process_uid: int | None) -> Observed[RunningQemu]:
    """The process that runs the domain, or why none can be named."""
    source = f"/proc/*/cmdline, -uuid {uuid}"
    if table.listing.reason is not None:
        return unseen("/proc", table.listing.reason, unlock=table.listing.unlock)
    candidates = [process for process in table.by_uuid.get(uuid, ()) if process_uid is None or process.uid == process_uid]
    if len(candidates) == 1:
        return seen(COMMAND_LINE, candidates[0])
    if candidates:
        return unseen(source, f"{len(candidates)} processes claim this domain: expected one")
    if table.by_uuid.get(uuid):
        return unseen(source, f"a process names this domain, but runs as another user than its label's {process_uid}")
    return unseen(source, "no visible process runs it", unlock="the host's own process table (hidepid=0, the host's PID namespace)")


def describe_process(running: RunningQemu, reader: QemuReader) -> QemuProcess:
    """What the process itself shows: its -cpu, and the file that it runs."""
    line = running.command_line
    binary = reader.read_running(running.pid)
    from_path: Observed[QemuBinary] | None = None
    if binary.capability_string.unlock == TRACE_UNLOCK and reader.tree.is_this_machine:
        from_path = reader.read_started(running.pid, running.program, running.start_ticks)
    if read_start_ticks(reader.tree, running.pid) != running.start_ticks:
        executable: Observed[QemuBinary] = unseen(EXECUTABLE, "the process ended while it was read")
    elif from_path is not None:
        executable = from_path
    elif binary.capability_string.reason is not None:
        executable = Observed(source=EXECUTABLE, reason=binary.capability_string.reason, unlock=binary.capability_string.unlock)
    else:
        executable = seen(EXECUTABLE, binary)
    return QemuProcess(
        cpu=line.cpu.model_copy(update={"source": COMMAND_LINE}),
        accelerator=line.accelerator.model_copy(update={"source": COMMAND_LINE}),
        executable=executable,
        incoming=seen(COMMAND_LINE, line.incoming),
    )


def read_unmanaged(tree: HostTree, managed_pids: Iterable[int]) -> Observed[tuple[UnmanagedGuest, ...]]:
    """Processes that hold a KVM virtual machine and are none of `managed_pids`; or why they cannot be told.

    /sys/kernel/debug/kvm has a directory <pid>-<fd> for each VM (virt/kvm/kvm_main.c); else /proc/<pid>/fd shows who holds one.
    """
    managed = set(managed_pids)
    debugfs = tree.names(_DEBUGFS_KVM)
    if debugfs.value is not None:
        holders = {
            int(pid) for pid, dash, fd in (name.partition("-") for name in debugfs.value) if dash and pid.isdecimal() and fd.isdecimal()
        }
        source = _DEBUGFS_KVM
    else:
        by_fd = _holders_by_fd(tree, managed)
        if by_fd.value is None:
            return Observed(source=by_fd.source, reason=by_fd.reason, unlock=by_fd.unlock)
        holders, source = by_fd.value, by_fd.source
    guests = [_describe_unmanaged(tree, pid) for pid in sorted(holders - managed)]
    return seen(source, tuple(sorted(guests, key=lambda guest: (guest.command, guest.executable or ""))))


def _holders_by_fd(tree: HostTree, managed: set[int]) -> Observed[set[int]]:
    """The holders beside `managed`, of which it is known already."""
    names = tree.names("/proc")
    pids = [int(name) for name in names.value or () if name.isascii() and name.isdigit()]
    if not pids:
        return unseen("/proc/*/fd", names.reason or "no process is visible there")
    holders = set()
    for pid in pids:
        if pid in managed:
            continue
        folder = tree.locate(f"/proc/{pid}") + "/fd"
        try:
            names_of_descriptors = os.listdir(folder)  # noqa: PTH208 - names, not paths
        except PermissionError as error:
            return unseen("/proc/*/fd", why(error), unlock=f"{unlock_for(error)} and CAP_SYS_PTRACE, or a readable {_DEBUGFS_KVM}")
        except OSError:
            continue  # the process is gone
        if any(_link(f"{folder}/{name}") == _KVM_VM_LINK for name in names_of_descriptors):
            holders.add(pid)
    return seen("/proc/*/fd", holders)


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - thousands of them
    except OSError:
        return None  # the descriptor is gone


def _describe_unmanaged(tree: HostTree, pid: int) -> UnmanagedGuest:
    executable: str | None
    try:
        executable = executable_path(tree.locate(f"/proc/{pid}") + "/exe")
    except OSError:
        executable = None
    return UnmanagedGuest(command=tree.read_text(f"/proc/{pid}/comm").value or "(ended)", executable=executable)
