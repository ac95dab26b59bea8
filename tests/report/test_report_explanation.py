"""What `explain` tells of a rule, of a word and of a domain."""

from types import SimpleNamespace

import pytest

from exitguard.model.finding import Subject, SubjectKind, Verdict
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import ChainState, LinkName, NextAction
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import Rule
from exitguard.report.explanation import explain_domain, explain_rule, explain_words
from exitguard.report.page import Look
from exitguard.report.terms import TERMS
from exitguard.report.words import meaning, members_named

RULES = load_rulebook().policy.rules


def flat(page: str) -> str:
    return " ".join(page.split())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_shipped_rule_is_explained_whole(rule: Rule) -> None:
    page = flat(explain_rule(rule, Look()))
    assert page.startswith(rule.id)
    assert flat(rule.rationale) in page
    assert f"severity {rule.severity}" in page
    for reference in rule.references:
        assert flat(reference) in page or reference.split("https://")[-1].split()[0] in "".join(page.split())
    assert page.count("When it fails") == 1
    if rule.remedy is not None:
        assert flat(f"Remedy {rule.remedy}: {TERMS[rule.remedy].meaning}") in page


def test_a_word_with_several_meanings_gets_them_all() -> None:
    page = flat(explain_words(members_named("not_applicable"), Look()))
    assert meaning(ChainState.NOT_APPLICABLE) in page
    assert meaning(Verdict.NOT_APPLICABLE) in page


def test_a_word_says_how_tables_show_it() -> None:
    assert 'moot state of a domain\'s chain, shown as "nothing to save"' in flat(explain_words((ChainState.MOOT,), Look()))
    assert "shown as" not in explain_words((KernelState.GUARDED,), Look())


def test_a_domain_is_explained_with_links_verdicts_and_evidence(build: SimpleNamespace) -> None:
    domain = build.domain("web-1", ChainState.UNGUARDED, NextAction.INSTALL_GUARDED_KERNEL, reason="the kernel has no guard")
    own = build.finding(Verdict.FAIL, "DOM-PMU-EFFECTIVE", subject=Subject(kind=SubjectKind.DOMAIN, id=domain.uuid, name="web-1"))
    other = build.finding(Verdict.FAIL, "R-OTHER", subject=Subject(kind=SubjectKind.DOMAIN, id="another", name="another"))
    page = flat(explain_domain(build.report((domain,), (own, other)), domain, Look()))
    assert "kernel unguarded" in page
    assert meaning(ChainState.UNGUARDED) in page
    assert meaning(NextAction.INSTALL_GUARDED_KERNEL) in page
    assert "no kernel: kernel: the kernel has no guard" in page
    assert all(f"{link}: " in page for link in LinkName)
    assert "fail DOM-PMU-EFFECTIVE" in page
    assert "R-OTHER" not in page
    assert "virDomainGetXMLDesc(INACTIVE): cpu mode host-passthrough" in page


@pytest.mark.parametrize(("active", "told"), [(True, "active yes"), (False, "active no"), (None, "active not known")])
def test_whether_a_domain_runs_is_told_or_said_to_be_unknown(build: SimpleNamespace, *, active: bool | None, told: str) -> None:
    domain = build.domain().model_copy(update={"active": active})
    assert f" {told} next " in flat(explain_domain(build.report((domain,)), domain, Look()))


def test_nothing_to_save_does_not_claim_that_the_kernel_makes_no_call() -> None:
    page = flat(explain_words((ChainState.MOOT,), Look()))
    assert "There is nothing to save on this kernel" in page
    assert "or one that returns at once" in page
    assert "no dead PMU work" not in page


@pytest.mark.parametrize(
    ("rule_id", "told"),
    [
        ("HOST-SOURCES", "Run `exitguard doctor`: "),
        ("POLICY-WAIVERS", "Run `exitguard waiver check FILE`: "),
        ("DOM-PMU-LIVE", "No remedy is named: a person decides what to do."),
    ],
)
def test_a_rule_without_a_remedy_says_where_to_look(rule_id: str, told: str) -> None:
    (rule,) = (rule for rule in RULES if rule.id == rule_id)
    assert f"When it fails {told}" in flat(explain_rule(rule, Look()))


def test_terms_are_explained_after_the_members_of_that_name() -> None:
    page = explain_words((KernelState.GUARDED,), Look(), terms=("stale",))
    assert page.startswith("guarded  state of a kernel\n")
    assert "\nstale  answer of an audit\n" in page
