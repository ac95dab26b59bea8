"""Which files hold the code of KVM, by release and by what an operator names."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file that hold no tests

from small_modules import BUILD_ID, RELEASE, put, put_running

from exitguard.facts.machine_code import files
from exitguard.facts.machine_code.files import RUNNING_BTF, files_of_path, files_of_paths, files_of_release
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.tree import HostTree

USUAL = "kernel/arch/x86/kvm/kvm.ko"
LIST_WITHOUT_KVM = "kernel/virt/lib/irqbypass.ko.xz:\nkernel/arch/x86/kvm/kvm-amd.ko: kernel/arch/x86/kvm/kvm.ko\n"


def module_paths(root: Path, release: str = RELEASE) -> list[str]:
    return [each.code for each in files_of_release(HostTree(root), release)]


@pytest.mark.parametrize(
    "named",
    [
        "kernel/arch/x86/kvm/kvm.ko",
        "kernel/arch/x86/kvm/kvm.ko.xz",
        "kernel/arch/x86/kvm/kvm.ko.zst",
        "kernel/arch/x86/kvm/kvm.ko.gz",
        "updates/dkms/kvm.ko.zst",
        "extra/kvm/kvm.ko.xz",
        "weak-updates/kvm/kvm.ko",
        "kvm.ko",
    ],
)
def test_module_is_where_modules_dep_says(tmp_path: Path, named: str) -> None:
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.dep", f"{LIST_WITHOUT_KVM}{named}: kernel/virt/lib/irqbypass.ko.xz\n")
    put(tmp_path, f"/lib/modules/{RELEASE}/{USUAL}")
    assert module_paths(tmp_path) == [f"/lib/modules/{RELEASE}/{named}"]


def test_absolute_path_in_modules_dep_is_one_of_the_host(tmp_path: Path) -> None:
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.dep", f"/lib/modules/{RELEASE}/extra/kvm.ko:\n")
    assert module_paths(tmp_path) == [f"/lib/modules/{RELEASE}/extra/kvm.ko"]


def test_module_that_only_ends_or_begins_alike_is_not_kvm(tmp_path: Path) -> None:
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.dep", "extra/my-kvm.ko:\nextra/kvm.ko.bak:\nextra/kvmgt.ko:\n" + LIST_WITHOUT_KVM)
    assert module_paths(tmp_path) == []


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("folder", ["/lib/modules", "/usr/lib/modules"])
def test_module_without_a_list_is_in_its_usual_place(tmp_path: Path, folder: str, suffix: str) -> None:
    put(tmp_path, f"{folder}/{RELEASE}/{USUAL}{suffix}")
    assert module_paths(tmp_path) == [f"{folder}/{RELEASE}/{USUAL}{suffix}"]


def test_module_of_a_merged_usr_is_named_once(tmp_path: Path) -> None:
    put(tmp_path, f"/usr/lib/modules/{RELEASE}/{USUAL}")
    (tmp_path / "lib").symlink_to("usr/lib")
    assert module_paths(tmp_path) == [f"/lib/modules/{RELEASE}/{USUAL}"]


def test_list_that_names_a_flood_of_modules_is_cut(tmp_path: Path) -> None:
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.dep", "".join(f"extra/{number}/kvm.ko:\n" for number in range(1000)))
    assert len(module_paths(tmp_path)) == files._MOST_MODULES


@pytest.mark.parametrize("release", ["", "..", "../../etc", "a/b", "x" * 65])
def test_release_that_could_not_be_one_has_no_files(release: str) -> None:
    assert files_of_release(HostTree(), release) == ()


def test_kernel_without_kvm_has_no_files(tmp_path: Path) -> None:
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.dep", LIST_WITHOUT_KVM)
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.builtin", "kernel/fs/ext4/ext4.ko\n")
    put(tmp_path, f"/boot/vmlinuz-{RELEASE}")
    assert module_paths(tmp_path) == []


def test_kernel_that_kvm_is_built_into_is_its_images_with_system_map(tmp_path: Path) -> None:
    put(tmp_path, f"/lib/modules/{RELEASE}/modules.builtin", f"kernel/fs/ext4/ext4.ko\n{USUAL}\n")
    for path in (f"/boot/vmlinuz-{RELEASE}", f"/lib/modules/{RELEASE}/vmlinuz", f"/usr/lib/debug/boot/vmlinux-{RELEASE}"):
        put(tmp_path, path)
    put(tmp_path, f"/boot/System.map-{RELEASE}", "ffffffffffffffff B The real System.map is in the linux-image-dbg package\n")
    found = files_of_release(HostTree(tmp_path), RELEASE)
    assert [each.code for each in found] == [f"/usr/lib/debug/boot/vmlinux-{RELEASE}", f"/boot/vmlinuz-{RELEASE}"]
    assert {each.system_map for each in found} == {f"/boot/System.map-{RELEASE}"}


def test_release_without_a_folder_of_modules_is_its_image(tmp_path: Path) -> None:
    put(tmp_path, f"/boot/vmlinuz-{RELEASE}")
    assert module_paths(tmp_path) == [f"/boot/vmlinuz-{RELEASE}"]


def test_running_kernels_own_btf_is_the_base_of_the_module_that_runs(tmp_path: Path) -> None:
    put_running(tmp_path)
    put(tmp_path, RUNNING_BTF)
    put(tmp_path, f"/boot/vmlinuz-{RELEASE}")
    put(tmp_path, f"/lib/modules/{RELEASE}/{USUAL}")
    (found,) = files_of_release(HostTree(tmp_path), RELEASE)
    assert (found.btf_base, found.base_of_build) == (RUNNING_BTF, BUILD_ID)


@pytest.mark.parametrize("case", ["another release runs", "no BTF is shown", "the running module has no build-id"])
def test_image_of_the_release_is_the_base_of_every_other_module(tmp_path: Path, case: str) -> None:
    put_running(
        tmp_path,
        release="6.1.0-2-test" if case == "another release runs" else RELEASE,
        build_id=None if case == "the running module has no build-id" else BUILD_ID,
    )
    if case != "no BTF is shown":
        put(tmp_path, RUNNING_BTF)
    put(tmp_path, f"/boot/vmlinuz-{RELEASE}")
    put(tmp_path, f"/lib/modules/{RELEASE}/{USUAL}")
    (found,) = files_of_release(HostTree(tmp_path), RELEASE)
    assert (found.btf_base, found.base_of_build) == (f"/boot/vmlinuz-{RELEASE}", None)


@pytest.mark.parametrize("usr", ["", "usr/"])
@pytest.mark.parametrize("image", ["boot/vmlinuz-{}", "lib/modules/{}/vmlinuz", "usr/lib/modules/{}/vmlinuz"])
def test_unpacked_package_gives_its_module_and_the_image_beside_it(tmp_path: Path, usr: str, image: str) -> None:
    module = put(tmp_path, f"{usr}lib/modules/{RELEASE}/{USUAL}.xz")
    base = put(tmp_path, image.format(RELEASE))
    for named in (tmp_path, module):
        (found,) = files_of_path(named)
        assert (found.code, found.release, found.btf_base) == (str(module), RELEASE, str(base))


def test_packages_with_modules_and_image_apart_belong_together_by_release(tmp_path: Path) -> None:
    module = put(tmp_path, f"linux-modules/usr/lib/modules/{RELEASE}/{USUAL}.xz")
    base = put(tmp_path, f"linux-binary/usr/lib/modules/{RELEASE}/vmlinuz")
    put(tmp_path, "another/usr/lib/modules/6.9/vmlinuz")
    put(tmp_path, f"another/usr/lib/modules/6.9/{USUAL}")
    found = files_of_paths([tmp_path / name for name in ("linux-binary", "linux-modules", "another")])
    assert [(each.release, each.btf_base) for each in found] == [
        (RELEASE, str(base)),
        ("6.9", str(tmp_path / "another/usr/lib/modules/6.9/vmlinuz")),
    ]
    (alone,) = files_of_path(module)
    assert alone.btf_base is None
    (joined,) = files_of_paths([module, tmp_path / "linux-binary"])
    assert joined.btf_base == str(base)


def test_image_of_the_same_folder_goes_before_one_of_the_same_release_elsewhere(tmp_path: Path) -> None:
    for flavour in ("one", "two"):
        put(tmp_path, f"{flavour}/boot/vmlinuz-{RELEASE}")
        put(tmp_path, f"{flavour}/lib/modules/{RELEASE}/{USUAL}")
    put(tmp_path, f"three/lib/modules/{RELEASE}/{USUAL}")
    found = files_of_paths([tmp_path / name for name in ("one", "two", "three")])
    assert [each.btf_base for each in found] == [
        str(tmp_path / f"one/boot/vmlinuz-{RELEASE}"),
        str(tmp_path / f"two/boot/vmlinuz-{RELEASE}"),
        None,
    ]


def test_base_that_an_operator_names_is_used_for_every_module(tmp_path: Path) -> None:
    put(tmp_path, f"boot/vmlinuz-{RELEASE}")
    module, base = put(tmp_path, f"lib/modules/{RELEASE}/{USUAL}"), put(tmp_path, "my-vmlinux")
    (found,) = files_of_path(module, with_base=base)
    assert (found.btf_base, found.base_was_named) == (str(base), True)
    with pytest.raises(Obstacle, match=r"missing: expected the file of a kernel"):
        files_of_path(module, with_base=tmp_path / "missing")


def test_unpacked_package_with_kvm_built_in_is_its_image(tmp_path: Path) -> None:
    put(tmp_path, f"lib/modules/{RELEASE}/modules.builtin", f"{USUAL}\n")
    system_map = put(tmp_path, f"boot/System.map-{RELEASE}")
    image = put(tmp_path, f"boot/vmlinuz-{RELEASE}")
    for named in (tmp_path, image):
        (found,) = files_of_path(named)
        assert (found.code, found.release, found.system_map) == (str(image), RELEASE, str(system_map))


def test_module_in_a_place_of_its_own_is_read_without_a_release(tmp_path: Path) -> None:
    module = put(tmp_path, "build/arch/x86/kvm/kvm.ko")
    for named in (tmp_path, module):
        (found,) = files_of_path(named)
        assert (found.code, found.release, found.btf_base) == (str(module), None, None)


def test_folder_that_is_a_path_of_another_name_is_not_taken_for_a_release(tmp_path: Path) -> None:
    module = put(tmp_path, f"mylib/modules/{RELEASE}/{USUAL}")
    assert [each.release for each in files_of_path(module)] == [None]


def test_folder_without_a_kernel_says_what_was_expected(tmp_path: Path) -> None:
    put(tmp_path, f"binary/usr/lib/modules/{RELEASE}/vmlinuz")
    for folder in (tmp_path / "binary", tmp_path):
        with pytest.raises(Obstacle, match=r"holds no kvm\.ko .*lib/modules/RELEASE/kernel/arch/x86/kvm/kvm\.ko"):
            files_of_path(folder)


def test_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Obstacle, match=r"missing: no such file or directory\. Expected a kernel module"):
        files_of_path(tmp_path / "missing")


def test_links_are_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    outside = put(tmp_path, f"outside/lib/modules/{RELEASE}/{USUAL}")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/lib").symlink_to(tmp_path / "outside/lib")
    (tmp_path / "package/kvm.ko").symlink_to(outside)
    with pytest.raises(Obstacle, match=r"holds no kvm\.ko"):
        files_of_path(tmp_path / "package")


def test_folder_of_endless_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_ENTRIES", 10)
    for number in range(11):
        put(tmp_path, f"file-{number}")
    with pytest.raises(Obstacle, match=r"more than 10 files.*--sysroot"):
        files_of_path(tmp_path)


def test_folder_of_endless_depth_is_looked_into_so_far(tmp_path: Path) -> None:
    put(tmp_path, f"{'d/' * (files._DEEPEST - 1)}kvm.ko")
    put(tmp_path, f"{'e/' * (files._DEEPEST + 1)}kvm.ko")
    assert [each.code for each in files_of_path(tmp_path)] == [str(tmp_path / ("d/" * (files._DEEPEST - 1)) / "kvm.ko")]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users may enter, which pytest's own is not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not look")
@pytest.mark.parametrize("named", ["kernels", "kernels/closed/kvm.ko"], ids=["the folder above", "a file in it"])
def test_folder_that_may_not_be_looked_into_is_named_and_not_passed_over(shared: Path, named: str) -> None:
    """Else the kernels beside it would look like all there are."""
    put(shared, "/kernels/open/kvm.ko")
    closed = put(shared, "/kernels/closed/kvm.ko").parent
    closed.chmod(0)
    try:
        os.seteuid(65534)
        with pytest.raises(Obstacle, match="permission denied"):
            files_of_paths([shared / named])
    finally:
        os.seteuid(0)
