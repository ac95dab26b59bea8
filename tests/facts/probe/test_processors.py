"""Which CPU is measured on: out of recorded /proc and /sys, never one that is somebody's own."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.probe.errors import CannotMeasureError
from exitguard.facts.probe.processors import (
    CpuTimes,
    choose_cpu,
    dedicated_cpus,
    least_busy,
    parse_cpu_list,
    parse_cpu_times,
)
from exitguard.facts.tree import HostTree

#: Of a Linux 6.1 machine with two CPUs, the lines between shortened.
STAT = """cpu  1250 0 3100 81000 30 0 12 7 0 0
cpu0 1200 0 3000 20500 20 0 10 7 0 0
cpu1 50 0 100 60500 10 0 2 0 0 0
intr 12345 0 0
btime 1700000000
"""


@pytest.fixture
def tree(tmp_path: Path) -> HostTree:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(STAT)
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    return HostTree(tmp_path)


def set_apart(tree: HostTree, name: str, cpus: str) -> None:
    (tree.root / "sys/devices/system/cpu" / name).write_text(f"{cpus}\n")


def thread(tree: HostTree, process: int, number: int, name: str, cpus: str) -> None:
    folder = tree.root / f"proc/{process}/task/{number}"
    folder.mkdir(parents=True)
    (tree.root / f"proc/{process}/comm").write_text("qemu-system-x86\n")
    (folder / "comm").write_text(f"{name}\n")
    (folder / "status").write_text(f"Name:\t{name}\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t0\n")


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", set()), ("\n", set()), ("(null)", set()), ("0", {0}), ("0-3,8\n", {0, 1, 2, 3, 8}), ("3-1", set()), ("x,2", {2})],
)
def test_list_of_cpus_is_read_as_the_kernel_writes_it(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


@given(st.text(max_size=40))
def test_no_list_takes_more_cpus_than_a_machine_can_have(text: str) -> None:
    assert all(0 <= cpu <= 99_999 for cpu in parse_cpu_list(text))
    assert len(parse_cpu_list("0-99999")) <= 8193


def test_times_of_each_cpu_are_read_with_steal() -> None:
    times = parse_cpu_times(STAT)
    assert times == {0: CpuTimes(idle=20520, total=24737, steal=7), 1: CpuTimes(idle=60510, total=60662, steal=0)}


def test_kernel_that_shows_no_steal_has_none() -> None:
    assert parse_cpu_times("cpu0 1 2 3 4\n") == {0: CpuTimes(idle=4, total=10, steal=None)}


def test_least_busy_cpu_is_the_one_that_was_idle_for_the_largest_share() -> None:
    before = {cpu: CpuTimes(idle=100, total=200, steal=0) for cpu in range(3)}
    after = {0: CpuTimes(110, 220, 0), 1: CpuTimes(119, 220, 0), 2: CpuTimes(100, 220, 0)}
    assert least_busy(before, after, [0, 1, 2]) == 1
    assert least_busy(before, after, [0, 2]) == 0
    assert least_busy({}, {}, [2, 0]) == 2


@pytest.mark.parametrize("name", ["isolated", "nohz_full"])
def test_cpu_that_is_set_apart_is_never_chosen(tree: HostTree, name: str) -> None:
    set_apart(tree, name, "0-2,4")
    assert choose_cpu(tree, frozenset(range(5)), None) == 3
    with pytest.raises(CannotMeasureError, match=f"CPU 4 is dedicated: it is in .*{name}"):
        choose_cpu(tree, frozenset(range(5)), 4)


def test_cpu_to_which_a_guests_vcpu_is_pinned_alone_is_its_own(tree: HostTree) -> None:
    thread(tree, 100, 101, "CPU 0/KVM", "2")
    thread(tree, 200, 201, "CPU 0/KVM", "0-3")  # may run anywhere
    thread(tree, 300, 301, "worker", "1")  # no vCPU
    assert dedicated_cpus(tree).keys() == {2}
    with pytest.raises(CannotMeasureError, match="thread 101"):
        choose_cpu(tree, frozenset(range(4)), 2)


def test_other_hyperthread_of_a_dedicated_cpu_is_dedicated_too(tree: HostTree) -> None:
    thread(tree, 100, 101, "CPU 0/KVM", "2")
    assert tree.root is not None
    siblings = tree.root / "sys/devices/system/cpu/cpu2/topology/thread_siblings_list"
    siblings.parent.mkdir(parents=True)
    siblings.write_text("2,6\n")
    assert dedicated_cpus(tree).keys() == {2, 6}
    with pytest.raises(CannotMeasureError, match="shares a core with CPU 2"):
        choose_cpu(tree, frozenset(range(8)), 6)


def test_machine_without_a_cpu_to_spare_is_refused_with_what_to_do(tree: HostTree) -> None:
    set_apart(tree, "isolated", "0-1")
    with pytest.raises(CannotMeasureError, match="every CPU") as refused:
        choose_cpu(tree, frozenset({0, 1}), None)
    assert "taskset" in refused.value.next_step


def test_cpu_that_this_process_may_not_run_on_is_refused(tree: HostTree) -> None:
    with pytest.raises(CannotMeasureError, match=r"CPU 7 .*0, 1"):
        choose_cpu(tree, frozenset({0, 1}), 7)


def test_cpu_asked_for_is_taken(tree: HostTree) -> None:
    assert choose_cpu(tree, frozenset({0, 1}), 1) == 1
