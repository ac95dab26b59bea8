"""`exitguard explain`: a rule, with this host's evidence where it is about the host; a word of the reports; or one domain."""

import difflib
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.log import configure_logging
from exitguard.cli.options import (
    ConfigOption,
    ConnectOption,
    OutputOption,
    PolicyOption,
    StateDirOption,
    SysrootOption,
    WaiversOption,
)
from exitguard.cli.output import look_for, note, write_result
from exitguard.cli.refusal import Refusal
from exitguard.cli.report import aged, last_report
from exitguard.cli.target import Asked, request_for, state_dir_for

if TYPE_CHECKING:
    from exitguard.cycle import AuditRequest
    from exitguard.model.documents import AuditReport, FactsDocument
    from exitguard.policy.schema import Rule
    from exitguard.report.page import Look

_MOST_NEAR = 5
_NEAR = 0.75  # as difflib counts; at its own 0.6 `severity` is near to `reverts`


def explain(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(metavar="RULE|STATE|DOMAIN", help="A rule's id, a word of the reports, a domain's name or uuid.")],
    *,
    stored: Annotated[
        bool, typer.Option("--stored", help="Host or domain as the last stored audit saw it, instead of a fresh look.")
    ] = False,
    connect: ConnectOption = None,
    sysroot: SysrootOption = None,
    policy: PolicyOption = None,
    waivers: WaiversOption = None,
    output: OutputOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Tell the whole story of a rule, of a state, verdict, link or action, or of one domain."""
    configure_logging(context.obj, os.environ)
    asked = Asked(connect=connect, sysroot=sysroot, policy=policy, waivers=waivers, config=config, state_dir=state_dir)
    request = request_for(asked, os.environ)

    from exitguard.policy.load import load_rulebook

    rules = load_rulebook(request.policy_files).policy.rules
    look = look_for(output, os.environ)
    rule = next((rule for rule in rules if rule.id == topic.strip().upper()), None)
    text = _explain_word(topic, rule, look)
    if text is None:
        report, facts = _stored(state_dir_for(asked, os.environ)) if stored else _fresh(request)
        text = _explain_domain(topic, rules, report, look) if rule is None else _explain_host_rule(rule, report, facts, look)
    write_result(text, output)


def _explain_word(topic: str, rule: "Rule | None", look: "Look") -> str | None:
    """The page of what needs no look at the host; None for what does: a rule about the host, and a domain."""
    from exitguard.model.finding import SubjectKind
    from exitguard.report import explanation, terms, words

    if rule is not None:
        return None if rule.subject is SubjectKind.HOST else explanation.explain_rule(rule, look)
    members, names = words.members_named(topic), terms.terms_named(topic)
    return explanation.explain_words(members, look, terms=names) if members or names else None


def _explain_host_rule(rule: "Rule", report: "AuditReport", facts: "FactsDocument", look: "Look") -> str:
    from exitguard.report.host_explanation import explain_host_rule

    return explain_host_rule(rule, report, facts, look)


def _explain_domain(topic: str, rules: "tuple[Rule, ...]", report: "AuditReport", look: "Look") -> str:
    from exitguard.report import explanation, terms, words

    domains = [domain for domain in report.domains if topic in {domain.name, domain.uuid} or topic.lower() == domain.uuid]
    if domains:
        return "\n".join(explanation.explain_domain(report, domain, look) for domain in domains)
    near = _near(topic, [*(rule.id for rule in rules), *words.all_names(), *terms.TERMS, *(domain.name for domain in report.domains)])
    count = len(report.domains)
    one_or_more = "not the one domain that was seen" if count == 1 else f"none of the {count} domains that were seen"
    seen = one_or_more if count else "and no domain was seen"
    hint = f"near it are: {', '.join(near)}" if near else f"expected a rule such as {rules[0].id}, a state such as effective, or a domain"
    raise typer.BadParameter(f"{topic!r} is no rule of the policy, no word of the reports, {seen}; {hint}", param_hint="RULE|STATE|DOMAIN")


def _near(topic: str, known: list[str]) -> list[str]:
    """The known names that `topic` may have been meant for, in whatever case."""
    by_folded = {name.casefold(): name for name in known}
    return [by_folded[folded] for folded in difflib.get_close_matches(topic[:100].casefold(), by_folded, n=_MOST_NEAR, cutoff=_NEAR)]


def _fresh(request: "AuditRequest") -> "tuple[AuditReport, FactsDocument]":
    """A fresh audit. It begins no store; where there is one, the audit is remembered as any, under the id that waivers may name."""
    from exitguard.cycle import run_audit
    from exitguard.store.state_dir import HOST_ID_NAME

    if request.state_dir is not None and not (request.state_dir / HOST_ID_NAME).exists():
        request = replace(request, state_dir=None)
    outcome = run_audit(request)
    note(outcome.notices)
    return outcome.report, outcome.observation.facts


def _stored(directory: Path) -> "tuple[AuditReport, FactsDocument]":
    from exitguard.model.finding import EXIT_UNKNOWN
    from exitguard.store.host import HostStore

    now = datetime.now(UTC)
    with HostStore.open(directory, now=now, read_only=True) as store:
        report, stale = aged(last_report(store, None), store.audited_at(), now)
        facts = store.facts()
    if stale:
        note([f"exitguard: stale: the last stored audit is of {report.observed_at:%Y-%m-%d %H:%M} UTC; run `exitguard audit`."])
    if facts is None:  # it went with the report, between the two looks
        raise Refusal(f"exitguard: {directory} holds no facts any more: run `exitguard audit` first.", code=EXIT_UNKNOWN)
    return report, facts
