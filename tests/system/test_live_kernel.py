"""The code that a real kernel runs, read out of its memory: Debian's stock kernel with kvm and kvm_amd loaded.

A machine of its own: what is done to this kernel is not for the service's tests to live with, and a lockdown ends with the machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from debian_image import cached_image, why_no_image
from live_patch import NoHeadersError, build_live_patch, fetch_headers
from machine import Machine, why_no_machine

from exitguard.audit.kernel import machine_code_statement
from exitguard.model.kernel import Body, KernelState
from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

_ROOT = Path(__file__).parents[2]
SKIP = "kvm_skip_emulated_instruction"
TRACING = "/sys/kernel/tracing"
_PYTHON = "/opt/exitguard/bin/python -I -B"
_READ_MEMORY = """
from exitguard.facts.machine_code.kernel_memory import read_live
from exitguard.facts.tree import HostTree
print(read_live(HostTree()).model_dump_json())
"""
_READ_FILE = """
import os
from pathlib import Path
from exitguard.facts.machine_code.image import load_image
from exitguard.facts.machine_code.skip import read_skip
path = Path("/lib/modules", os.uname().release, "kernel/arch/x86/kvm/kvm.ko")
base = Path("/sys/kernel/btf/vmlinux").read_bytes()
print(read_skip(load_image(path.read_bytes(), path=str(path)), btf_base=base).model_dump_json())
"""
#: What depends on where the code lies and on how the kernel has patched it, not on what it does.
_DIFFERS = {"path": "", "listing": ()}


@pytest.fixture(scope="module")
def host(package: Path) -> Iterator[Machine]:
    """A hypervisor that has the package installed, and its service not enabled."""
    missing = why_no_image() or why_no_machine()
    if missing is not None:
        pytest.skip(missing)
    with Machine(cached_image(_ROOT / ".local/system"), memory_mib=1024) as machine:
        machine.put(package, f"/root/{package.name}")
        machine.output(f"apt-get -q -y install ./{package.name}", timeout=300)
        machine.output("modprobe kvm_amd")
        yield machine


@pytest.fixture(scope="module")
def headers(host: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return fetch_headers(tmp_path_factory.mktemp("headers"), host.output("uname -r").strip())
    except NoHeadersError as error:
        pytest.skip(str(error))


def read(host: Machine, *, as_user: str = "") -> Observed[MachineCode]:
    program = f"cat <<'END' | {as_user} {_PYTHON} -\n{_READ_MEMORY}END\n"
    return Observed[MachineCode].model_validate_json(host.output(program, timeout=240))


def state(observed: Observed[MachineCode]) -> tuple[KernelState | None, Body | None]:
    statement = machine_code_statement(observed.get())
    return statement.state, statement.body


def without_place(reading: MachineCode) -> MachineCode:
    return reading.model_copy(update=_DIFFERS)


@contextmanager
def traced(host: Machine, *functions: str) -> Iterator[None]:
    """`function` as the tracer of these functions and of no others."""
    host.output(f"cd {TRACING} && echo {' '.join(functions)} >set_ftrace_filter && echo function >current_tracer")
    try:
        yield
    finally:
        host.output(f"cd {TRACING} && echo nop >current_tracer && echo >set_ftrace_filter")


@contextmanager
def probed(host: Machine, place: str) -> Iterator[None]:
    """A kprobe, set as perf and bpftrace do."""
    host.output(f"cd {TRACING} && echo 'p:exitguard/test {place}' >kprobe_events && echo 1 >events/exitguard/test/enable")
    try:
        yield
    finally:
        host.output(f"cd {TRACING} && echo 0 >events/exitguard/test/enable && echo >kprobe_events")


def test_memory_says_what_the_module_file_says(host: Machine) -> None:
    observed = read(host)
    file = MachineCode.model_validate_json(host.output(f"cat <<'END' | {_PYTHON} -\n{_READ_FILE}END\n", timeout=240))
    assert state(observed) == (KernelState.AFFECTED, Body.A)
    assert without_place(observed.get()) == without_place(file)
    assert file.build_id is not None
    called = {line.text for line in observed.get().listing if line.function == SKIP and line.text.startswith("call ")}
    assert "call svm_skip_emulated_instruction" in called, "static calls lead to the vendor's functions while it runs"


def test_traced_kernel_reads_the_same(host: Machine) -> None:
    untraced = read(host).get()
    with traced(host, SKIP, "kvm_pmu_trigger_event"):
        found = read(host).get()
        host.output(f"mkdir {TRACING}/instances/more && cd {TRACING}/instances/more && echo {SKIP} >set_ftrace_filter")
        host.output(f"echo function >{TRACING}/instances/more/current_tracer")
        twice = read(host).get()
        host.output(f"echo nop >{TRACING}/instances/more/current_tracer && rmdir {TRACING}/instances/more")
    assert without_place(found) == without_place(twice) == without_place(untraced)
    assert [line.text for line in found.listing] == [line.text for line in untraced.listing]
    assert {line.function for line in found.listing if "tracer" in line.note} == {SKIP, "kvm_pmu_trigger_event"}


def test_kprobe_at_the_entry_is_named(host: Machine) -> None:
    with probed(host, SKIP):
        assert f"a kprobe is set at the entry of {SKIP}" in str(read(host).reason)
    assert read(host).known


def test_kprobe_inside_makes_the_state_unknown(host: Machine) -> None:
    place = next(line.address for line in read(host).get().listing if line.note == "the PMU call")
    with probed(host, f"{SKIP}+{place:#x}"):
        observed = read(host)
        assert "kprobe" in str(observed.get().obstacle)
        assert state(observed)[0] in (None, KernelState.UNKNOWN)
    assert read(host).get().obstacle is None


def test_hidden_addresses_are_named(host: Machine) -> None:
    before = host.output("sysctl -n kernel.kptr_restrict").strip()
    host.output("sysctl -q kernel.kptr_restrict=2")
    try:
        assert "kernel.kptr_restrict is 2" in str(read(host).reason)
    finally:
        host.output(f"sysctl -q kernel.kptr_restrict={before}")


@pytest.mark.parametrize("lesser", ["--reuid 65534 --clear-groups", "--bounding-set -sys_rawio"], ids=["user", "root without"])
def test_missing_privilege_is_named(host: Machine, lesser: str) -> None:
    observed = read(host, as_user=f"setpriv {lesser} --")
    assert observed.unlock == "run as root (CAP_SYS_RAWIO)"


def test_kvm_without_a_vendor_module_is_not_judged(host: Machine) -> None:
    host.output("modprobe -r kvm_amd")
    try:
        assert "expected the module kvm to be loaded" in str(read(host).reason)
        host.output("modprobe kvm")
        assert "no vendor module of KVM" in str(read(host).reason)
    finally:
        host.output("modprobe kvm_amd")
    assert state(read(host)) == (KernelState.AFFECTED, Body.A)


@pytest.mark.parametrize(("guarded", "expected"), [(True, KernelState.UNKNOWN), (False, KernelState.AFFECTED)], ids=["guarded", "not"])
def test_live_patch_is_judged_by_its_own_copy(
    host: Machine, headers: Path, tmp_path: Path, *, guarded: bool, expected: KernelState
) -> None:
    host.put(build_live_patch(tmp_path / "patch", headers, "live_copy", guarded=guarded), "/root/live_copy.ko")
    enabled = "/sys/kernel/livepatch/live_copy/enabled"
    host.output("insmod /root/live_copy.ko")
    try:
        host.wait_until("the live patch is in force", lambda: host.output("cat /sys/kernel/livepatch/live_copy/transition") == "0\n")
        observed = read(host)
    finally:
        host.output(f"echo 0 >{enabled}")
        host.wait_until("the live patch is undone", lambda: not host.succeeds(f"test -e {enabled}"))
        host.output("rmmod live_copy")
    assert state(observed)[0] is expected
    # What the compiler inlined the old function into is not replaced: a guard in the copy alone is not in force everywhere.
    assert (observed.get().called_when_off, observed.get().called_when_on) == ((False, True) if guarded else (True, True))
    assert ("inlined" in str(observed.get().obstacle)) is guarded
    assert observed.get().path == "/proc/kcore, the copy in live patch live_copy"
    assert observed.get().build_id is None
    assert state(read(host)) == (KernelState.AFFECTED, Body.A)


def test_lockdown_is_named(host: Machine) -> None:
    """The last one: nothing but a reboot ends it."""
    host.output("echo confidentiality >/sys/kernel/security/lockdown")
    observed = read(host)
    assert "the kernel is locked down" in str(observed.reason)
    assert observed.unlock is None
