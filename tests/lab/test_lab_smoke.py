"""One boot of a real KVM host on an emulated processor, with the kernel that Debian ships: `exitguard measure` from a wheel measures there.

No kernel is built for this, so that KVM has no PMU to give and there is one arm alone; `make lab` has both.
"""

import fcntl
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# The modules of the lab, which hold no tests.
sys.path.insert(0, str(Path(__file__).with_name("host")))
sys.path.insert(0, str(Path(__file__).with_name("cost")))

from cost_figures import MOST_APART, cpuid_exits, exits_made
from cost_host import make_root, why_no_agent
from cost_lab import FOLDER, Effort
from cost_recording import (
    COUNTED_LOOP,
    COUNTED_MEASUREMENT,
    MEASUREMENT,
    Counted,
    read_counted,
    read_exits_made,
    read_loop,
    read_measurement,
)
from debian_packages import BOOKWORM, PackagesError, unpacked_newest, why_no_packages
from emulated_host import boot, make_disk, put_module, why_no_host

from exitguard.facts.machine_code.container import read_elf
from exitguard.facts.machine_code.image import load_image
from exitguard.model.loop import Loop
from exitguard.model.measurement import Arm, CheckOutcome, Measurement

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]  # the first time it fetches a kernel and Python

EFFORT = Effort(loops=(Loop.CPUID, Loop.HLT), arms=(Arm.AS_CREATED,), rounds=20)
_VARIANT = "debian"
_KVM = ("arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-amd.ko")


@dataclass(frozen=True)
class Told:
    """What the host told, and the kernel that it ran."""

    folder: Path
    release: str
    kvm: Path

    @property
    def measurement(self) -> Measurement:
        return read_measurement(self.folder, MEASUREMENT)

    def counted(self, name: str) -> Counted:
        return read_counted(self.folder, name)


@contextmanager
def _alone() -> Iterator[None]:
    """Nobody else fetches or unpacks what the cost lab keeps: scripts/lab.sh holds the same lock."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    for missing in (why_no_packages(), why_no_host(), why_no_agent()):
        if missing is not None:
            pytest.skip(missing)
    folder = tmp_path_factory.mktemp("host")
    with _alone():
        # Beside what was fetched: its files are linked, not copied.
        root = FOLDER / "smoke-root"
        try:
            debian = unpacked_newest(BOOKWORM, "linux-image-cloud-amd64", FOLDER / "kernel")
            make_root(root, FOLDER)
        except PackagesError as error:
            pytest.skip(f"Debian's archive does not give what the lab's host is made of: {error}")
        (image,) = (debian / "boot").glob("vmlinuz-*")
        release = image.name.removeprefix("vmlinuz-")
        modules = debian / "lib/modules" / release / "kernel"
        put_module(modules / "virt/lib/irqbypass.ko", root / "lab/modules")
        (root / "lab/modules" / _VARIANT).mkdir()
        for name in _KVM:
            put_module(modules / name, root / "lab/modules" / _VARIANT)
        (root / "lab/plan").write_text("\n".join(EFFORT.plan) + "\n")
        disk = make_disk(root, folder / "disk")
        shutil.rmtree(root)
    seen = boot(folder, disk, image, f"mitigations=off lab.variant={_VARIANT}", limit_seconds=240)
    disk.unlink()
    return Told(folder=seen, release=release, kvm=modules / _KVM[0])


def test_measurement_stands_in_a_host_whose_exits_are_real(told: Told) -> None:
    outcomes = {check.name: check.outcome for check in told.measurement.checks}
    assert told.measurement.refused is None
    assert outcomes["real exits"] is CheckOutcome.HELD
    assert CheckOutcome.FAILED not in outcomes.values()


def test_host_is_the_kernel_that_debian_ships(told: Told) -> None:
    with told.kvm.open("rb") as file:
        image = load_image(read_elf(file, name="kvm.ko"), path="kvm.ko")
    assert told.measurement.kernel_release.value == told.release
    assert told.measurement.kvm_build_id.value == image.build_id


def test_host_without_a_pmu_has_one_arm_and_the_reason_is_told(told: Told) -> None:
    assert told.measurement.enable_pmu.value is False
    assert all([arm.arm for arm in loop.arms] == [Arm.AS_CREATED] and loop.contrast is None for loop in told.measurement.loops)
    assert any("kvm.enable_pmu is N here" in caveat for caveat in told.measurement.caveats)


def test_exitguard_says_what_the_loop_in_c_says(told: Told) -> None:
    (cpuid,) = [each for each in told.measurement.loops if each.loop is Loop.CPUID]
    counted = read_loop(told.folder, "cpuid", Arm.AS_CREATED, EFFORT.iterations).ticks_per_exit
    assert abs(cpuid.arms[0].ticks_per_exit.median - counted) <= MOST_APART * counted
    # Some thousand instructions, and not the few that software KVM or a wrong unit would show.
    assert 1000 < counted < 10000


def test_kernel_counted_exactly_the_exits_that_were_made(told: Told) -> None:
    assert cpuid_exits(told.counted(COUNTED_LOOP)) == read_exits_made(told.folder, COUNTED_LOOP)
    assert cpuid_exits(told.counted(COUNTED_MEASUREMENT)) == exits_made(read_measurement(told.folder, COUNTED_MEASUREMENT))
