"""What the machine shows of a core's own clock, from files that are laid out as the kernel's."""

import struct
from pathlib import Path

import pytest

from exitguard.facts.probe.frequency import CoreCounters, core_clock, parse_tsc
from exitguard.facts.tree import HostTree
from exitguard.model.measurement import CheckOutcome


def registers(folder: Path, *, aperf: int, mperf: int) -> str:
    """A file with IA32_MPERF and IA32_APERF where /dev/cpu/N/msr has them: at offsets 0xe7 and 0xe8, eight bytes each.

    They overlap in a plain file, so the later of the two is the one that is whole.
    """
    path = folder / "msr"
    content = bytearray(0x100)
    struct.pack_into("=Q", content, 0xE7, mperf)
    struct.pack_into("=Q", content, 0xE8, aperf)
    path.write_bytes(content)
    return str(path)


def test_ratio_is_core_cycles_for_each_tick() -> None:
    before = CoreCounters(aperf=1_000, mperf=2_000)
    assert before.cycles_per_tick_until(CoreCounters(aperf=4_000, mperf=4_000)) == 1.5


def test_counters_that_wrap_around_are_followed() -> None:
    before = CoreCounters(aperf=2**64 - 100, mperf=2**64 - 50)
    assert before.cycles_per_tick_until(CoreCounters(aperf=100, mperf=50)) == 2.0


def test_counters_that_stood_still_have_no_ratio() -> None:
    assert CoreCounters(1, 1).cycles_per_tick_until(CoreCounters(5, 1)) is None


def test_register_file_is_read_at_the_registers_offsets(tmp_path: Path) -> None:
    with core_clock(HostTree(tmp_path), 0, registers_path=registers(tmp_path, aperf=77, mperf=5)) as clock:
        counters = clock.counters()
    assert counters is not None
    assert counters.aperf == 77


@pytest.mark.parametrize("content", [None, b"", b"x" * 0xE9])
def test_registers_that_cannot_be_read_are_not_visible(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "msr"
    if content is not None:
        path.write_bytes(content)
    with core_clock(HostTree(tmp_path), 0, registers_path=str(path)) as clock:
        assert clock.counters() is None


@pytest.mark.parametrize(("text", "kilohertz"), [("2600000\n", 2_600_000), ("0\n", None), ("<unknown>\n", None), (None, None)])
def test_governors_frequency_is_read_where_it_is_one(tmp_path: Path, text: str | None, kilohertz: int | None) -> None:
    if text is not None:
        folder = tmp_path / "sys/devices/system/cpu/cpu3/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(text)
    with core_clock(HostTree(tmp_path), 3) as clock:
        assert clock.kilohertz() == kilohertz


@pytest.mark.parametrize(
    ("flags", "outcome"),
    [
        ("fpu tsc constant_tsc nonstop_tsc", CheckOutcome.HELD),
        ("fpu tsc constant_tsc nonstop_tsc hypervisor", CheckOutcome.HELD),
        ("fpu tsc constant_tsc", CheckOutcome.FAILED),
        ("fpu tsc", CheckOutcome.FAILED),
        ("fpu tsc hypervisor", CheckOutcome.NOT_VISIBLE),
    ],
)
def test_tsc_is_constant_where_the_processor_says_so(flags: str, outcome: CheckOutcome) -> None:
    assert parse_tsc(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: x\n").outcome is outcome
