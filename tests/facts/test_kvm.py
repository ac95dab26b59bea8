import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import kvm
from exitguard.facts.kvm import parse_switch, read_kvm
from exitguard.facts.tree import HostTree


@pytest.fixture
def module(tmp_path: Path) -> Path:
    folder = tmp_path / "sys/module/kvm"
    (folder / "parameters").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(("text", "value"), [("Y", True), ("1", True), ("N", False), ("0", False)])
def test_switch_is_y_n_1_or_0(text: str, *, value: bool) -> None:
    assert parse_switch("x", text).value is value


@given(st.text().filter(lambda text: text not in set("YN10")))
def test_any_other_text_is_no_switch(text: str) -> None:
    assert not parse_switch("x", text).known


def test_kernel_without_the_parameter_never_clears_a_pmu_and_the_source_says_so(tmp_path: Path, module: Path) -> None:
    (module / "parameters/halt_poll_ns").write_text("200000\n")
    facts = read_kvm(HostTree(tmp_path))
    assert facts.parameters.value == {"kvm.halt_poll_ns": "200000"}
    assert (facts.enable_pmu.value, facts.enable_mediated_pmu.value) == (True, False)
    assert facts.enable_pmu.source.endswith("(this kernel has no such parameter)")


def test_parameter_that_is_there_and_cannot_be_read_is_not_called_absent(tmp_path: Path, module: Path) -> None:
    (module / "parameters/enable_pmu").mkdir()
    facts = read_kvm(HostTree(tmp_path))
    assert facts.enable_pmu.reason == "not a regular file"
    assert facts.parameters.value == {}


def test_unloaded_kvm_has_reasons(tmp_path: Path) -> None:
    (tmp_path / "sys/module/loop").mkdir(parents=True)
    facts = read_kvm(HostTree(tmp_path))
    assert {facts.module.reason, facts.parameters.reason, facts.enable_pmu.reason, facts.build_id.reason} == {"KVM is not loaded"}


def test_vendor_modules_are_folders_named_kvm_something(tmp_path: Path, module: Path) -> None:
    for name in ("kvm_intel", "kvm_amd/parameters", "kvm_pvm", "kvmgt"):
        (module.parent / name).mkdir(parents=True)
    (module.parent / "kvm_file").touch()
    (module.parent / "kvm_amd/parameters/nested").write_text("1\n")
    facts = read_kvm(HostTree(tmp_path))
    assert facts.module.get().vendor_modules == ("kvm_amd", "kvm_intel", "kvm_pvm")
    assert facts.parameters.value == {"kvm_amd.nested": "1"}


def test_module_without_a_note_has_a_reason(tmp_path: Path, module: Path) -> None:
    (module / "initstate").write_text("live\n")
    assert read_kvm(HostTree(tmp_path)).build_id.reason == "no such file or directory"
    (module / "notes").mkdir()
    (module / "notes/.note.gnu.build-id").write_bytes(b"\0" * 36)
    assert read_kvm(HostTree(tmp_path)).build_id.reason == "holds no GNU build-id note"


def test_device_of_a_sysroot_is_not_opened(tmp_path: Path) -> None:
    assert "another host" in (read_kvm(HostTree(tmp_path)).device.reason or "")


def test_device_without_a_driver_is_not_opened_lest_the_module_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostTree, "exists", lambda _self, path: path != "/sys/class/misc/kvm")
    monkeypatch.setattr(kvm, "_DEVICE", "/dev/full")  # a device that opens, and that is not KVM
    assert "no KVM driver is registered" in (read_kvm(HostTree()).device.reason or "")


@pytest.mark.parametrize(
    ("device", "reason"),
    [("/dev/null", "inappropriate ioctl for device"), ("/etc/passwd", "not a character device"), ("/nowhere", "no such file or directory")],
)
def test_device_that_is_not_kvm_has_a_reason(monkeypatch: pytest.MonkeyPatch, device: str, reason: str) -> None:
    monkeypatch.setattr(HostTree, "exists", lambda _self, _path: True)
    monkeypatch.setattr(kvm, "_DEVICE", device)
    assert read_kvm(HostTree()).device.reason == reason


def test_refused_device_names_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(HostTree, "exists", lambda _self, _path: True)
    monkeypatch.setattr(kvm, "_ask_device", refuse)
    device = read_kvm(HostTree()).device
    assert (device.reason, device.unlock) == ("permission denied", "membership in group kvm (or root)")


def test_real_device_speaks_api_12() -> None:
    path = Path("/dev/kvm")
    if not path.exists() or not stat.S_ISCHR(path.stat().st_mode):
        pytest.skip("no /dev/kvm on this machine")
    device = read_kvm(HostTree()).device
    if device.unlock is not None:
        pytest.skip("/dev/kvm may not be opened by this user")
    assert device.get().api_version == 12  # KVM_API_VERSION in <linux/kvm.h>, fixed since 2.6.22
    assert device.get().pmu_capability in {0, 1}
