"""What waits to be judged anew: soon after quiet, less often in a storm, and never lost."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from exitguard.daemon.pending import MOST_DOMAINS, PendingDomains

#: Later than any pause of these tests.
NEVER = 1e9


def test_domain_wakes_the_loop_though_an_audit_of_everything_waits_for_its_pause() -> None:
    pending = PendingDomains()
    pending.pause(60.0, 100.0, everything=True)
    pending.add_everything(100.0)
    assert pending.add("a", 100.0)
    assert not pending.add("a", 100.0)
    assert (pending.due_in(100.0) or 0) < 1


def test_nothing_is_due_while_nothing_happened() -> None:
    assert PendingDomains().due_in(100.0) is None


def test_event_after_quiet_is_due_within_a_moment() -> None:
    pending = PendingDomains()
    assert pending.add("a", 100.0)
    assert not pending.add("b", 100.1)
    assert 0 < (pending.due_in(100.0) or 0) < 1
    assert pending.due_in(101.0) == 0.0
    assert pending.take(NEVER).uuids == {"a", "b"}
    assert pending.due_in(101.0) is None


def test_pause_grows_with_what_the_judging_took() -> None:
    pending = PendingDomains()
    pending.pause(2.0, 100.0, everything=False)
    pending.add("a", 100.0)
    # At most a twentieth of one CPU: 2 seconds of work, 38 of pause.
    assert pending.due_in(100.0) == 38.0


def test_audit_of_everything_has_a_longer_pause_which_holds_up_no_single_domain() -> None:
    pending = PendingDomains()
    pending.pause(0.01, 100.0, everything=True)
    pending.add_everything(100.0)
    assert (pending.due_in(100.0) or 0) >= 10
    pending.add("a", 100.0)
    assert pending.due_in(101.0) == 0.0
    taken = pending.take(101.0)
    assert (taken.uuids, taken.everything) == ({"a"}, False)
    assert (pending.due_in(101.0) or 0) >= 10
    assert pending.take(NEVER).everything


def test_audit_that_a_person_asks_for_waits_for_no_pause() -> None:
    pending = PendingDomains()
    pending.pause(60.0, 100.0, everything=True)
    pending.add_everything(100.0, at_once=True)
    assert pending.due_in(100.0) == 0.0


def test_planned_audit_takes_all_that_waits() -> None:
    pending = PendingDomains()
    pending.add("a", 100.0)
    pending.add_everything(100.0)
    pending.take_all()
    assert pending.due_in(NEVER) is None


def test_more_domains_than_a_handful_mean_everything() -> None:
    pending = PendingDomains()
    for number in range(MOST_DOMAINS):
        pending.add(str(number), 100.0)
    assert not pending.take(NEVER).everything
    for number in range(10_000):
        pending.add(str(number), 100.0)
    assert len(pending) == MOST_DOMAINS
    assert pending.take(NEVER).everything


def test_same_domain_a_thousand_times_is_one_domain() -> None:
    pending = PendingDomains()
    for _ in range(1000):
        pending.add("a", 100.0)
    taken = pending.take(NEVER)
    assert (taken.uuids, taken.everything) == ({"a"}, False)


def test_everything_is_due_without_any_domain() -> None:
    pending = PendingDomains()
    pending.add_everything(100.0)
    assert pending.due_in(103.0) == 0.0
    assert pending.take(NEVER).everything


@given(st.lists(st.one_of(st.just("take"), st.integers(0, 40).map(str)), max_size=60))
def test_no_event_is_ever_lost(steps: list[str]) -> None:
    """Whatever the order: a domain of which an event came after it was last taken for good is waiting, alone or within everything."""
    pending = PendingDomains()
    waiting: set[str] = set()
    for step in steps:
        if step == "take":
            pending.take(NEVER)
            waiting.clear()
        else:
            pending.add(step, 100.0)
            waiting.add(step)
        assert (pending.due_in(200.0) is not None) == bool(waiting)
    taken = pending.take(NEVER)
    assert taken.everything or taken.uuids == waiting
    assert len(taken.uuids) <= MOST_DOMAINS


def test_events_of_many_threads_all_arrive() -> None:
    pending = PendingDomains()
    firsts: list[bool] = []

    def tell(number: int) -> None:
        firsts.extend(pending.add(f"{number % 5}", 100.0) for _ in range(500))

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert firsts.count(True) == 1
    assert pending.take(NEVER).uuids == {str(number) for number in range(5)}
