"""A policy for a person: every rule with its severity, its subject and its remedy."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from exitguard.policy.schema import Policy, Rule
from exitguard.report.page import FAINT, STRONG, Look, counted, indented, render
from exitguard.report.table_findings import SEVERITY_STYLES


def policy_page(policy: Policy, look: Look) -> str:
    """The policy as a page, in the order of its rules."""
    return render(look, _parts(policy, look))


def _parts(policy: Policy, look: Look) -> Iterator[RenderableType]:
    yield Text.assemble(look.foreign(f"{policy.id} {policy.version}", STRONG), look.own(f"  {counted(len(policy.rules), 'rule')}", FAINT))
    yield look.foreign(policy.title)
    for rule in policy.rules:
        yield Text()
        yield from _rule(rule, look)


def _rule(rule: Rule, look: Look) -> Iterator[RenderableType]:
    yield Text.assemble(
        look.foreign(rule.id, STRONG), "  ", look.own(rule.severity, SEVERITY_STYLES[rule.severity]), look.own(f"  {rule.subject}", FAINT)
    )
    yield indented(look.foreign(rule.title))
    if rule.remedy is not None:
        yield indented(Text.assemble(look.own("remedy ", FAINT), look.foreign(rule.remedy)))
