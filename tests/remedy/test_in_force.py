"""Whether a planned step is still true, and whether it is in force, by a fresh look."""

import audit_builders as b
import pytest

from exitguard.model.documents import FactsDocument
from exitguard.model.domain import OwnerKind
from exitguard.model.host import InstalledKernel
from exitguard.model.plan import DomainPmuChange, KernelGuardChange, KvmEnablePmuOffChange, Step
from exitguard.model.pmu import PmuElement, Tri
from exitguard.policy.load import load_rulebook
from exitguard.remedy.in_force import in_force, running, still_true, why_blind, why_not_alive
from exitguard.remedy.plan import plan_host

SHIPPED = load_rulebook()
DUE = b.facts(b.domain(defined=b.definition()))


def planned(facts: FactsDocument = DUE) -> tuple[Step, ...]:
    return plan_host(facts, SHIPPED).steps


def undoing() -> Step:
    [step] = planned()
    change = DomainPmuChange(uuid=step.change.uuid, before=PmuElement.OFF, after=PmuElement.ABSENT, restores="sha256:1")  # type: ignore[union-attr]
    return step.model_copy(update={"change": change})


def reason(step: Step, facts: FactsDocument, *, undo: bool = False) -> str:
    found = still_true((step,), facts, SHIPPED, undo=undo)
    assert found.due == ()
    return found.not_due[step.id]


def test_a_step_is_still_true_while_what_it_rests_on_is_as_it_was() -> None:
    [step] = planned()
    assert still_true((step,), b.facts(b.domain(defined=b.definition(), run=b.definition())), SHIPPED, undo=False).due == (step.id,)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (b.facts(), "the domain is gone"),
        (b.facts(b.domain(defined=b.definition(pmu=PmuElement.OFF))), "done already"),
        (b.facts(b.domain(defined=b.definition(), locked=True)), "leave alone"),
        (b.facts(b.domain(defined=b.definition(machine="pc-q35-8.0"))), "has changed since it was planned"),
        (b.facts(b.domain(defined=b.definition("host-model"))), "nothing is to be done"),
        (b.facts(b.domain(defined=b.definition(pmu=PmuElement.ON))), "asked for"),
    ],
)
def test_a_step_that_is_no_longer_true_says_why(facts: FactsDocument, expected: str) -> None:
    [step] = planned()
    assert expected in reason(step, facts)


@pytest.mark.parametrize("undo", [False, True])
def test_nothing_is_due_on_a_host_in_maintenance(undo: bool) -> None:  # noqa: FBT001 - a case of the test
    marked = DUE.model_copy(update={"host": DUE.host.model_copy(update={"maintenance": "disk swap"})})
    step = undoing() if undo else planned()[0]
    assert "disk swap" in reason(step, marked, undo=undo)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (b.facts(), "gone"),
        (b.facts(b.domain(defined=None, run=b.definition())), "gone"),
        (b.facts(b.domain(defined=b.definition(pmu=PmuElement.OFF), locked=True)), "leave alone"),
        (b.facts(b.domain(defined=b.definition(pmu=PmuElement.OFF), owner=OwnerKind.OTHER)), "writes this definition now"),
        (b.facts(b.domain(defined="libvirt did not answer")), "cannot be read"),
        (b.facts(b.domain(defined=b.definition())), "was changed since"),
    ],
)
def test_an_undo_is_no_longer_true_where_somebody_has_been_there_since(facts: FactsDocument, expected: str) -> None:
    assert expected in reason(undoing(), facts, undo=True)


def test_an_undo_is_true_while_the_definition_says_what_the_run_wrote() -> None:
    step = undoing()
    assert still_true((step,), b.facts(b.domain(defined=b.definition(pmu=PmuElement.OFF))), SHIPPED, undo=True).due == (step.id,)
    kvm = step.model_copy(update={"change": KvmEnablePmuOffChange()})
    assert "cannot be undone" in reason(kvm, DUE, undo=True)


def test_a_definition_is_in_force_when_it_says_so_and_not_known_when_it_cannot_be_read() -> None:
    [step] = planned()
    assert in_force(step, DUE) is Tri.NO
    assert in_force(step, b.facts(b.domain(defined=b.definition(pmu=PmuElement.OFF)))) is Tri.YES
    assert in_force(step, b.facts(b.domain(defined="no answer"))) is Tri.UNKNOWN
    assert in_force(step, b.facts()) is Tri.UNKNOWN


def test_a_kernel_is_in_force_when_it_is_installed_and_boots_next() -> None:
    change = KernelGuardChange(stage="install", packages=(), release="6.1.0-57-amd64")
    step = planned()[0].model_copy(update={"change": change})
    installed = (InstalledKernel(release="6.1.0-57-amd64"),)
    assert in_force(step, b.facts(kernel=b.affected_kernel(installed=installed, boots_next="6.1.0-57-amd64"))) is Tri.YES
    assert in_force(step, b.facts(kernel=b.affected_kernel(installed=installed, boots_next=b.RELEASE))) is Tri.NO
    assert in_force(step, b.facts(kernel=b.affected_kernel(installed=None))) is Tri.UNKNOWN
    assert in_force(step.model_copy(update={"change": KvmEnablePmuOffChange()}), DUE) is Tri.UNKNOWN


def test_guests_that_ran_have_to_run_still() -> None:
    ran = b.facts(*(b.domain(number=number, defined=b.definition(), run=b.definition()) for number in range(1, 9)))
    before = running(ran)
    assert len(before) == 8
    assert why_not_alive(before, ran) is None
    stopped = b.facts(*(b.domain(number=number, defined=b.definition()) for number in range(1, 8)))
    told = why_not_alive(before, stopped)
    assert told is not None
    assert "guest-1 does not run" in told
    assert "and 3 more" in told
    assert "is gone" in (why_not_alive(before[-1:], stopped) or "")
    assert "cannot be seen any more" in (why_not_alive(before, b.facts(libvirt="connection refused")) or "")


def test_a_look_without_libvirt_says_nothing_of_domains() -> None:
    blind = b.facts(libvirt="connection refused")
    assert "connection refused" in (why_blind(planned(), blind) or "")
    assert why_blind(planned(), DUE) is None
    kvm = planned()[0].model_copy(update={"change": KvmEnablePmuOffChange()})
    assert why_blind((kvm,), blind) is None
