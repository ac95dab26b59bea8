"""When exits are traced: where the operator wants it, before every so many samples, and only while it costs little of what it measures.

By perf's counters, which the kernel removes with the process and which cost less. More vCPUs than these are to be had for take turns; or,
where the kernel's histogram may be used, all are counted by that at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from exitguard.daemon.log import get_logger
from exitguard.facts.exit_reasons.reading import count_exits, why_not
from exitguard.facts.traced_exits import MOST_THREADS, trace_exits, vcpu_threads
from exitguard.facts.tree import HostTree
from exitguard.model.host import Cpu
from exitguard.model.rates import Rates, SampledRates
from exitguard.model.record import Observed
from exitguard.model.samples import DomainSample, SampledExits
from exitguard.savings.exit_reasons import SKIP_REASONS, samples_apart

_log = get_logger()
#: For how long an estimate says whether another one would cost too much.
_REMEMBERED = timedelta(days=1)


@dataclass
class Tracing:
    """For one thread. Off until the ledger says for the first time what there is to be measured."""

    #: 0: not wanted.
    seconds: float = 0.0
    interval_seconds: float = 300.0
    #: Before every how many samples, or why not now; None: not weighed yet, or not wanted.
    _answer: int | str | None = None
    #: The last estimate, and of when: without one a trace would be weighed by the high bound, which may be far from it.
    _estimate: tuple[SampledRates, datetime] | None = None
    #: Samples since the last trace.
    _passed: int = 0
    #: Guests that were traced, the longest ago first: more than one trace may hold take turns.
    _turns: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether exits are traced now and then."""
        return isinstance(self._answer, int)

    def weigh(self, rates: Rates) -> None:
        """Decide by what the ledger says now, and tell where that is another answer than before."""
        if rates.sampled is not None:
            self._estimate = rates.sampled, rates.until
        elif self._estimate is not None and rates.until - self._estimate[1] < _REMEMBERED:
            rates = rates.model_copy(update={"sampled": self._estimate[0]})
        apart = samples_apart(rates, self.seconds, self.interval_seconds) if self.seconds else None
        if apart == self._answer:
            return
        self._answer = apart
        if isinstance(apart, str):
            _log.info("exit_trace.off", reason=apart)
        elif apart is not None:
            _log.info("exit_trace.on", seconds=self.seconds, samples_apart=apart)

    def trace(self, tree: HostTree, cpu: Cpu | None, runs: Iterable[DomainSample]) -> Observed[dict[str, SampledExits]] | None:
        """By domain uuid, what was traced now; None where it is not the time for it."""
        reasons = SKIP_REASONS.get(cpu.virtualization) if cpu is not None else None
        if not isinstance(self._answer, int) or reasons is None:
            return None
        self._passed += 1
        if self._passed < self._answer:
            return None
        self._passed = 0
        threads = {run.uuid: vcpu_threads(tree, run.pid) for run in runs}
        if sum(map(len, threads.values())) > MOST_THREADS and why_not(tree) is None:
            return count_exits(tree, threads, reasons, self.seconds)
        turn = {uuid: threads[uuid] for uuid in sorted(threads, key=self._turn) if 0 < len(threads[uuid]) <= MOST_THREADS}
        traced = trace_exits(tree, turn, reasons, self.seconds)
        if traced.value is not None:
            self._turns = [uuid for uuid in self._turns if uuid in threads and uuid not in traced.value] + list(traced.value)
        return traced

    def _turn(self, uuid: str) -> int:
        return self._turns.index(uuid) if uuid in self._turns else -1
