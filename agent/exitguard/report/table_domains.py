"""The domains' part of the audit page: what is set, what runs, what comes of it. Thousands of domains are grouped."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.documents import DomainReport
from exitguard.model.domain import Owner, OwnerKind
from exitguard.model.pmu import ChainState, NextAction, PmuSetting
from exitguard.model.record import Observed
from exitguard.report.page import BAD, CALM, DOUBT, FAINT, GOOD, WORST, Look, columns, counted, heading, indented
from exitguard.report.words import label

MOST_ROWS = 40
_NARROW_COLUMNS = 72
_NAMES_IN_GROUP = 3

#: What needs somebody first, what is well last.
_STATE_ORDER = (
    ChainState.OPT_OUT_VIOLATED,
    ChainState.ON,
    ChainState.NOT_PROPAGATED,
    ChainState.UNGUARDED,
    ChainState.REVERTS,
    ChainState.PENDING_RESTART,
    ChainState.UNKNOWN,
    ChainState.OPTED_OUT,
    ChainState.NOT_RUNNING,
    ChainState.MOOT,
    ChainState.NOT_APPLICABLE,
    ChainState.EFFECTIVE,
)
STATE_STYLES = {
    ChainState.OPT_OUT_VIOLATED: WORST,
    ChainState.ON: BAD,
    ChainState.NOT_PROPAGATED: BAD,
    ChainState.UNGUARDED: BAD,
    ChainState.REVERTS: BAD,
    ChainState.PENDING_RESTART: DOUBT,
    ChainState.UNKNOWN: DOUBT,
    ChainState.OPTED_OUT: CALM,
    ChainState.NOT_RUNNING: FAINT,
    ChainState.MOOT: FAINT,
    ChainState.NOT_APPLICABLE: FAINT,
    ChainState.EFFECTIVE: GOOD,
}
#: Parentheses mark QEMU's default, which nobody asked for.
_SETTINGS = {
    PmuSetting.OFF: "off",
    PmuSetting.ON: "on",
    PmuSetting.DEFAULT_OFF: "(off)",
    PmuSetting.DEFAULT_ON: "(on)",
    PmuSetting.UNKNOWN: "?",
    PmuSetting.NONE: "-",
}


def domains_section(domains: Sequence[DomainReport], listing: Observed[bool], look: Look) -> Iterator[RenderableType]:
    """One row a domain; equal ones share a row where there are many. What is not effective comes first."""
    if not domains:
        yield heading(look, "Domains", "none" if listing.known else "")
        if not listing.known:
            yield indented(Text.assemble(look.own("could not be listed: ", DOUBT), look.foreign(listing.reason or "", DOUBT)))
        return
    effective = sum(domain.chain.state is ChainState.EFFECTIVE for domain in domains)
    yield heading(look, "Domains", f"{counted(len(domains), 'domain')}, {effective:,} effective")
    ordered = sorted(domains, key=lambda domain: (_STATE_ORDER.index(domain.chain.state), domain.name, domain.uuid))
    rows = [(domain,) for domain in ordered] if len(ordered) <= MOST_ROWS else _grouped(ordered)
    yield from _rows(rows[:MOST_ROWS], look)
    if len(rows) > MOST_ROWS:
        left = sum(len(group) for group in rows[MOST_ROWS:])
        yield indented(look.own(f"… and {left:,} more, see --format json", DOUBT))
    yield indented(look.own("set: at the next start · live: in this run · (on) (off): QEMU's default", FAINT))


def _grouped(domains: Sequence[DomainReport]) -> list[tuple[DomainReport, ...]]:
    """Equal rows together, in the order of the first of each."""
    groups: dict[tuple[object, ...], list[DomainReport]] = {}
    for domain in domains:
        key = (domain.owner.kind, domain.owner.name, domain.pmu, domain.chain.state, domain.chain.next_action)
        groups.setdefault(key, []).append(domain)
    return [tuple(group) for group in groups.values()]


def _rows(groups: Sequence[tuple[DomainReport, ...]], look: Look) -> Iterator[RenderableType]:
    if look.columns < _NARROW_COLUMNS:
        for group in groups:
            first = group[0]
            yield indented(_names(group, look))
            yield indented(
                Text.assemble(
                    _owner(first.owner, look), ", PMU ", _pmu(first, look), ", ", _state(first, look), ", ", _action(first, look)
                ),
                4,
            )
        return
    yield columns(
        look,
        ["domain", "owner", "set → live", "state", "next"],
        [
            (_names(group, look), _owner(group[0].owner, look), _pmu(group[0], look), _state(group[0], look), _action(group[0], look))
            for group in groups
        ],
    )


def _names(group: tuple[DomainReport, ...], look: Look) -> Text:
    names = Text(", ").join(look.foreign(domain.name, limit_characters=64) for domain in group[:_NAMES_IN_GROUP])
    if len(group) == 1:
        return names
    return Text.assemble(
        look.own(f"{counted(len(group), 'domain')}: ", "bold"), names, look.own(" …" if len(group) > _NAMES_IN_GROUP else "")
    )


def _owner(owner: Owner, look: Look) -> Text:
    if owner.kind is OwnerKind.OTHER:
        return look.foreign(owner.name, limit_characters=10)
    return look.own(label(owner.kind), DOUBT if owner.kind is OwnerKind.UNKNOWN else "")


def _pmu(domain: DomainReport, look: Look) -> Text:
    persistent, live = domain.pmu.persistent, domain.pmu.live
    return Text.assemble(_setting(persistent, look), look.own(" → ", FAINT), _setting(live, look))


def _setting(setting: PmuSetting, look: Look) -> Text:
    return look.own(_SETTINGS[setting], DOUBT if setting is PmuSetting.UNKNOWN else "")


def _state(domain: DomainReport, look: Look) -> Text:
    return look.own(label(domain.chain.state), STATE_STYLES[domain.chain.state])


def _action(domain: DomainReport, look: Look) -> Text:
    action = domain.chain.next_action
    return look.own(label(action), FAINT if action is NextAction.NONE else "")
