"""When the daemon traces exits: only where wanted and worth it, only so often, and all guests in turn."""

import sys
from datetime import timedelta
from pathlib import Path

from exitguard.daemon.tracing import Tracing
from exitguard.facts.tree import HostTree
from exitguard.model.host import Cpu
from exitguard.model.samples import DomainSample

sys.path.append(str(Path(__file__).parents[1] / "savings"))
sys.path.append(str(Path(__file__).parents[1] / "audit"))
from account_builders import AVAILABLE, UNPRICED, ZEN_2, accounted, summed


def guests(folder: Path, **threads: int) -> tuple[HostTree, list[DomainSample]]:
    """A host's tree without tracefs, with a QEMU process of so many vCPUs for each guest."""
    version = folder / "proc/sys/kernel/version"
    version.parent.mkdir(parents=True)
    version.write_text("#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)\n")
    runs = []
    for pid, (name, count) in enumerate(threads.items(), start=10):
        for thread in range(count):
            comm = folder / f"proc/{pid}/task/{pid * 1000 + thread}/comm"
            comm.parent.mkdir(parents=True)
            comm.write_text(f"CPU {thread}/KVM\n")
        runs.append(DomainSample(uuid=name, pid=pid, incarnation=None))
    return HostTree(folder), runs


def often(tracing: Tracing, tree: HostTree, cpu: Cpu | None, runs: list[DomainSample], times: int) -> list[bool]:
    """At which of so many samples it tried to trace."""
    return [tracing.trace(tree, cpu, runs) is not None for _ in range(times)]


def test_nothing_is_traced_unless_it_is_wanted_and_weighed(tmp_path: Path) -> None:
    tree, runs = guests(tmp_path, web=1)
    unwanted = Tracing(seconds=0)
    unwanted.weigh(accounted(summed(AVAILABLE)).now)
    assert not any(often(unwanted, tree, ZEN_2, runs, 20))
    assert not any(often(Tracing(seconds=0.01), tree, ZEN_2, runs, 20))


def test_it_is_traced_before_so_few_samples_as_it_is_worth(tmp_path: Path) -> None:
    tree, runs = guests(tmp_path, web=1)
    tracing = Tracing(seconds=0.5, interval_seconds=300)
    tracing.weigh(accounted(summed(AVAILABLE)).now)
    assert often(tracing, tree, ZEN_2, runs, 7) == [False, False, True, False, False, True, False]


def test_it_stays_off_where_it_is_not_worth_it_or_the_processor_is_not_known(tmp_path: Path) -> None:
    tree, runs = guests(tmp_path, web=1)
    tracing = Tracing(seconds=0.5, interval_seconds=300)
    tracing.weigh(accounted(summed(AVAILABLE)).now)
    assert not any(often(tracing, tree, None, runs, 20))
    tracing.weigh(accounted(summed(UNPRICED)).now)
    assert not any(often(tracing, tree, ZEN_2, runs, 20))


def test_host_that_cannot_be_traced_says_why(tmp_path: Path) -> None:
    tree, runs = guests(tmp_path, web=1)
    tracing = Tracing(seconds=0.01, interval_seconds=300)
    tracing.weigh(accounted(summed(AVAILABLE)).now)
    (found,) = [tracing.trace(tree, ZEN_2, runs)]
    assert found is not None
    assert found.reason is not None
    assert found.unlock is not None


def test_last_estimate_decides_for_a_day_even_when_it_is_in_no_rate_any_more(tmp_path: Path) -> None:
    tree, runs = guests(tmp_path, web=1)
    tracing = Tracing(seconds=0.5, interval_seconds=300)
    rare = accounted(summed(AVAILABLE, low=0, traced=(10_000, 1, 1))).now
    without = accounted(summed(AVAILABLE, low=0)).now
    tracing.weigh(rare)
    assert not tracing.wanted
    tracing.weigh(without.model_copy(update={"until": rare.until + timedelta(hours=23)}))
    assert not tracing.wanted
    tracing.weigh(without.model_copy(update={"until": rare.until + timedelta(hours=25)}))
    assert tracing.wanted
    assert any(often(tracing, tree, ZEN_2, runs, 20))
