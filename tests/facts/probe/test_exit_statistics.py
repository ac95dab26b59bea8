"""KVM's binary statistics: a real file, and everything that a file could say instead."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.probe.statistics import StatisticsError, exit_counter, parse_layout

#: A vCPU's statistics of Linux 6.18 (KVM in software), read from KVM_GET_STATS_FD after a loop of CPUIDs that made 5 exits.
RECORDED = (Path(__file__).parent / "vcpu_statistics_linux_6.18.bin").read_bytes()
_HEADER = struct.Struct("=6I")
_DESCRIPTOR = struct.Struct("=IhHII")


def statistics_file(*counters: tuple[str, int, int], name_size: int = 48, flags: int = 0) -> bytes:
    """A file as KVM lays it out: header, id, descriptors, values; of each counter its name, how many values, and the first."""
    descriptors_at = _HEADER.size + name_size
    step = _DESCRIPTOR.size + name_size
    data_at = descriptors_at + len(counters) * step
    head = _HEADER.pack(0, name_size, len(counters), _HEADER.size, descriptors_at, data_at) + b"kvm-1/vcpu-0".ljust(name_size, b"\0")
    descriptors, values = b"", b""
    for name, size, value in counters:
        descriptors += _DESCRIPTOR.pack(flags, 0, size, len(values), 0) + name.encode().ljust(name_size, b"\0")
        values += struct.pack("=Q", value) * size
    return head + descriptors + values


def counted(content: bytes, folder: Path) -> int:
    path = folder / "statistics"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return exit_counter(descriptor).read()
    finally:
        os.close(descriptor)


def test_exits_of_a_recorded_file_are_found(tmp_path: Path) -> None:
    assert counted(RECORDED, tmp_path) == 5


def test_recorded_file_names_the_counters_of_skipping_exits() -> None:
    assert {"exits", "io_exits", "halt_exits", "hypercalls", "insn_emulation"} <= parse_layout(RECORDED).offsets.keys()


def test_counter_is_found_by_its_name_and_not_by_its_place(tmp_path: Path) -> None:
    assert counted(statistics_file(("pf_taken", 1, 9), ("halt_poll_success_hist", 32, 7), ("exits", 1, 4711)), tmp_path) == 4711


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "header"),
        (RECORDED[:20], "header"),
        (RECORDED[:600], "descriptors"),
        (_HEADER.pack(0, 0, 1, 24, 24, 24), "descriptors"),
        (_HEADER.pack(0, 48, 2**32 - 1, 24, 24, 24), "descriptors"),
        (_HEADER.pack(0, 2**32 - 1, 1, 24, 24, 24), "descriptors"),
        (_HEADER.pack(0, 48, 10, 24, 2**32 - 1, 24), "descriptors"),
        (statistics_file(("pf_taken", 1, 9)), "exits"),
        (statistics_file(("exits", 1, 9))[:-1], "end of the file"),
        (statistics_file(("exits", 32, 9)), "exits"),
        (statistics_file(("exits", 1, 9), flags=1), "exits"),
    ],
)
def test_file_that_is_not_as_documented_is_refused_with_what_was_found(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match=said):
        counted(content, tmp_path)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_no_file_breaks_the_parser(content: bytes, place: int) -> None:
    for hostile in (content, RECORDED[:place] + content + RECORDED[place + len(content) :]):
        try:
            offsets = parse_layout(hostile).offsets
        except StatisticsError:
            continue
        assert all(0 <= offset < 1 << 20 for offset in offsets.values())


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_values_come_back_whatever_they_are(values: list[int]) -> None:
    content = statistics_file(*((f"counter_{place}", 1, value) for place, value in enumerate(values)))
    offsets = parse_layout(content).offsets
    assert [struct.unpack_from("=Q", content, offsets[f"counter_{place}"])[0] for place in range(len(values))] == values
