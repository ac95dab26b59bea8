import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import processes
from exitguard.facts.processes import (
    COMMAND_LINE,
    ProcessTable,
    RunningQemu,
    describe_process,
    match_process,
    parse_start_ticks,
    read_processes,
    read_start_ticks,
    read_unmanaged,
)
from exitguard.facts.qemu import EXECUTABLE, QemuReader
from exitguard.facts.qemu_command_line import parse
from exitguard.facts.tree import HostTree
from exitguard.model.canonical import content_hash
from exitguard.model.pmu import PmuElement
from exitguard.model.record import seen, unseen

GUEST = "0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004"
STAT = "4711 (qemu) S 1 4710 4710 0 -1 138412416 4873 0 1 0 6 14 0 0 20 0 5 0 330106 394936320 8598 1844"

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that sleeps under a QEMU's command line."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(uuid: UUID, *words: str) -> subprocess.Popen[bytes]:
        # A shell script's arguments are on the command line and mean nothing to it. When it speaks, they are there to be seen.
        argv = ["qemu-system-x86_64", "-c", "echo; read _", "-uuid", str(uuid), *words]
        process = subprocess.Popen(argv, executable=shutil.which("sh"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield start_one
    for process in started:
        if process.returncode is None:
            process.communicate()


def process_folder(root: Path, pid: int, *words: str, stat: str = STAT) -> Path:
    folder = root / f"proc/{pid}"
    (folder / "fd").mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in words))
    (folder / "stat").write_text(stat)
    (folder / "comm").write_text("qemu\n")
    return folder


def table_of(*claims: RunningQemu) -> ProcessTable:
    return ProcessTable({GUEST: claims}, seen("/proc", 3))


def claim(pid: int, uid: int = 64055) -> RunningQemu:
    return RunningQemu(pid, uid, 1000 + pid, parse(("qemu", "-uuid", GUEST)))


# When it started


@pytest.mark.parametrize(
    "command", ["(qemu)", "(a) b (c)", "()", "(()", "())", "(x\n) S 1 2 3)", "(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20)"]
)
def test_start_is_counted_behind_any_command_name(command: str) -> None:
    assert parse_start_ticks(STAT.replace("(qemu)", command)) == 330106


@given(st.text())
def test_no_command_name_moves_the_start(command: str) -> None:
    assert parse_start_ticks(STAT.replace("qemu", command)) == 330106


@pytest.mark.parametrize(
    "stat",
    [
        *("", "4711 (qemu)", "4711 (qemu) S 1", "no parenthesis 1 2 3"),
        *(STAT.replace("330106", ticks) for ticks in ("-1", "x", str(1 << 64), "9" * 5000)),
    ],
)
def test_start_that_cannot_be_told_is_none(stat: str) -> None:
    assert parse_start_ticks(stat) is None


@given(st.text())
def test_any_text_is_a_start_or_none(text: str) -> None:
    ticks = parse_start_ticks(text)
    assert ticks is None or ticks >= 0


def test_own_start_does_not_change_and_a_process_that_is_gone_has_none() -> None:
    assert read_start_ticks(HostTree(), os.getpid()) == read_start_ticks(HostTree(), os.getpid())
    assert (read_start_ticks(HostTree(), os.getpid()) or 0) > 0
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert read_start_ticks(HostTree(), process.pid) is None


# One pass over /proc


def test_process_with_a_uuid_is_found_by_it(start: Start) -> None:
    guest = uuid4()
    process = start(guest, "-cpu", "host,pmu=off", "-accel", "kvm")
    found = read_processes(HostTree()).by_uuid[str(guest)]
    assert [(running.pid, running.uid) for running in found] == [(process.pid, os.getuid())]
    assert found[0].start_ticks == read_start_ticks(HostTree(), process.pid)


def test_only_a_word_of_its_own_is_the_option(tmp_path: Path) -> None:
    process_folder(tmp_path, 1, "qemu", "-uuid", GUEST)
    process_folder(tmp_path, 2, "grep", f"-uuid {GUEST}")
    process_folder(tmp_path, 3, "qemu", "-uuid", "not a uuid")
    process_folder(tmp_path, 4, "qemu", "-name", "-uuid", GUEST)
    process_folder(tmp_path, 5, "-uuid", GUEST)
    (tmp_path / "proc/self").mkdir()
    table = read_processes(HostTree(tmp_path))
    assert {uuid: [running.pid for running in found] for uuid, found in table.by_uuid.items()} == {GUEST: [1]}
    assert table.listing.value == 5


def test_process_that_ends_while_it_is_read_is_left_out(tmp_path: Path) -> None:
    process_folder(tmp_path, 1, "qemu", "-uuid", GUEST, stat="")
    (process_folder(tmp_path, 2, "qemu", "-uuid", GUEST) / "cmdline").unlink()
    (tmp_path / "proc/3").mkdir()
    assert read_processes(HostTree(tmp_path)).by_uuid == {}


def test_process_whose_folder_vanishes_before_its_owner_is_asked_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process_folder(tmp_path, 1, "qemu", "-uuid", GUEST)

    def read_then_vanish(_tree: HostTree, pid: int) -> int:
        shutil.rmtree(tmp_path / f"proc/{pid}")
        return 330106

    monkeypatch.setattr(processes, "read_start_ticks", read_then_vanish)
    assert read_processes(HostTree(tmp_path)).by_uuid == {}


def test_command_line_beyond_the_limit_is_left_out(tmp_path: Path) -> None:
    process_folder(tmp_path, 1, "qemu", "-uuid", GUEST, "x" * (1 << 20))
    assert read_processes(HostTree(tmp_path)).by_uuid == {}


def test_missing_or_empty_proc_has_a_reason(tmp_path: Path) -> None:
    missing = read_processes(HostTree(tmp_path))
    assert missing.listing.reason == "no such file or directory"
    (tmp_path / "proc").mkdir()
    empty = read_processes(HostTree(tmp_path))
    assert (empty.listing.reason, empty.listing.unlock) == ("no process is visible there", "a mounted /proc without hidepid")
    for table in (missing, empty):
        match = match_process(table, GUEST, None)
        assert (match.reason, match.unlock) == (table.listing.reason, table.listing.unlock)


# Whose process it is


def test_only_claimant_is_the_domains_process() -> None:
    match = match_process(table_of(claim(1)), GUEST, 64055)
    assert match.value == claim(1)
    assert match.source == COMMAND_LINE
    assert match_process(table_of(claim(1)), GUEST, None).value == claim(1)


def test_two_processes_that_claim_one_domain_are_ambiguous() -> None:
    assert match_process(table_of(claim(1), claim(2)), GUEST, 64055).reason == "2 processes claim this domain: expected one"
    assert match_process(table_of(claim(1), claim(2, 1000)), GUEST, None).reason == "2 processes claim this domain: expected one"


def test_other_users_claim_neither_counts_nor_disturbs() -> None:
    assert match_process(table_of(claim(1, 1000), claim(2), claim(3, 1000)), GUEST, 64055).value == claim(2)
    refused = match_process(table_of(claim(1, 1000)), GUEST, 64055)
    assert refused.reason == "a process names this domain, but runs as another user than its label's 64055"


def test_domain_without_a_visible_process_names_what_would_show_it() -> None:
    match = match_process(table_of(), GUEST, 64055)
    assert match.reason == "no visible process runs it"
    assert "hidepid" in (match.unlock or "")


def test_two_real_processes_with_one_uuid_are_ambiguous(start: Start) -> None:
    guest = uuid4()
    for _ in range(2):
        start(guest)
    assert match_process(read_processes(HostTree()), str(guest), os.getuid()).reason == "2 processes claim this domain: expected one"


# What it shows


def test_restart_with_another_pid_leaves_the_same_facts(start: Start) -> None:
    guest = uuid4()
    hashes, pids = set(), set()
    for _ in range(2):
        process = start(guest, "-cpu", "EPYC,pmu=off", "-accel", "kvm")
        running = match_process(read_processes(HostTree()), str(guest), os.getuid())
        described = describe_process(running.get(), QemuReader(HostTree()))
        process.communicate()
        observed = running.model_copy(update={"value": described})
        hashes.add(content_hash(observed.model_dump(mode="json")))
        pids.add(process.pid)
        assert str(process.pid) not in described.model_dump_json()
    assert len(pids) == 2
    assert len(hashes) == 1


def test_process_shows_its_cpu_accelerator_and_program(start: Start) -> None:
    guest = uuid4()
    start(guest, "-cpu", "EPYC,pmu=off", "-accel", "kvm", "-incoming", "defer")
    running = match_process(read_processes(HostTree()), str(guest), os.getuid())
    described = describe_process(running.get(), QemuReader(HostTree()))
    # The shell that plays QEMU here takes -c, which QEMU does not have, with a value.
    assert (described.cpu.get().model, described.cpu.get().pmu, described.cpu.source) == ("EPYC", PmuElement.OFF, COMMAND_LINE)
    assert (described.accelerator.value, described.incoming.value) == ("kvm", True)
    assert described.executable.get().path == str(Path(shutil.which("sh") or "").resolve())
    assert described.executable.get().version.reason == "the file holds no QEMU version text"


def test_process_that_ended_shows_no_program(start: Start) -> None:
    guest = uuid4()
    process = start(guest)
    running = match_process(read_processes(HostTree()), str(guest), os.getuid()).get()
    process.communicate()
    assert describe_process(running, QemuReader(HostTree())).executable.reason == "the process ended while it was read"


def test_program_that_cannot_be_read_has_its_reason_and_keeps_what_the_command_line_says(tmp_path: Path) -> None:
    process_folder(tmp_path, 7, "qemu", "-uuid", GUEST, "-cpu", "host,pmu=off")
    running = match_process(read_processes(HostTree(tmp_path)), GUEST, None).get()
    described = describe_process(running, QemuReader(HostTree(tmp_path)))
    assert (described.executable.source, described.executable.reason) == (EXECUTABLE, "no such file or directory")
    assert described.cpu.get().pmu is PmuElement.OFF


def test_command_line_of_another_users_process_has_to_name_the_program_by_its_path(start: Start) -> None:
    # As another user where root runs the tests: what may be looked into needs no such conclusion.
    guest = uuid4()
    start(guest)
    script = """
import os, sys
from exitguard.facts.processes import describe_process, read_processes
from exitguard.facts.qemu import QemuReader
from exitguard.facts.tree import HostTree
if os.getuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
(running,) = read_processes(HostTree()).by_uuid[sys.argv[1]]
executable = describe_process(running, QemuReader(HostTree())).executable
print(running.program, executable.reason, executable.unlock, sep=" / ")
"""
    shown = subprocess.run([sys.executable, "-c", script, str(guest)], capture_output=True, text=True, check=True).stdout
    if os.getuid() == 0:
        reason = "permission denied, and its command line names no absolute path"
        assert shown == f"qemu-system-x86_64 / {reason} / run as root, or grant CAP_SYS_PTRACE\n"
    else:
        assert shown == "qemu-system-x86_64 / None / None\n"


# Virtual machines that libvirt does not know


def test_debugfs_tells_who_holds_a_virtual_machine(tmp_path: Path) -> None:
    for name in ("7-12", "8-9", "9-3", "stats", "10", "x-1", "1-x"):
        (tmp_path / "sys/kernel/debug/kvm" / name).mkdir(parents=True)
    process_folder(tmp_path, 8).joinpath("exe").symlink_to("/usr/bin/firecracker")
    unmanaged = read_unmanaged(HostTree(tmp_path), [7])
    assert unmanaged.source == "/sys/kernel/debug/kvm"
    assert [(guest.command, guest.executable) for guest in unmanaged.get()] == [("(ended)", None), ("qemu", "/usr/bin/firecracker")]


def test_descriptors_tell_it_where_debugfs_does_not(tmp_path: Path) -> None:
    for pid, link in ((7, "anon_inode:kvm-vm"), (8, "anon_inode:kvm-vm"), (9, "anon_inode:kvm-vcpu:0"), (10, "/dev/kvm")):
        (process_folder(tmp_path, pid) / "fd/5").symlink_to(link)
    (tmp_path / "proc/8/fd/not-a-link").touch()
    (tmp_path / "proc/11").mkdir()
    unmanaged = read_unmanaged(HostTree(tmp_path), [7])
    assert unmanaged.source == "/proc/*/fd"
    assert [guest.model_dump() for guest in unmanaged.get()] == [{"command": "qemu", "executable": None}]


def test_nothing_visible_is_not_nothing_there(tmp_path: Path) -> None:
    assert read_unmanaged(HostTree(tmp_path), ()).reason == "no such file or directory"
    (tmp_path / "proc").mkdir()
    assert read_unmanaged(HostTree(tmp_path), ()).reason == "no process is visible there"


def test_processes_that_may_not_be_looked_into_name_the_privilege() -> None:
    # As another user where root runs the tests, who may look into nobody else's process.
    script = """
import os
from exitguard.facts.processes import read_unmanaged
from exitguard.facts.tree import HostTree
if os.getuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
unmanaged = read_unmanaged(HostTree(), ())
print(unmanaged.source, unmanaged.reason, unmanaged.unlock, sep=" / ")
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("/proc/*/fd / permission denied / run as root, or grant CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE")


def test_path_of_an_unmanaged_program_that_is_not_utf_8_is_still_text(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/debug/kvm/7-3").mkdir(parents=True)
    process_folder(tmp_path, 7).joinpath("exe").symlink_to(os.fsdecode(b"/opt/vmm\xff"))
    unmanaged = read_unmanaged(HostTree(tmp_path), ())
    assert [guest.executable for guest in unmanaged.get()] == ["/opt/vmm\N{REPLACEMENT CHARACTER}"]
    assert content_hash(unmanaged.model_dump(mode="json"))


def test_listing_that_failed_is_not_an_empty_one() -> None:
    table = ProcessTable({}, unseen("/proc", "gone", unlock="a mounted /proc"))
    assert match_process(table, GUEST, None).unlock == "a mounted /proc"
