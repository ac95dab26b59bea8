"""A simulated host: the same whoever makes it, believable, and judged by the program's own judge."""

import pickle
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.audit.judge import judge
from exitguard.model.kernel import KernelState
from exitguard.model.ledger import GuardSaving
from exitguard.model.pmu import ChainState
from exitguard.model.push import LedgerRows, PushBatch, PushKind, PushRecord, SavingsText, unstamped
from exitguard.model.rates import HostSavings
from exitguard.policy.load import load_rulebook
from exitguard.simulation.host import SimulatedHost
from exitguard.simulation.kinds import KERNELS, UPDATES
from exitguard.simulation.pushes import RECORDS_A_LOOK, Look, Looks
from exitguard.store.hub_records import prepare

START = datetime(2026, 3, 1, 12, 20, tzinfo=UTC)
RULEBOOK = load_rulebook(())


def at_look(number: int, look: int = 0, seed: int = 7) -> SimulatedHost:
    host = SimulatedHost(seed, number)
    for _ in range(look):
        host.advance()
    return host


def pushed(number: int, looks: int, seed: int = 7) -> list[Look]:
    made = Looks(SimulatedHost(seed, number), RULEBOOK)
    return [made.at(START + timedelta(hours=look)) for look in range(looks)]


def of_kind(batch: PushBatch, kind: PushKind) -> PushRecord:
    return next(each for each in batch.records if each.kind is kind)


@given(st.integers(0, 2**32), st.integers(0, 10**6), st.integers(0, 5))
def test_a_host_is_the_same_whoever_makes_it(seed: int, number: int, look: int) -> None:
    one, other = at_look(number, look, seed), pickle.loads(pickle.dumps(SimulatedHost(seed, number)))  # noqa: S301 - our own
    for _ in range(look):
        other.advance()
    assert one.facts(START) == other.facts(START)
    assert one.host_id == other.host_id != SimulatedHost(seed + 1, number).host_id
    assert one.hostname.startswith("sim-")


def test_no_two_hosts_share_an_id_a_name_or_a_domain() -> None:
    hosts = [at_look(number) for number in range(500)]
    assert len({host.host_id for host in hosts}) == len({host.hostname for host in hosts}) == 500
    domains = [domain.uuid for host in hosts for domain in host.facts(START).domains]
    assert len(set(domains)) == len(domains) > 500 * 20


def test_every_kernel_is_judged_as_what_it_is_meant_to_be() -> None:
    for kernel in (*KERNELS, *UPDATES.values()):
        host = at_look(3)
        host.kernel = kernel
        found = judge(host.facts(START), RULEBOOK).host.kernel
        assert (found.release, found.state) == (kernel.release, kernel.state or KernelState.UNKNOWN)
        assert kernel.state in (None, KernelState.NOT_AFFECTED, KernelState.EQUIVALENT) or found.body is kernel.body


def test_a_fleet_is_believable() -> None:
    reports = [judge(at_look(number).facts(START), RULEBOOK) for number in range(0, 8000, 16)]
    kernels = Counter(each.host.kernel.state for each in reports)
    assert set(kernels) == set(KernelState)
    assert 0.4 < kernels[KernelState.AFFECTED] / len(reports) < 0.9
    chains = Counter(domain.chain.state for each in reports for domain in each.domains)
    assert chains.keys() >= set(ChainState) - {ChainState.NOT_APPLICABLE, ChainState.REVERTS, ChainState.PENDING_RESTART}
    assert 20 < sum(chains.values()) / len(reports) < 40
    codes = Counter(each.summary.exit_code for each in reports)
    assert codes[0] > 0.05 * len(reports)
    assert codes[2] > codes[0] > codes[1] == 0


def test_hosts_change_now_and_then_and_some_are_brought_up_to_date() -> None:
    changed, updated = 0, 0
    for number in range(300):
        host = at_look(number)
        begun = host.kernel
        for _ in range(10):
            before = host.facts(START)
            host.advance()
            changed += host.changed
            assert host.changed or host.facts(START) == before
        updated += host.kernel != begun
    assert 0.05 < changed / 3000 < 0.3
    assert 0 < updated < 100


@pytest.mark.parametrize("number", [0, 17, 300, 4711])
def test_what_a_host_pushes_is_what_the_judge_says_and_what_a_hub_takes(number: int) -> None:
    for look, each in enumerate(pushed(number, 4)):
        facts = at_look(number, look).facts(START)
        at = of_kind(each.in_full, PushKind.REPORT).observed_at
        stamped = facts.model_copy(update={"observed_at": at})
        read = {prepared.record.kind: prepared for prepared in _prepared(each.in_full)}
        assert all(prepared.misfit is None for prepared in read.values())
        assert read[PushKind.REPORT].body == unstamped(judge(stamped, RULEBOOK))
        assert read[PushKind.FACTS].body == unstamped(facts)
        assert all((record.seq - 1) // RECORDS_A_LOOK == look for record in each.in_full.records)
        assert [record.sha256 for record in each.batch.records] == [record.sha256 for record in each.in_full.records]


def _prepared(batch: PushBatch) -> list[object]:
    return [prepare(record, batch.host_id, batch.sent_at, timedelta(days=30)) for record in batch.records]  # type: ignore[misc]


def test_what_has_not_changed_goes_as_a_hash_also_after_looks_that_were_left_out() -> None:
    number = next(each for each in range(100) if not at_look(each, 1).changed and not at_look(each, 2).changed)
    looks = pushed(number, 3)
    assert [of_kind(each.batch, PushKind.FACTS).payload is None for each in looks] == [False, True, True]
    later = Looks(SimulatedHost(7, number), RULEBOOK)
    for _ in range(2):
        later.skip()
    assert later.at(START + timedelta(hours=2)) == looks[2]


def test_the_ledger_is_of_the_hour_before_and_the_savings_are_its_sums() -> None:
    look = next(each for number in range(100) for each in pushed(number, 1) if len(each.in_full.records) == RECORDS_A_LOOK)
    rows = LedgerRows.model_validate(of_kind(look.in_full, PushKind.LEDGER).payload, strict=False).rows
    record = of_kind(look.in_full, PushKind.LEDGER)
    hour = record.observed_at.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    assert {row.hour for row in rows} == {hour}
    payload = of_kind(look.in_full, PushKind.SAVINGS).payload
    assert payload is not None
    savings = SavingsText.model_validate(payload).savings
    assert sum(each.exits_per_second for each in savings.now.standings) * 3600 == pytest.approx(sum(row.exits for row in rows))
    assert {each.standing.guard for each in savings.now.standings} == {row.standing.guard for row in rows} <= set(GuardSaving)


def test_savings_that_are_no_numbers_are_refused() -> None:
    look = pushed(17, 1)[0]
    text = SavingsText.model_validate(of_kind(look.in_full, PushKind.SAVINGS).payload).text
    savings = HostSavings.model_validate_json(text)
    for number in ("NaN", "Infinity", "1e999"):
        broken = text.replace(f'"watched_seconds":{savings.now.watched_seconds}', f'"watched_seconds":{number}')
        assert broken != text
        with pytest.raises(ValueError, match="watched_seconds"):
            _ = SavingsText(text=broken).savings
