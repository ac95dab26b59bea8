"""Audits in which libvirt could not be asked: no domain is gone by that, and what held before holds after it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_builders import START, finding, judge, minutes, observe

from exitguard.model.finding import Verdict
from exitguard.model.history import Transition
from exitguard.store.host import HostStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HostStore]:
    with HostStore.open(tmp_path / "state", now=START) as opened:
        yield opened


def record(store: HostStore, minute: int, **verdicts: Verdict) -> dict[str, int]:
    """An audit at `minute` in which these domains have these verdicts (`n1=FAIL`); since when each has it, in minutes."""
    at = minutes(minute)
    numbers = {int(name[1:]): verdict for name, verdict in verdicts.items()}
    observation = observe(at, numbers=numbers)
    settled = store.record(observation, judge(observation, tuple(finding(n, verdict, at) for n, verdict in numbers.items())))
    return {each.subject.name[-1]: (each.since - START).seconds // 60 for each in settled.findings if each.since is not None}


def record_blind(store: HostStore, minute: int) -> None:
    observation = observe(minutes(minute), blind=True)
    settled = store.record(observation, judge(observation, ()))
    assert settled.findings == ()


def changes(store: HostStore, minute: int) -> list[tuple[Verdict | None, Verdict | None]]:
    found: tuple[Transition, ...] = store.transitions(minutes(minute))
    return [(each.before, each.now) for each in found]


@pytest.mark.parametrize("blind", [1, 3])
def test_verdict_keeps_its_since_over_an_outage_of_libvirt(store: HostStore, blind: int) -> None:
    record(store, 0, n1=Verdict.FAIL, n2=Verdict.PASS)
    for minute in range(1, 1 + blind):
        record_blind(store, minute)
    assert record(store, 10, n1=Verdict.FAIL, n2=Verdict.PASS) == {"1": 0, "2": 0}
    assert changes(store, 1) == []
    assert record(store, 11, n1=Verdict.FAIL, n2=Verdict.PASS) == {"1": 0, "2": 0}


def test_report_of_the_outage_names_no_domain(store: HostStore) -> None:
    record(store, 0, n1=Verdict.FAIL)
    record_blind(store, 1)
    report = store.report()
    assert report is not None
    assert (report.domains, report.findings) == ((), ())


def test_verdict_that_changed_meanwhile_is_one_transition_from_what_it_was(store: HostStore) -> None:
    record(store, 0, n1=Verdict.FAIL)
    record_blind(store, 1)
    assert record(store, 10, n1=Verdict.PASS) == {"1": 10}
    assert changes(store, 1) == [(Verdict.FAIL, Verdict.PASS)]


def test_domain_that_does_not_come_back_is_gone_when_libvirt_says_so(store: HostStore) -> None:
    record(store, 0, n1=Verdict.FAIL, n2=Verdict.PASS)
    record_blind(store, 1)
    assert changes(store, 1) == []
    assert record(store, 10, n2=Verdict.PASS) == {"2": 0}
    assert changes(store, 1) == [(Verdict.FAIL, None)]
    # And stays gone: another outage brings nothing back.
    record_blind(store, 11)
    assert record(store, 12, n1=Verdict.FAIL, n2=Verdict.PASS) == {"1": 12, "2": 0}


def test_store_that_begins_in_an_outage_has_nothing_to_go_back_to(store: HostStore) -> None:
    record_blind(store, 0)
    assert record(store, 1, n1=Verdict.FAIL) == {"1": 1}
