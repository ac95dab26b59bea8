"""A module that is KVM's in name, small enough to be compiled in the test that needs it; and host trees that have it."""

import subprocess
from pathlib import Path

_SOURCE = """
__attribute__((section(".modinfo"), used)) static const char vermagic[] = "vermagic=6.1.0-1-test SMP";
int kvm_x86_skip_emulated_instruction(void *vcpu);
int kvm_skip_emulated_instruction(void *vcpu) { return kvm_x86_skip_emulated_instruction(vcpu) != 0; }
"""
_BTF = """
__attribute__((section(".BTF"), used)) static const char btf[9] = "\\x9f\\xeb small";
"""
SMALL_BTF = b"\x9f\xeb small\0"
RELEASE = "6.1.0-1-test"
BUILD_ID = "11" * 20
ANOTHER_BUILD_ID = "22" * 20


def compile_module(folder: Path, *, build_id: str = BUILD_ID, btf: bool = False) -> bytes:
    """kvm.ko with a build-id of choice, and without a PMU call; with `btf` it has a section of that name."""
    source, compiled, linked = folder / "small.c", folder / "small.o", folder / "small.ko"
    source.write_text(_SOURCE + (_BTF if btf else ""))
    subprocess.run(["gcc", "-O2", "-fcf-protection=none", "-c", str(source), "-o", str(compiled)], check=True, timeout=60)
    subprocess.run(["ld", "-r", f"--build-id=0x{build_id}", str(compiled), "-o", str(linked)], check=True, timeout=60)
    return linked.read_bytes()


def build_id_note(build_id: str) -> bytes:
    """The note as sysfs shows it."""
    descriptor = bytes.fromhex(build_id)
    return len(b"GNU\0").to_bytes(4, "little") + len(descriptor).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"GNU\0" + descriptor


def put(root: Path, path: str, content: bytes | str = b"") -> Path:
    """A file of a host tree, with the folders on the way to it."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def put_running(root: Path, *, release: str = RELEASE, build_id: str | None = BUILD_ID, built_in: bool = False) -> None:
    """What a running kernel shows: its release, and KVM with a build-id."""
    put(root, "/proc/sys/kernel/osrelease", f"{release}\n")
    put(root, "/proc/sys/kernel/arch", "x86_64\n")
    put(root, "/sys/module/kvm/parameters/enable_pmu", "Y\n")
    if not built_in:
        put(root, "/sys/module/kvm/initstate", "live\n")
    if build_id is not None:
        put(root, "/sys/kernel/notes" if built_in else "/sys/module/kvm/notes/.note.gnu.build-id", build_id_note(build_id))
