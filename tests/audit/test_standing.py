"""Judging a few domains anew says of them, and in sum, exactly what an audit of everything would say."""

from datetime import timedelta

import pytest
from audit_builders import GUARD_ENTRY, NOW, QEMU_7, QEMU_11, affected_kernel, definition, domain, facts, kvm_module, process, qemu
from hypothesis import given
from hypothesis import strategies as st

from exitguard.audit.judge import judge
from exitguard.audit.standing import concerns_others, judge_update, standing_of
from exitguard.model.documents import FactsDocument
from exitguard.model.domain import DomainFacts
from exitguard.model.finding import Verdict
from exitguard.model.pmu import PmuElement
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import Waiver, WaiverScope

RULEBOOK = load_rulebook()
GUARDED = affected_kernel(changelog=(GUARD_ENTRY,))
LATER = NOW + timedelta(minutes=7)
OFF, ON_BY_DEFAULT, ASKED = definition(pmu=PmuElement.OFF), definition(), definition(pmu=PmuElement.ON)


def domain_in(state: str, number: int) -> DomainFacts:
    """One domain in one of the states that an event may lead to."""
    match state:
        case "effective":
            return domain(number=number, defined=OFF, run=OFF, runs=process("host,pmu=off", QEMU_11))
        case "on":
            return domain(number=number, defined=ON_BY_DEFAULT, run=ON_BY_DEFAULT, runs=process("host", QEMU_11))
        case "asked":
            return domain(number=number, defined=ASKED, run=ASKED, runs=process("host,pmu=on", QEMU_7))
        case "stopped":
            return domain(number=number, defined=OFF)
        case _:
            return domain(number=number, defined="no answer", run="no answer", runs="no process", active=True)


STATES = st.sampled_from(["effective", "on", "asked", "stopped", "unread"])
FLEETS = st.dictionaries(st.integers(1, 6), STATES, max_size=6)
WAIVERS = (
    Waiver(
        id="CHG-1",
        rules=("DOM-PMU-LIVE", "DOM-PMU-EFFECTIVE"),
        scope=WaiverScope(hosts=("*",), domains=("*",)),
        justification="as agreed with the owner",
        approver="ops",
        created=NOW - timedelta(days=1),
        expires=NOW + timedelta(days=1),
    ),
)


def document_of(fleet: dict[int, str]) -> FactsDocument:
    domains = sorted((domain_in(state, number) for number, state in fleet.items()), key=lambda each: each.uuid)
    return facts(*domains, kernel=GUARDED)


@pytest.mark.parametrize("waivers", [(), WAIVERS], ids=["no waivers", "waived"])
@given(before=FLEETS, now=FLEETS)
def test_update_says_what_an_audit_would_say(waivers: tuple[Waiver, ...], before: dict[int, str], now: dict[int, str]) -> None:
    rulebook = RULEBOOK.model_copy(update={"waivers": waivers})
    first, second = document_of(before), document_of(now)
    uuids = {each.uuid: each for each in first.domains}
    later = {each.uuid: each for each in second.domains}
    changed = frozenset(uuid for uuid in uuids | later if uuids.get(uuid) != later.get(uuid))
    standing = standing_of(judge(first, rulebook), first, rulebook)
    seen_again = first.seen_again(first.host, second.domains, LATER)
    update, after = judge_update(standing, seen_again, rulebook, changed)

    whole = judge(seen_again, rulebook)
    reports = {each.uuid: each for each in whole.domains}
    assert {each.uuid for each in update.domains} == changed
    for each in update.domains:
        assert each.report == reports.get(each.uuid)
        assert each.findings == tuple(finding for finding in whole.findings if finding.subject.id == each.uuid)
    assert after.chains == {each.uuid: each.chain.state for each in whole.domains}
    about_domains = [finding for finding in whole.findings if finding.subject.id in reports]
    assert sum(map(len, after.about_domains.values())) == len(about_domains)
    # What concerns the host alone is an audit's to judge; with the same findings about the host the sums are the same.
    if [f.verdict for f in whole.findings if f.subject.id not in reports] == [verdict for _, verdict in after.about_host]:
        assert after.summary == whole.summary
        assert update.head.summary == whole.summary
    assert update.head.observed_at == LATER
    assert (update.head.domains, update.head.findings) == ((), ())


def test_standing_of_an_audit_is_its_summary() -> None:
    document = document_of({1: "effective", 2: "on", 3: "unread"})
    report = judge(document, RULEBOOK)
    standing = standing_of(report, document, RULEBOOK)
    assert standing.summary == report.summary
    by_verdict = {verdict.value: 0 for verdict in Verdict}
    for (_, verdict), count in standing.findings.items():
        by_verdict[verdict] += count
    assert by_verdict == report.summary.by_verdict


def test_another_qemu_on_disk_concerns_every_domain() -> None:
    document = document_of({1: "stopped", 2: "stopped"})
    standing = standing_of(judge(document, RULEBOOK), document, RULEBOOK)
    same = document.seen_again(document.host, document.domains, LATER)
    _, unchanged = judge_update(standing, same, RULEBOOK, frozenset({document.domains[0].uuid}))
    assert not concerns_others(standing, unchanged)
    host = document.host.model_copy(update={"qemu": document.host.qemu.model_copy(update={"value": (qemu("11.1.3", capability=True),)})})
    upgraded = document.seen_again(host, document.domains, LATER)
    _, after = judge_update(standing, upgraded, RULEBOOK, frozenset({document.domains[0].uuid}))
    assert concerns_others(standing, after)


def test_facts_seen_again_have_the_hashes_of_facts_made_anew() -> None:
    first = document_of({1: "effective", 2: "on", 3: "stopped"})
    assert first.domain_hashes  # computed before the look that reuses them
    changed = domain_in("asked", 2)
    domains = tuple(changed if each.uuid == changed.uuid else each for each in first.domains)
    again = first.seen_again(first.host.model_copy(update={"kvm": kvm_module(enable_pmu=False)}), domains, LATER)
    anew = FactsDocument.model_validate(again.model_dump())
    assert again.domain_hashes == anew.domain_hashes
    assert again.host_hash == anew.host_hash != first.host_hash
