"""The probe on this machine's own /dev/kvm: a software KVM is refused, time is bounded, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exitguard.facts.probe.errors import CannotMeasureError, refused_by_device, refused_by_kvm
from exitguard.facts.probe.guest_code import guest_program
from exitguard.facts.probe.machine import open_kvm, virtual_machine
from exitguard.facts.probe.probe import ProbeRequest, _bounded, probe
from exitguard.facts.tree import HostTree
from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm, CheckOutcome

_USABLE = os.access("/dev/kvm", os.R_OK | os.W_OK)
_SOFTWARE = Path("/sys/module/kvm_pvm").exists()
_PATIENCE_SECONDS = 60
#: Says when its virtual machine is made, and then keeps it until it is killed.
_HOLD = """
import time
from exitguard.facts.probe.guest_code import guest_program
from exitguard.facts.probe.machine import open_kvm, virtual_machine
from exitguard.facts.tree import HostTree
from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm
with open_kvm(HostTree()) as kvm, virtual_machine(kvm, guest_program(Loop.CPUID, intel=False), Arm.AS_CREATED, intel=False):
    print("made", flush=True)
    time.sleep(600)
"""

#: Enters a guest that runs for a while, and then says how often it was sent out of its loop.
_RUN_ON = """
import sys
from exitguard.facts.probe.guest_code import guest_program
from exitguard.facts.probe.machine import open_kvm, virtual_machine
from exitguard.facts.tree import HostTree
from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm
with open_kvm(HostTree()) as kvm, virtual_machine(kvm, guest_program(Loop.CPUID, intel=False), Arm.AS_CREATED, intel=False) as machine:
    print("made", flush=True)
    print(machine.enter(warm_up=1, iterations=int(sys.argv[1])).interruptions, flush=True)
"""

needs_kvm = pytest.mark.skipif(not _USABLE, reason="no usable /dev/kvm")
needs_software_kvm = pytest.mark.skipif(not (_USABLE and _SOFTWARE), reason="no software KVM (kvm_pvm) is loaded")


def descriptors() -> set[str]:
    return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def machines_of(process: int) -> list[str]:
    names = (str(path.readlink()) for path in Path(f"/proc/{process}/fd").iterdir())
    return [name for name in names if name.startswith("anon_inode:kvm-v")]


def open_machines() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            found += [f"{folder.parent.name} {name}" for name in machines_of(int(folder.parent.name))]
        except OSError:
            continue
    return found


@needs_software_kvm
def test_software_kvm_is_refused_since_its_exits_are_not_those_of_the_loop() -> None:
    reading = probe(HostTree(), ProbeRequest(loops=(Loop.CPUID,), iterations=2000, seconds=5))
    assert reading.refused is not None
    assert "does not run the guest by hardware virtualisation" in reading.refused.reason
    assert "the cpuid loop made 2,251 exits" in reading.refused.reason
    assert reading.loops == ()
    assert [check.name for check in reading.checks if check.outcome is CheckOutcome.FAILED] == ["real exits"]
    assert reading.tsc_kilohertz is not None


@needs_kvm
def test_no_descriptor_affinity_or_alarm_is_left_behind() -> None:
    before = descriptors(), os.sched_getaffinity(0), signal.getsignal(signal.SIGALRM)
    for loop in Loop:
        probe(HostTree(), ProbeRequest(loops=(loop,), iterations=200, seconds=2))
    assert (descriptors(), os.sched_getaffinity(0), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@needs_kvm
@pytest.mark.parametrize("loop", Loop)
@pytest.mark.parametrize("intel", [False, True])
def test_virtual_machine_of_each_loop_is_made_as_either_vendor_wants_it(loop: Loop, *, intel: bool) -> None:
    with open_kvm(HostTree()) as kvm, virtual_machine(kvm, guest_program(loop, intel=intel), Arm.AS_CREATED, intel=intel):
        assert any(name.startswith("anon_inode:kvm-vcpu") for name in descriptors())


@needs_kvm
def test_guest_that_runs_on_is_ended_when_the_time_is_over() -> None:
    # So many iterations take minutes in software and half a second in hardware; there a round of them ends between two others.
    reading = probe(HostTree(), ProbeRequest(loops=(Loop.CPUID,), iterations=10_000_000, rounds=10_000, seconds=0.5))
    assert reading.refused is None or "exits" in reading.refused.reason
    assert all(len(loop.rounds) < 10_000 for loop in reading.loops)


@needs_kvm
def test_killed_process_leaves_no_virtual_machine() -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLD], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "made\n"
            assert machines_of(process.pid)
        finally:
            process.kill()
        process.wait(_PATIENCE_SECONDS)
        assert not [name for name in open_machines() if name.startswith(f"{process.pid} ")]


@needs_kvm
def test_guest_that_was_stopped_and_continued_goes_on_and_says_so() -> None:
    iterations = 300_000 if _SOFTWARE else 3_000_000  # a second or more
    with subprocess.Popen([sys.executable, "-c", _RUN_ON, str(iterations)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "made\n"
            for _ in range(2):
                time.sleep(0.2)
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.1)
                process.send_signal(signal.SIGCONT)
            assert int(process.stdout.readline()) >= 1
            assert process.wait(_PATIENCE_SECONDS) == 0
        finally:
            process.kill()


def test_cpu_that_is_not_there_is_refused() -> None:
    reading = probe(HostTree(), ProbeRequest(cpu=8191))
    assert reading.refused is not None
    assert reading.loops == ()
    if _USABLE:
        assert "CPU 8191 is not one that this process may run on" in reading.refused.reason


def test_machine_without_kvm_is_refused_with_what_to_load(tmp_path: Path) -> None:
    reading = probe(HostTree(tmp_path), ProbeRequest())
    assert reading.refused is not None
    assert "/dev/kvm is not there" in reading.refused.reason
    assert "modprobe" in reading.refused.next_step


def test_each_way_in_which_the_device_is_closed_names_what_opens_it() -> None:
    forbidden = refused_by_device(PermissionError(13, "Permission denied"))
    assert "permission denied" in forbidden.reason
    assert "group kvm" in forbidden.next_step
    busy = refused_by_kvm("creating its vCPU", OSError(16, "Device or resource busy"))
    assert "another hypervisor" in busy.reason
    strange = refused_by_kvm("giving it memory", OSError(22, "Invalid argument"))
    assert strange.reason == "KVM refused: giving it memory: invalid argument"
    assert all(isinstance(each, CannotMeasureError) and each.next_step for each in (forbidden, busy, strange))


def test_time_is_bounded_by_an_alarm_that_is_taken_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    reached = False
    with _bounded(0.05):
        time.sleep(_PATIENCE_SECONDS)
        reached = True
    assert not reached
    with _bounded(_PATIENCE_SECONDS):
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
