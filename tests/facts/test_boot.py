from pathlib import Path

import pytest

from exitguard.facts.boot import RELEASE, read_boots_next, read_installed
from exitguard.facts.tree import HostTree

MENU = "menuentry 'a' { linux /boot/vmlinuz-6.1.0-1-amd64 }\n"


def write(root: Path, path: str, text: str = "") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_kernel_needs_modules_and_an_image(tmp_path: Path) -> None:
    write(tmp_path, "lib/modules/6.1.0-9-amd64/modules.dep")
    write(tmp_path, "boot/vmlinuz-6.1.0-9-amd64")
    write(tmp_path, "lib/modules/6.1.0-56-amd64/modules.dep")
    write(tmp_path, "boot/vmlinuz-6.1.0-56-amd64")
    write(tmp_path, "lib/modules/7.0/vmlinuz")
    write(tmp_path, "lib/modules/6.0-left-over/modules.dep")
    write(tmp_path, "boot/vmlinuz-without-modules")
    assert read_installed(HostTree(tmp_path)).value == ("6.1.0-9-amd64", "6.1.0-56-amd64", "7.0")


def test_modules_below_a_linked_lib_are_found(tmp_path: Path) -> None:
    write(tmp_path, "usr/lib/modules/6.1/vmlinuz")
    (tmp_path / "lib").symlink_to("usr/lib")
    assert read_installed(HostTree(tmp_path)).value == ("6.1",)


def test_folder_names_that_are_no_release_are_left_out(tmp_path: Path) -> None:
    for name in ("--root=x", "a b", ".hidden", "x" * 65, "a\nb", "*"):
        write(tmp_path, f"lib/modules/{name}/vmlinuz")
    assert read_installed(HostTree(tmp_path)).value == ()


def test_too_many_folders_have_a_reason(tmp_path: Path) -> None:
    for number in range(65):
        (tmp_path / f"lib/modules/{number}").mkdir(parents=True)
    assert read_installed(HostTree(tmp_path)).reason == "holds 65 folders, expected at most 64 kernels"


@pytest.mark.parametrize(
    "release", ["6.1.0-56-cloud-amd64", "5.14.0-503.11.1.el9_5.x86_64+debug", "6.12.113+deb12-amd64", "3.10.0-1160.vz7.x86_64"]
)
def test_real_releases_are_releases(release: str) -> None:
    assert RELEASE.fullmatch(release)


def test_no_boot_loader_has_a_reason(tmp_path: Path) -> None:
    assert "no boot loader configuration" in (read_boots_next(HostTree(tmp_path)).reason or "")


def test_systemd_boot_is_named_and_not_guessed_at(tmp_path: Path) -> None:
    write(tmp_path, "boot/loader/loader.conf", "default debian-*\n")
    assert "systemd-boot" in (read_boots_next(HostTree(tmp_path)).reason or "")


def test_grub_config_without_an_environment_block_is_enough(tmp_path: Path) -> None:
    write(tmp_path, "boot/grub/grub.cfg", MENU)
    assert read_boots_next(HostTree(tmp_path)).value == "6.1.0-1-amd64"


@pytest.mark.parametrize("name", ["grub.cfg", "grubenv"])
def test_file_that_is_there_and_cannot_be_read_has_a_reason(tmp_path: Path, name: str) -> None:
    write(tmp_path, "boot/grub2/grub.cfg", MENU)
    (tmp_path / "boot/grub2" / name).unlink(missing_ok=True)
    (tmp_path / "boot/grub2" / name).mkdir()
    observed = read_boots_next(HostTree(tmp_path))
    assert (observed.source, observed.reason) == (f"/boot/grub2/{name}", "not a regular file")


def test_custom_default_is_not_guessed_at(tmp_path: Path) -> None:
    write(tmp_path, "boot/grub/grub.cfg", MENU)
    custom = write(tmp_path, "boot/grub/custom.cfg", "menuentry 'mine' { linux /mine }\n")
    assert read_boots_next(HostTree(tmp_path)).known
    custom.write_text("set default='mine'\n")
    observed = read_boots_next(HostTree(tmp_path))
    assert (observed.source, observed.known) == ("/boot/grub/custom.cfg", False)


def test_loader_entries_that_are_missing_have_a_reason(tmp_path: Path) -> None:
    write(tmp_path, "boot/grub2/grub.cfg", "blscfg\n")
    observed = read_boots_next(HostTree(tmp_path))
    assert (observed.source, observed.reason) == ("/boot/loader/entries", "no such file or directory")
    write(tmp_path, "boot/loader/entries/readme.txt")
    assert "there are none" in (read_boots_next(HostTree(tmp_path)).reason or "")


def test_loader_entry_that_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    write(tmp_path, "boot/grub2/grub.cfg", "blscfg\n")
    write(tmp_path, "boot/loader/entries/m-1.conf", "linux /vmlinuz-1\n")
    (tmp_path / "boot/loader/entries/m-2.conf").symlink_to("nowhere")
    assert read_boots_next(HostTree(tmp_path)).source == "/boot/loader/entries/m-2.conf"


def test_release_that_could_not_be_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "boot/grub/grub.cfg", "menuentry 'a' { linux '/vmlinuz-6.1 --option' }\n")
    assert "names no kernel release" in (read_boots_next(HostTree(tmp_path)).reason or "")
