"""What a mount table tells of a path, and where it does not tell."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.mounts import Place, parse_mounts

QEMU = "/usr/bin/qemu-system-x86_64"
PLAIN = b"""\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw - proc proc rw
30 22 8:2 / /srv rw - xfs /dev/sda2 rw
"""


def test_path_lies_where_the_longest_mount_leads() -> None:
    table = parse_mounts(PLAIN)
    assert table.place(QEMU) == Place("8:1", QEMU, "ext4")
    assert table.place("/srv/vm/qemu") == Place("8:2", "/vm/qemu", "xfs")
    assert table.place("/srv") == Place("8:2", "/", "xfs")
    assert table.place("/srvice") == Place("8:1", "/srvice", "ext4")
    assert table.place("/") == Place("8:1", "/", "ext4")


def test_folder_that_is_mounted_on_itself_is_the_same_place() -> None:
    """What a unit's sandbox does: read-only, and the same files."""
    sandbox = PLAIN + b"40 22 8:1 /usr /usr ro - ext4 /dev/sda1 rw\n"
    assert parse_mounts(sandbox).place(QEMU) == parse_mounts(PLAIN).place(QEMU)


def test_containers_root_is_another_place() -> None:
    container = b"500 400 0:57 / / rw - overlay overlay rw,lowerdir=/a\n501 500 0:21 / /proc rw - proc proc rw\n"
    assert parse_mounts(container).place(QEMU) == Place("0:57", QEMU, "overlay")


def test_subfolder_of_the_same_disk_as_root_is_another_place() -> None:
    assert parse_mounts(b"22 1 8:1 /machines/a / rw - ext4 /dev/sda1 rw\n").place(QEMU) == Place("8:1", f"/machines/a{QEMU}", "ext4")


def test_later_mount_covers_the_earlier_and_all_below_it() -> None:
    covered = PLAIN + b"50 22 8:3 / /usr/bin rw - ext4 /dev/sdc rw\n51 22 8:4 / /usr rw - ext4 /dev/sdd rw\n"
    assert parse_mounts(covered).place(QEMU) == Place("8:4", "/bin/qemu-system-x86_64", "ext4")
    stacked = PLAIN + b"50 22 8:3 / /usr rw - ext4 /dev/sdc rw\n51 50 8:4 / /usr rw - ext4 /dev/sdd rw\n"
    assert parse_mounts(stacked).place(QEMU) == Place("8:4", "/bin/qemu-system-x86_64", "ext4")


def test_root_that_covers_an_initial_root_is_the_one_that_counts() -> None:
    switched = b"1 1 0:2 / / rw - rootfs rootfs rw\n22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    assert parse_mounts(switched).place(QEMU) == Place("8:1", QEMU, "ext4")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"30 22 8:2 / /srv rw - xfs /dev/sda2 rw\n",  # a chroot
        b"22 1 8:1 / / rw - ext4 a rw\n23 2 8:2 / / rw - ext4 b rw\n",
        PLAIN + b"50 22 8:3 / /usr rw - ext4 c rw\n51 22 8:4 / /usr rw - ext4 d rw\n",
        PLAIN + b"half a line\n",
        PLAIN + b"50 22 8:3 / /elsewhere rw\n",
        PLAIN + b"x 22 8:3 / /elsewhere rw - ext4 c rw\n",
    ],
)
def test_table_that_does_not_tell_says_nothing(content: bytes) -> None:
    assert parse_mounts(content).place(QEMU) is None


def test_blanks_in_paths_are_read() -> None:
    table = parse_mounts(PLAIN + rb"50 22 8:3 /a\040b /my\040disk rw - ext4 /dev/sdc rw" + b"\n")
    assert table.place("/my disk/qemu") == Place("8:3", "/a b/qemu", "ext4")


@given(st.binary(max_size=400))
def test_any_bytes_are_a_table(content: bytes) -> None:
    parse_mounts(PLAIN + content).place(QEMU)


def test_every_mount_point_of_this_machine_lies_on_its_own_file_system() -> None:
    table = parse_mounts(Path("/proc/self/mountinfo").read_bytes())
    place = table.place(str(Path(__file__).resolve()))
    assert place is not None
    device = Path(__file__).stat().st_dev
    if place.kind != "btrfs":  # it gives each subvolume a number of its own
        assert place.device == f"{os.major(device)}:{os.minor(device)}"
