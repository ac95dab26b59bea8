"""The kernel's histogram of exits, as recorded from real kernels, whole and damaged."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.exit_reasons.histogram import ENTRIES, HistogramError, missing_fields, parse
from exitguard.model.exit_reasons import SVM, VMX, ExitCount, ExitReasons
from exitguard.model.samples import SkipReasons

HERE = Path(__file__).parent
RECORDED = (HERE / "debian12-6.1-svm/hist").read_text()
FORMATS = {name: (HERE / name / "format").read_text() for name in ("debian12-6.1-svm", "built-in-6.18")}
CPUID, MSR, PORT_IO, NESTED_PAGE_FAULT = 0x72, 0x7C, 0x7B, 0x400
REASONS = SkipReasons(always=frozenset({CPUID}), sometimes=frozenset({MSR, PORT_IO}))


def histogram(*entries: str, hits: int, count: int | None = None, dropped: int = 0) -> str:
    total = len(entries) if count is None else count
    head = "# event histogram\n#\n# trigger info: hist:keys=common_pid,isa,exit_reason [paused]\n#\n\n"
    return head + "".join(f"{line}\n" for line in entries) + f"\nTotals:\n    Hits: {hits}\n    Entries: {total}\n    Dropped: {dropped}\n"


def entry(thread: int, isa: int, reason: int, hits: int) -> str:
    """As hist_trigger_entry_print of kernel/trace/trace_events_hist.c writes it."""
    return f"{{ common_pid: {thread:10}, isa: {isa:10}, exit_reason: {reason:10} }} hitcount: {hits:10}"


def test_what_the_test_writes_is_what_the_kernel_wrote() -> None:
    ours = {entry(each.thread, each.isa, each.reason, each.exits) for each in parse(RECORDED)}
    assert {line for line in RECORDED.splitlines() if line.startswith("{")} == ours


def test_recorded_exits_are_told_apart_by_thread_and_reason() -> None:
    counts = parse(RECORDED)
    first, second = sorted({each.thread for each in counts})
    made = {(each.thread, each.reason): each.exits for each in counts}
    assert {each.isa for each in counts} == {SVM}
    # Two loops, of CPUID and of RDMSR, each of 3 times (400 + 800).
    assert sorted(made[key] for key in made if key[1] in {CPUID, MSR}) == [3600, 3600]
    reading = ExitReasons(milliseconds=1000, counts=counts, own_processor_microseconds=1)
    both = [reading.of((thread,), REASONS) for thread in (first, second)]
    assert sum(each.exits for each in both) == reading.total() == sum(made.values())
    of_cpuid, of_msr = sorted(both, key=lambda sampled: sampled.skip_exits_low, reverse=True)
    assert of_cpuid.skip_exits_low == 3600
    assert of_msr.skip_exits_low == 0
    assert of_msr.skip_exits_high >= 3600
    assert reading.of((first, second), REASONS).exits == reading.total()


def test_thread_without_exits_has_a_sample_of_none() -> None:
    reading = ExitReasons(milliseconds=5, counts=parse(RECORDED), own_processor_microseconds=1)
    nobody = reading.of((1,), REASONS)
    assert (nobody.exits, nobody.skip_exits_low, nobody.skip_exits_high, nobody.milliseconds) == (0, 0, 0, 5)


def test_exit_that_never_skips_is_an_exit_all_the_same() -> None:
    counts = parse(histogram(entry(7, SVM, NESTED_PAGE_FAULT, 30), entry(7, SVM, PORT_IO, 5), entry(7, SVM, CPUID, 2), hits=37))
    sampled = ExitReasons(milliseconds=1, counts=counts, own_processor_microseconds=1).of((7,), REASONS)
    assert (sampled.exits, sampled.skip_exits_low, sampled.skip_exits_high) == (37, 2, 7)


def test_flags_above_a_reason_of_vmx_are_no_reason_of_their_own() -> None:
    """0x80000000: the entry failed; a bus lock sets bit 26. SVM's numbers have no such bits."""
    failed = parse(histogram(entry(7, VMX, 0x80000021, 2), entry(7, VMX, 0x21, 3), entry(7, VMX, 0x0400000A, 4), hits=9))
    assert failed == (ExitCount(thread=7, isa=VMX, reason=0x0A, exits=4), ExitCount(thread=7, isa=VMX, reason=0x21, exits=5))
    (vmgexit,) = parse(histogram(entry(7, SVM, 0x80000001, 2), hits=2))
    assert vmgexit.reason == 0x80000001


def test_idle_host_has_an_empty_histogram() -> None:
    assert parse(histogram(hits=0)) == ()


def test_full_histogram_is_none() -> None:
    with pytest.raises(HistogramError, match=f"3 exits found no place among {ENTRIES}"):
        parse(histogram(entry(7, SVM, CPUID, 2), hits=2, dropped=3))


@pytest.mark.parametrize("lines", range(1, RECORDED.count("\n")))
def test_histogram_that_is_cut_short_is_refused(lines: int) -> None:
    cut = "".join(RECORDED.splitlines(keepends=True)[:-lines])
    with pytest.raises(HistogramError, match="has no end"):
        parse(cut)


@pytest.mark.parametrize(
    "lost",
    [line for line in RECORDED.splitlines() if line.startswith("{")],
)
def test_histogram_that_lacks_an_entry_is_refused(lost: str) -> None:
    with pytest.raises(HistogramError, match="and counts"):
        parse(RECORDED.replace(f"{lost}\n", ""))


@pytest.mark.parametrize(
    "line",
    [
        "{ isa:          2, exit_reason:        114 } hitcount:          1",
        "{ common_pid:          7, isa:          2, exit_reason:        114 } hitcount:         -1",
        "{ common_pid:          7, isa:          2, exit_reason:        114 }",
        "{ common_pid: qemu            [          7], isa:          2, exit_reason:        114 } hitcount:          1",
        "{",
    ],
)
def test_entry_of_another_form_is_named(line: str) -> None:
    with pytest.raises(HistogramError, match="expected an entry with common_pid, isa, exit_reason and hitcount"):
        parse(histogram(line, hits=1))


@given(st.text())
def test_any_text_is_a_histogram_or_refused(text: str) -> None:
    for damaged in (text, histogram(text, hits=1), RECORDED.replace("114", text, 1)):
        try:
            parse(damaged)
        except HistogramError:
            continue


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_fields_are_found_by_their_names(name: str) -> None:
    assert missing_fields(FORMATS[name]) == ()


def test_tracepoint_without_isa_is_told() -> None:
    """As Linux before 2.6.39 had it, and whatever may come."""
    without = "".join(line for line in FORMATS["debian12-6.1-svm"].splitlines(keepends=True) if "field:u32 isa;" not in line)
    assert missing_fields(without) == ("isa",)
    assert missing_fields("") == ("common_pid", "isa", "exit_reason")
