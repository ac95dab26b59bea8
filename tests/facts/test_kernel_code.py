"""The machine code of a host's kernels: only a file with the build-id of what runs speaks for what runs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "machine_code"))  # the modules there that hold no tests

from small_modules import ANOTHER_BUILD_ID, BUILD_ID, RELEASE, compile_module, put, put_running

from exitguard.facts.kernel import read_kernel
from exitguard.facts.kernel_code import MOST_INSTALLED
from exitguard.facts.machine_code import memory
from exitguard.facts.machine_code.process import ReaderProcess
from exitguard.facts.tree import HostTree
from exitguard.model.host import InstalledKernel, KernelFacts

NEWER = "6.1.0-2-test"
USUAL = "kernel/arch/x86/kvm/kvm.ko"


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    memory.forget()


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_module(tmp_path_factory.mktemp("module"))


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_module(tmp_path_factory.mktemp("module"), build_id=ANOTHER_BUILD_ID)


def install(root: Path, release: str, module: bytes, place: str = USUAL) -> None:
    put(root, f"/boot/vmlinuz-{release}")
    put(root, f"/lib/modules/{release}/{place}", module)


def facts(root: Path) -> KernelFacts:
    return read_kernel(HostTree(root), changelog_markers=())


def installed(root: Path) -> dict[str, InstalledKernel]:
    return {kernel.release: kernel for kernel in facts(root).installed.get()}


def test_module_with_the_build_id_of_what_runs_is_what_runs(tmp_path: Path, module: bytes) -> None:
    put_running(tmp_path)
    install(tmp_path, RELEASE, module)
    kernel = facts(tmp_path)
    code = kernel.machine_code
    assert code.source == code.get().path == f"/lib/modules/{RELEASE}/{USUAL}"
    assert (code.get().build_id, code.get().release, code.get().obstacle) == (BUILD_ID, RELEASE, None)
    assert code.get().listing[0].function == "kvm_skip_emulated_instruction"
    # It is not told once more as what a reboot would start.
    (same,) = kernel.installed.get()
    assert (same.machine_code, same.machine_code_reason) == (None, None)


def test_module_of_the_same_release_and_another_build_is_what_a_reboot_starts(tmp_path: Path, another: bytes) -> None:
    put_running(tmp_path)
    install(tmp_path, RELEASE, another)
    code = facts(tmp_path).machine_code
    assert code.source == f"/lib/modules/{RELEASE}/{USUAL}"
    assert code.reason is not None
    assert code.reason.startswith(f"is another build than what runs (build-id {'2' * 12}…, and {'1' * 12}… runs)")
    kernel = installed(tmp_path)[RELEASE]
    assert kernel.machine_code is not None
    assert (kernel.machine_code.build_id, kernel.machine_code.listing, kernel.machine_code_reason) == (ANOTHER_BUILD_ID, (), None)


def test_installed_kernel_that_does_not_run_is_read_without_its_listing(tmp_path: Path, module: bytes, another: bytes) -> None:
    put_running(tmp_path)
    install(tmp_path, RELEASE, module)
    install(tmp_path, NEWER, another)
    kernel = installed(tmp_path)[NEWER]
    assert kernel.machine_code is not None
    assert (kernel.machine_code.build_id, kernel.machine_code.listing) == (ANOTHER_BUILD_ID, ())
    assert facts(tmp_path).machine_code.get().build_id == BUILD_ID


def test_module_that_was_replaced_by_another_of_the_same_build_is_still_tied(tmp_path: Path, module: bytes) -> None:
    """Where modules.dep names a module elsewhere, that one alone is looked at."""
    put_running(tmp_path)
    install(tmp_path, RELEASE, b"not what is loaded")
    install(tmp_path, RELEASE, module, place="updates/kvm.ko")
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.dep", "updates/kvm.ko:\n")
    assert facts(tmp_path).machine_code.source == f"/lib/modules/{RELEASE}/updates/kvm.ko"


def test_only_the_newest_kernels_are_read_and_the_rest_says_so(tmp_path: Path, module: bytes) -> None:
    releases = [f"6.1.0-{number}-test" for number in range(1, MOST_INSTALLED + 4)]
    put_running(tmp_path, release=releases[1])
    for release in releases:
        install(tmp_path, release, module)
    kernels = installed(tmp_path)
    assert [release for release in releases if kernels[release].machine_code is not None] == releases[-MOST_INSTALLED:]
    assert kernels[releases[1]].machine_code_reason is None
    reason = f"not read: only the {MOST_INSTALLED} newest kernels are, beside the one that runs"
    assert {kernels[release].machine_code_reason for release in (releases[0], releases[2])} == {reason}


def test_sysroot_where_nothing_runs_has_its_installed_kernels_read(tmp_path: Path, module: bytes) -> None:
    install(tmp_path, RELEASE, module)
    kernel = facts(tmp_path)
    assert (kernel.machine_code.source, kernel.machine_code.reason) == ("/proc/sys/kernel/osrelease", "no such file or directory")
    assert kernel.installed.get()[0].machine_code is not None


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        ("/sys/module/kvm/notes/.note.gnu.build-id", "no such file or directory: without it no file can be tied to what runs"),
        (f"/lib/modules/{RELEASE}/{USUAL}", "holds no file of what runs: expected kvm.ko, or the image of a kernel that KVM is built into"),
    ],
)
def test_what_keeps_the_running_code_from_being_read_is_named(tmp_path: Path, module: bytes, without: str, reason: str) -> None:
    put_running(tmp_path)
    install(tmp_path, RELEASE, module)
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.builtin", "kernel/fs/ext4/ext4.ko\n")
    (tmp_path / without.lstrip("/")).unlink()
    assert facts(tmp_path).machine_code.reason == reason


def test_kernel_without_kvm_loaded_has_nothing_that_runs(tmp_path: Path, module: bytes) -> None:
    put(tmp_path, "/proc/sys/kernel/osrelease", RELEASE)
    put(tmp_path, "/sys/module/loop/initstate")
    install(tmp_path, RELEASE, module)
    install(tmp_path, NEWER, module)
    assert facts(tmp_path).machine_code.reason == "KVM is not loaded"
    kernels = installed(tmp_path)
    assert kernels[RELEASE].machine_code_reason == "which build of it runs is not known: KVM is not loaded"
    assert kernels[NEWER].machine_code is not None


def test_module_without_a_build_id_is_not_taken_for_what_runs_nor_for_another_build(tmp_path: Path, module: bytes) -> None:
    put_running(tmp_path)
    marked = module.replace(b"\x03\0\0\0GNU\0" + bytes.fromhex(BUILD_ID), b"\x04\0\0\0GNU\0" + bytes(20))
    assert marked != module
    install(tmp_path, RELEASE, marked)
    code = facts(tmp_path).machine_code
    assert "has no build-id, so it cannot be told whether it is what runs" in (code.reason or "")
    kernel = installed(tmp_path)[RELEASE]
    assert kernel.machine_code is None
    assert "has no build-id" in (kernel.machine_code_reason or "")


def test_file_that_cannot_be_read_is_the_reason(tmp_path: Path) -> None:
    put_running(tmp_path)
    install(tmp_path, RELEASE, b"not a module")
    install(tmp_path, NEWER, b"not a module")
    code = facts(tmp_path).machine_code
    assert (code.known, code.source) == (False, f"/lib/modules/{RELEASE}/{USUAL}")
    assert (installed(tmp_path)[NEWER].machine_code_reason or "").startswith(f"/lib/modules/{NEWER}/{USUAL}: ")


def test_several_modules_of_one_release_settle_nothing_for_a_reboot(tmp_path: Path, module: bytes, another: bytes) -> None:
    put_running(tmp_path)
    install(tmp_path, NEWER, module)
    install(tmp_path, NEWER, another, place="extra/kvm.ko")
    put(tmp_path, f"/lib/modules/{NEWER}/modules.dep", f"{USUAL}:\nextra/kvm.ko:\n")
    reason = installed(tmp_path)[NEWER].machine_code_reason or ""
    assert reason.startswith("has several modules kvm")
    assert "extra/kvm.ko" in reason


def test_kernel_that_kvm_is_built_into_is_tied_by_the_kernels_own_build_id(tmp_path: Path) -> None:
    put_running(tmp_path, built_in=True)
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.builtin", f"{USUAL}\n")
    put(tmp_path, f"/boot/vmlinuz-{RELEASE}", b"no image")
    code = facts(tmp_path).machine_code
    assert (code.source, code.known) == (f"/boot/vmlinuz-{RELEASE}", False)


def test_kernel_of_another_architecture_is_not_read(tmp_path: Path, module: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> ReaderProcess:
        raise AssertionError("a process was started")

    monkeypatch.setattr("exitguard.facts.machine_code.child.ReaderProcess", refuse)
    put_running(tmp_path)
    put(tmp_path, "/proc/sys/kernel/arch", "aarch64\n")
    install(tmp_path, RELEASE, module)
    install(tmp_path, NEWER, module)
    reason = "the kernel is for aarch64: only x86_64 is read"
    assert facts(tmp_path).machine_code.reason == reason
    assert {kernel.machine_code_reason for kernel in installed(tmp_path).values()} == {reason}


def test_what_ends_the_audit_ends_the_reading(tmp_path: Path, module: bytes) -> None:
    put_running(tmp_path)
    install(tmp_path, RELEASE, module)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_kernel(HostTree(tmp_path), changelog_markers=(), pulse=stop)


def test_documents_from_before_machine_code_was_read_stay_readable(tmp_path: Path) -> None:
    old = facts(tmp_path).model_dump(mode="json")
    del old["machine_code"]
    assert (
        KernelFacts.model_validate_json(KernelFacts.model_validate(old, strict=False).model_dump_json()).machine_code.reason == "not read"
    )
    assert InstalledKernel.model_validate({"release": "6.1"}) == InstalledKernel(release="6.1", machine_code=None, machine_code_reason=None)
