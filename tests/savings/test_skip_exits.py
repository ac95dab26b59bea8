"""The bounds of the skips: each exit kind counts where the kernel's source puts it."""

from hypothesis import given
from hypothesis import strategies as st

from exitguard.savings.skip_exits import SkipExits, bound

NAMES = ["io_exits", "halt_exits", "hypercalls", "irq_exits", "irq_window_exits", "nmi_window_exits", "pf_taken", "insn_emulation"]


def test_halts_and_hypercalls_are_skips_and_interrupts_and_page_faults_are_none() -> None:
    counts = {"exits": 1000, "halt_exits": 100, "hypercalls": 20, "irq_exits": 300, "pf_taken": 50, "irq_window_exits": 10}
    assert bound(counts) == SkipExits(exits=1000, low=120, high=640)


def test_cpuid_and_msr_exits_have_no_counter_and_are_between_the_bounds() -> None:
    assert bound({"exits": 1000}) == SkipExits(exits=1000, low=0, high=1000)


def test_port_io_that_may_have_been_emulated_is_not_in_the_low_bound() -> None:
    assert bound({"exits": 1000, "io_exits": 200, "insn_emulation": 50}).low == 150
    assert bound({"exits": 1000, "io_exits": 200, "insn_emulation": 500}).low == 0


def test_port_io_without_a_counter_of_emulations_is_not_in_the_low_bound() -> None:
    assert bound({"exits": 1000, "io_exits": 200}).low == 0


def test_parts_that_exceed_the_whole_make_no_bound_cross() -> None:
    assert bound({"exits": 10, "halt_exits": 8, "irq_exits": 5}) == SkipExits(exits=10, low=5, high=5)


@given(st.integers(0, 10**12), st.dictionaries(st.sampled_from(NAMES), st.integers(0, 10**12)))
def test_bounds_never_cross_and_stay_within_the_exits(exits: int, parts: dict[str, int]) -> None:
    found = bound({"exits": exits, **parts})
    assert 0 <= found.low <= found.high <= found.exits


@given(st.lists(st.sampled_from(["cpuid", "halt", "hypercall", "port", "string", "irq", "fault"]), max_size=200))
def test_the_true_number_of_skips_lies_between_the_bounds(made: list[str]) -> None:
    counts = {
        "exits": len(made),
        "halt_exits": made.count("halt"),
        "hypercalls": made.count("hypercall"),
        "io_exits": made.count("port") + made.count("string"),
        "insn_emulation": made.count("string"),
        "irq_exits": made.count("irq"),
        "pf_taken": made.count("fault"),
    }
    skips = sum(made.count(kind) for kind in ("cpuid", "halt", "hypercall", "port"))
    found = bound(counts)
    assert found.low <= skips <= found.high
