"""What is kept between two audits: what is looked at again after an event, what makes an audit of everything follow, what is said once."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from exitguard.cycle import AuditRequest
from exitguard.daemon.auditor import Auditor, Retention
from exitguard.daemon.conditions import Conditions
from exitguard.daemon.metrics import Metrics
from exitguard.facts import collect
from exitguard.facts.libvirt.patience import MAX_BLOCKED, BlockedCalls
from exitguard.facts.tree import HostTree
from exitguard.model.host import KvmFacts
from exitguard.model.record import seen, unseen
from exitguard.policy.load import load_rulebook
from exitguard.store import gap
from exitguard.store.errors import StoreError
from exitguard.store.host import HostStore

UUID = str(uuid.UUID(int=7))
START = datetime(2026, 1, 1, tzinfo=UTC)


class Watched:
    """An auditor of libvirt's embedded test driver, and what it said."""

    def __init__(self, state_dir: Path, uri: str) -> None:
        self.said: list[tuple[str, str]] = []
        self.rulebook = load_rulebook()
        self.auditor = Auditor(
            request=AuditRequest(uri=uri, state_dir=state_dir),
            rulebook=self.rulebook,
            retention=Retention(timedelta(days=1), timedelta(days=1), timedelta(days=35), 1 << 30),
            metrics=Metrics(jobs=("audit",), rules=[]),
            conditions=Conditions(
                begun=lambda name, reason: self.said.append((name, reason)), over=lambda name, _: self.said.append((name, "over"))
            ),
            pulse=lambda: None,
            changed=lambda _uuid: None,
        )


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A host of the test driver's with one domain of ours. Each process sees one such host for one file."""
    path = tmp_path / "node.xml"
    domain = f"<domain type='test'><name>ours</name><uuid>{UUID}</uuid><memory>1024</memory><os><type>hvm</type></os></domain>"
    path.write_text(f"<node>{domain}</node>")
    return f"test://{path}"


@pytest.fixture
def watched(tmp_path: Path, uri: str) -> Iterator[Watched]:
    watched = Watched(tmp_path / "state", uri)
    yield watched
    watched.auditor.close()


def stored_names(watched: Watched) -> set[str]:
    state_dir = watched.auditor.request.state_dir
    assert state_dir is not None
    with HostStore.open(state_dir, now=START, read_only=True) as store:
        report = store.report()
    return set() if report is None else {domain.name for domain in report.domains}


def test_nothing_is_judged_anew_before_the_first_audit(watched: Watched) -> None:
    assert watched.auditor.judge_again(frozenset({UUID}))
    assert watched.auditor.standing is None


def test_domain_that_was_never_there_is_as_good_as_gone(watched: Watched) -> None:
    watched.auditor.audit()
    assert not watched.auditor.judge_again(frozenset({str(uuid.UUID(int=9))}))
    assert stored_names(watched) == {"ours"}


def test_switch_of_kvm_s_that_changed_makes_an_audit_of_everything_follow_and_judges_nothing_by_the_old_one(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.auditor.audit()
    before = watched.auditor.standing
    real = collect.read_kvm

    def other(tree: HostTree) -> KvmFacts:
        kvm = real(tree)
        return kvm.model_copy(update={"enable_pmu": seen("/sys/module/kvm/parameters/enable_pmu", kvm.enable_pmu.value is not True)})

    monkeypatch.setattr(collect, "read_kvm", other)
    assert watched.auditor.judge_again(frozenset({UUID}))
    assert watched.auditor.standing is before


def test_single_domain_is_not_judged_where_the_last_audit_saw_none_for_want_of_libvirt(watched: Watched, tmp_path: Path) -> None:
    nobody = AuditRequest(uri=f"qemu+unix:///system?socket={tmp_path}/nobody", state_dir=watched.auditor.request.state_dir)
    watched.auditor.judge_by(nobody, watched.rulebook, watched.auditor.retention)
    watched.auditor.audit()
    assert [name for name, _ in watched.said] == ["libvirt"]
    assert watched.auditor.may_know_more
    assert watched.auditor.judge_again(frozenset({UUID}))


def test_another_policy_makes_the_next_judgement_an_audit_of_everything(watched: Watched) -> None:
    watched.auditor.audit()
    watched.auditor.judge_by(watched.auditor.request, watched.rulebook, watched.auditor.retention)
    assert watched.auditor.judge_again(frozenset({UUID}))


def test_calls_that_another_libvirt_has_not_answered_block_nothing(watched: Watched) -> None:
    with endless_thread() as thread:
        watched.auditor._blocked.add(thread, None)
        assert watched.auditor._blocked.why_not_now is not None
        other = AuditRequest(uri="test:///default", state_dir=watched.auditor.request.state_dir)
        watched.auditor.judge_by(other, watched.rulebook, watched.auditor.retention)
        assert watched.auditor._blocked.why_not_now is None


def test_store_that_fails_is_said_once_and_used_again_when_it_is_back(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.auditor.audit()

    def fail(*_arguments: object, **_more: object) -> None:
        raise StoreError("host.sqlite: no room. The observation of now was not stored.", reason="no room")

    with monkeypatch.context() as failing:
        failing.setattr(HostStore, "record", fail)
        failing.setattr(HostStore, "record_update", fail)
        watched.auditor.audit()
        assert watched.auditor.judge_again(frozenset({UUID}))  # what was not stored is made good by an audit of everything
        watched.auditor.audit()
    assert watched.said == [("store", "host.sqlite: no room.")]
    watched.auditor.audit()
    assert watched.said[1:] == [("store", "over")]


def test_trace_of_a_killed_daemon_that_stays_is_said_until_it_is_gone(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    left = unseen("/sys/kernel/tracing/instances/exitguard-1", "left by a process that is gone, and could not be removed: busy")
    for removed in (left, left, seen("/sys/kernel/tracing", ())):
        monkeypatch.setattr("exitguard.daemon.auditor.remove_leftovers", lambda _tree, removed=removed: removed)
        watched.auditor.remove_trace_leftovers()
    assert watched.said == [("trace_leftover", f"{left.source}: {left.reason}"), ("trace_leftover", "over")]


def test_what_could_not_even_be_noted_becomes_a_gap_when_the_store_is_back(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.auditor.audit()

    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def fail(*_arguments: object, **_more: object) -> None:
        raise StoreError("host.sqlite: operation not permitted.", reason="operation not permitted")

    with monkeypatch.context() as failing:
        failing.setattr(gap, "note_dropped", refuse)
        failing.setattr(HostStore, "_record", fail)
        watched.auditor.audit()
        watched.auditor.audit()
    watched.auditor.audit()
    state_dir = watched.auditor.request.state_dir
    assert state_dir is not None
    with HostStore.open(state_dir, now=START, read_only=True) as store:
        [found] = store.gaps(START)
    assert (found.dropped, found.reason) == (2, "operation not permitted")


def test_libvirt_that_is_not_even_asked_again_is_no_news(watched: Watched) -> None:
    watched.auditor._tell_unanswered("libvirt", "no answer within 20 s: the daemon may hang")
    watched.auditor._tell_unanswered("libvirt", "not asked: the daemon has not answered an earlier call yet")
    assert watched.said == [("libvirt", "no answer within 20 s: the daemon may hang")]
    watched.auditor._tell_unanswered("libvirt", None)
    assert watched.said[1:] == [("libvirt", "over")]


def test_age_is_that_of_the_last_audit_of_everything(watched: Watched) -> None:
    watched.auditor.audit()
    audited_at = watched.auditor.audited_at
    assert not watched.auditor.judge_again(frozenset({UUID}))
    assert watched.auditor.audited_at == audited_at
    state_dir = watched.auditor.request.state_dir
    assert state_dir is not None
    with HostStore.open(state_dir, now=START, read_only=True) as store:
        report = store.report()
        assert report is not None
        assert audited_at is not None
        assert report.observed_at > audited_at
        assert store.audited_at() == audited_at


# Blocked calls


@contextmanager
def endless_thread() -> Iterator[threading.Thread]:
    """A thread that ends when the test does."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        end.set()
        thread.join()


def test_blocked_call_is_remembered_until_it_returns() -> None:
    blocked = BlockedCalls()
    with endless_thread() as thread:
        blocked.add(thread, UUID)
        assert (len(blocked), blocked.domains, blocked.why_not_now) == (1, {UUID}, None)
    assert (len(blocked), blocked.domains, blocked.why_not_now) == (0, frozenset(), None)


def test_call_about_the_host_that_blocks_forbids_every_other() -> None:
    blocked = BlockedCalls()
    with endless_thread() as thread:
        blocked.add(thread, None)
        assert blocked.why_not_now == "not asked: the daemon has not answered an earlier call yet"


def test_never_more_than_a_few_calls_are_left_behind() -> None:
    blocked = BlockedCalls()
    with endless_thread() as thread:
        for number in range(MAX_BLOCKED):
            assert blocked.why_not_now is None
            blocked.add(thread, str(number))
        assert "earlier calls still wait" in (blocked.why_not_now or "")
