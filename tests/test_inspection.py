"""What `exitguard kernel inspect` finds of installed kernels and of what runs, in the file trees of hosts."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "facts" / "machine_code"))  # what compiles the module

from small_modules import ANOTHER_BUILD_ID, BUILD_ID, RELEASE, compile_module, put, put_running

from exitguard.audit.inspection import inspection_exit_code
from exitguard.facts.machine_code import memory
from exitguard.facts.tree import HostTree
from exitguard.inspection import Inspection, InspectionRequest, NothingInspected
from exitguard.model.documents import InspectedKernel, KernelInspection
from exitguard.model.kernel import KernelState

NOW = datetime(2026, 11, 23, tzinfo=UTC)
MODULE = f"/lib/modules/{RELEASE}/kernel/arch/x86/kvm/kvm.ko"
OLDER = "5.10.0-1-test"


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    memory.forget()


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_module(tmp_path_factory.mktemp("module"))


@pytest.fixture
def host(tmp_path: Path, module: bytes) -> Path:
    """A host that runs what is installed, and has an older kernel without KVM."""
    put_running(tmp_path)
    put(tmp_path, MODULE, module)
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.dep", "kernel/arch/x86/kvm/kvm.ko:\n")
    put(tmp_path, f"/boot/vmlinuz-{OLDER}")
    put(tmp_path, f"/lib/modules/{OLDER}/modules.dep", "kernel/fs/ext4.ko:\n")
    (tmp_path / "sys/kernel/livepatch").mkdir(parents=True)
    return tmp_path


def inspect(host: Path, *arguments: str | Path, running: bool = False) -> KernelInspection:
    request = InspectionRequest(arguments=tuple(map(str, arguments)), running=running)
    with Inspection(request, HostTree(host)) as inspection:
        found = inspection.finish(observed_at=NOW)
        assert inspection.count == len(found.kernels)
    return found


def inspect_running(host: Path) -> InspectedKernel:
    (kernel,) = inspect(host, running=True).kernels
    return kernel


def test_installed_release_is_read_from_its_module(host: Path) -> None:
    found = inspect(host, RELEASE)
    (kernel,) = found.kernels
    assert (kernel.path, kernel.release, kernel.build_id, kernel.state) == (MODULE, RELEASE, BUILD_ID, KernelState.NOT_AFFECTED)
    assert {evidence.observed_at for evidence in kernel.evidence} == {NOW}
    assert inspection_exit_code(found) == 0


def test_installed_release_without_kvm_is_unknown(host: Path) -> None:
    found = inspect(host, OLDER)
    (kernel,) = found.kernels
    assert (kernel.path, kernel.release, kernel.state) == (f"/lib/modules/{OLDER}", OLDER, KernelState.UNKNOWN)
    assert "holds no kvm.ko" in kernel.reason
    assert inspection_exit_code(found) == 3


def test_files_go_before_releases_and_releases_before_what_runs(host: Path, module: bytes, tmp_path: Path) -> None:
    file = put(tmp_path, "/elsewhere/kvm.ko", module)
    # A named file is this machine's own, whatever tree the releases are in.
    paths = [kernel.path for kernel in inspect(Path("/"), file).kernels]
    assert paths == [str(file)]
    found = inspect(host, RELEASE, OLDER, running=True)
    assert [kernel.release for kernel in found.kernels] == [RELEASE, OLDER, RELEASE]


def test_release_that_is_not_installed_is_named_beside_those_that_are(host: Path) -> None:
    with pytest.raises(NothingInspected, match=r"6\.9\.9: there is no such file .* \(installed are 5\.10\.0-1-test, 6\.1\.0-1-test\)"):
        inspect(host, "6.9.9", RELEASE)


def test_what_runs_is_read_from_the_file_of_its_build(host: Path) -> None:
    kernel = inspect_running(host)
    assert (kernel.path, kernel.build_id, kernel.state) == (MODULE, BUILD_ID, KernelState.NOT_AFFECTED)


def test_file_of_another_build_says_nothing_of_what_runs(host: Path) -> None:
    put_running(host, build_id=ANOTHER_BUILD_ID)
    kernel = inspect_running(host)
    assert (kernel.state, kernel.reading, kernel.build_id) == (KernelState.UNKNOWN, None, ANOTHER_BUILD_ID)
    assert "is another build than what runs" in kernel.reason


def test_live_patched_function_is_never_judged_by_the_original(host: Path) -> None:
    put(host, "/sys/kernel/livepatch/kpatch_1/enabled", "1\n")
    put(host, "/sys/kernel/livepatch/kpatch_1/transition", "0\n")
    (host / "sys/kernel/livepatch/kpatch_1/kvm/kvm_skip_emulated_instruction,1").mkdir(parents=True)
    kernel = inspect_running(host)
    assert (kernel.state, kernel.body, kernel.reading) == (KernelState.UNKNOWN, None, None)
    assert "live patch kpatch_1 replaces" in kernel.reason
    assert "--running --live" in (kernel.unlock or "")
    assert len(kernel.evidence) == 2
    # The file is still what it is.
    assert inspect(host, RELEASE).kernels[0].state is KernelState.NOT_AFFECTED


def test_base_of_btf_is_refused_where_no_module_could_use_it(host: Path) -> None:
    base = put(host, "/vmlinuz", "x")
    image = put(host, "/vmlinux", "x")
    request = InspectionRequest(arguments=(str(image),), btf_base=base)
    with pytest.raises(NothingInspected, match="a base of BTF is for modules"), Inspection(request, HostTree()):
        pass


def test_module_of_any_name_takes_the_named_base(host: Path, module: bytes) -> None:
    file = put(host, "/kvm-patched.ko", module)
    base = put(host, "/vmlinuz", "no kernel")
    with Inspection(InspectionRequest(arguments=(str(file), RELEASE), btf_base=base), HostTree(host)) as inspection:
        assert [(image.btf_base, image.base_was_named) for image in inspection._images] == [(str(base), True)] * 2


def test_readings_end_where_the_caller_ends_them(host: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Inspection(InspectionRequest(arguments=(RELEASE,)), HostTree(host), interrupt) as inspection:
        inspection.finish(observed_at=NOW)
