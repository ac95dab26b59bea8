from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.clock import boottime_nanoseconds, parse_boot_time, read_boot_time
from exitguard.facts.tree import HostTree


def test_boot_time_is_seconds_since_1970_in_utc() -> None:
    observed = parse_boot_time("cpu  1 2 3\nbtime 1700000000\nprocesses 5\n")
    assert observed.get() == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert observed.model_dump(mode="json")["value"] == "2023-11-14T22:13:20.000000Z"


def test_boot_time_past_the_end_of_time_has_a_reason() -> None:
    assert not parse_boot_time("btime 999999999999\n").known
    assert not parse_boot_time("btime -1\n").known


def uptime_centiseconds() -> int:
    return int(Path("/proc/uptime").read_text().split()[0].replace(".", ""))


def test_time_since_boot_is_the_kernels_uptime() -> None:
    before = uptime_centiseconds()
    between = boottime_nanoseconds() // 10_000_000
    assert before <= between <= uptime_centiseconds()


def test_boot_of_this_machine_is_past() -> None:
    assert datetime(2000, 1, 1, tzinfo=UTC) < read_boot_time(HostTree()).get() < datetime.now(tz=UTC)


def test_missing_file_has_a_reason(tmp_path: Path) -> None:
    assert read_boot_time(HostTree(tmp_path)).reason == "no such file or directory"


@given(st.text() | st.integers().map(lambda number: f"btime {number}"))
def test_arbitrary_text_yields_a_time_or_a_reason(text: str) -> None:
    parse_boot_time(text)
