"""Every host fact at once: of this very machine, of a tree that holds nothing, and of a tree that holds nonsense."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitguard.facts.clock import read_boot_time
from exitguard.facts.cpu import read_cpu
from exitguard.facts.identity import read_dmi_uuid, read_hostname, read_machine_id
from exitguard.facts.kernel import read_kernel
from exitguard.facts.kvm import read_kvm
from exitguard.facts.mitigations import read_mitigations
from exitguard.facts.tree import HostTree
from exitguard.model.host import KernelFacts, KvmFacts
from exitguard.model.record import Observed

MARKERS = ("x86/kvm: skip PMU event trigger when guest PMU is disabled",)
FILES = (
    "proc/sys/kernel/osrelease",
    "proc/sys/kernel/arch",
    "proc/sys/kernel/hostname",
    "proc/sys/kernel/random/boot_id",
    "proc/version",
    "proc/stat",
    "proc/cpuinfo",
    "proc/kallsyms",
    "etc/os-release",
    "etc/machine-id",
    "sys/kernel/notes",
    "sys/kernel/livepatch/p/enabled",
    "sys/module/kvm/parameters/enable_pmu",
    "sys/module/kvm/initstate",
    "sys/module/kvm/notes/.note.gnu.build-id",
    "sys/class/dmi/id/product_uuid",
    "sys/devices/system/cpu/vulnerabilities/spectre_v2",
    "boot/grub/grub.cfg",
    "boot/grub/grubenv",
    "lib/modules/6.1/vmlinuz",
    "usr/share/doc/linux-image-6.1/changelog.gz",
)


def observations(tree: HostTree) -> Iterator[tuple[str, Observed[object]]]:
    kernel, kvm = read_kernel(tree, changelog_markers=MARKERS), read_kvm(tree)
    assert KernelFacts.model_validate_json(kernel.model_dump_json()) == kernel
    assert KvmFacts.model_validate_json(kvm.model_dump_json()) == kvm
    for record in (kernel, kvm):
        for name in type(record).model_fields:
            yield name, getattr(record, name)
    for read in (read_cpu, read_mitigations, read_hostname, read_machine_id, read_dmi_uuid, read_boot_time):
        yield read.__name__, read(tree)


def test_this_machine_shows_what_every_linux_shows() -> None:
    shown = dict(observations(HostTree()))
    assert shown["release"].get() == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert {"architecture", "boot_id", "read_hostname", "read_boot_time"} <= {name for name, observed in shown.items() if observed.known}


def test_whatever_this_machine_hides_has_a_reason() -> None:
    assert [name for name, observed in observations(HostTree()) if not observed.known and not observed.reason] == []


def test_empty_sysroot_shows_nothing_and_says_why(tmp_path: Path) -> None:
    shown = dict(observations(HostTree(tmp_path)))
    assert [name for name, observed in shown.items() if observed.known] == []
    assert all(observed.reason for observed in shown.values())


def test_sysroot_that_is_not_there_says_why(tmp_path: Path) -> None:
    assert {observed.known for _, observed in observations(HostTree(tmp_path / "missing"))} == {False}


@pytest.mark.parametrize("target", ["/", "/dev/zero", "/proc/self/mem", "..", "."])
def test_sysroot_of_links_that_try_to_escape_shows_nothing_of_this_machine(tmp_path: Path, target: str) -> None:
    for path in FILES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(target)
    shown = dict(observations(HostTree(tmp_path)))
    assert not any(
        shown[name].known for name in ("release", "boot_id", "build_id", "symbols", "read_cpu", "read_hostname", "read_machine_id")
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.dictionaries(st.sampled_from(FILES), st.binary(max_size=60) | st.just(b"6.1\n") | st.just(b"1\n")))
def test_sysroot_of_nonsense_never_raises(tmp_path: Path, files: dict[str, bytes]) -> None:
    for path in FILES:
        (tmp_path / path).unlink(missing_ok=True)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert all(observed.known or observed.reason for _, observed in observations(HostTree(tmp_path)))
