"""Sums of a ledger, and the account that is made of them."""

from datetime import UTC, datetime, timedelta

import audit_builders as b

from exitguard.audit.judge import judge
from exitguard.model.host import Cpu, MitigationClass, Mitigations
from exitguard.model.ledger import GuardSaving, LedgerSum, RunStanding, Unaccounted, Worth
from exitguard.model.pmu import LinkName
from exitguard.model.rates import OwnUse
from exitguard.model.record import seen, unseen
from exitguard.model.savings import Savings
from exitguard.policy.load import load_rulebook
from exitguard.savings.account import Books, Sums, account

SHIPPED = load_rulebook()
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
HERTZ = seen("a test", 2_000_000_000)
ID = "7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11"
ZEN_2 = Cpu(
    vendor="AuthenticAMD",
    model_name="AMD EPYC 7302 16-Core Processor",
    family=23,
    model=49,
    stepping=0,
    microcode="0x830107a",
    logical_cpus=64,
    virtualization="svm",
    hypervisor=False,
)
ICE_LAKE = ZEN_2.model_copy(
    update={"vendor": "GenuineIntel", "model_name": "Xeon Gold 6338", "family": 6, "model": 106, "virtualization": "vmx"}
)
JUDGED = judge(b.facts(), SHIPPED)

HEAVY = (MitigationClass.HEAVY_RETURN_TAX, MitigationClass.INDIRECT_CALL_TAX)
_SEEN = {"cpu": seen("/proc/cpuinfo", ZEN_2), "mitigations": seen("vulnerabilities", Mitigations(lines={}, classes=HEAVY))}
REPORT = JUDGED.model_copy(update={"host": JUDGED.host.model_copy(update=_SEEN)})
ZERO = Worth(provenance="table", low=0, high=0, costs=())
SAVED = RunStanding(
    guard=GuardSaving.SAVED,
    saved=Worth(provenance="table", low=50, high=60, at_least=True, costs=("a-row",)),
    attributable=ZERO,
    available=ZERO,
)
BY_CHANGE = SAVED.model_copy(update={"attributable": Worth(provenance="table", low=50, high=60, costs=("a-row",))})
AVAILABLE = RunStanding(
    guard=GuardSaving.AVAILABLE,
    held_back_by=LinkName.KERNEL,
    saved=ZERO,
    attributable=ZERO,
    available=Worth(provenance="table", low=50, high=60, costs=("a-row",)),
)
UNPRICED = RunStanding(guard=GuardSaving.AVAILABLE, held_back_by=LinkName.RUNNING, saved=ZERO, attributable=ZERO, available=None)
#: enable_pmu cleared on a kernel without the guard: what that saves stands nowhere in cycles.
UNPRICED_SAVED = RunStanding(guard=GuardSaving.AVAILABLE, held_back_by=LinkName.KERNEL, saved=None, available=AVAILABLE.available)
VIOLATED = SAVED.model_copy(update={"guard": GuardSaving.VIOLATED})


def summed(
    standing: RunStanding, *, run: int = 1, low: int = 360_000, high: int = 720_000, traced: tuple[int, int, int] = (0, 0, 0)
) -> LedgerSum:
    """An hour of one run: by default 100 to 200 skips a second of 1,000 exits; `traced`: exits, and of these skips at least and at most."""
    return LedgerSum(
        run=f"{ID}/{ID}/{ID}/{run}",
        domain_name=f"web-{run}",
        begin=NOON,
        standing=standing,
        accounted_milliseconds=3_600_000,
        spread_milliseconds=0,
        exits=3_600_000,
        skip_exits_low=low,
        skip_exits_high=high,
        sampled_exits=traced[0],
        sampled_skip_exits_low=traced[1],
        sampled_skip_exits_high=traced[2],
    )


def accounted(
    *sums: LedgerSum,
    cpu_seconds: float = 0.0,
    hertz: int | None = 2_000_000_000,
    watched_seconds: float = 3600.0,
    before: tuple[LedgerSum, ...] = (),
    gaps: tuple[Unaccounted, ...] = (),
    unaccounted_runs: int = 0,
    asked_until: datetime = NOON + timedelta(hours=1),
) -> Savings:
    """The account of an hour in which the host was watched all the time; `before` are runs that have ended, `now` and asked else alike."""
    own = OwnUse(cpu_seconds=cpu_seconds, running_seconds=3600.0 if sums else 0.0)
    now = Sums(NOON, NOON + timedelta(hours=1), sums, watched_seconds, own, unaccounted_runs)
    asked = Sums(NOON, asked_until, (*before, *sums), watched_seconds, own)
    books = Books(
        booked_until=NOON + timedelta(hours=1), present=now, asked=asked, resolution="hour", by_time=(*before, *sums), unaccounted=gaps
    )
    return account(REPORT, books, HERTZ if hertz else unseen("a test", "not known"), SHIPPED.costs)
