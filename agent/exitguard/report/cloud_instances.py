"""The instances' and the compute hosts' parts of a cloud's page: where each setting comes from, and what Nova writes next."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.instance import CloudReport, ComputeReport, InstanceReport, PmuOrigin
from exitguard.model.pmu import PmuSetting, Tri
from exitguard.report.cloud_groups import Standing, standing
from exitguard.report.page import BAD, CALM, DOUBT, FAINT, GOOD, STRONG, WORST, Look, columns, counted, heading, indented, labelled
from exitguard.report.words import label

MOST_ROWS = 30
MOST_COMPUTES = 12
_NARROW_COLUMNS = 72
_NAMES_IN_GROUP = 3

STANDING_STYLES = {
    Standing.CONFLICT: WORST,
    Standing.BEHIND_NOVA: BAD,
    Standing.ON_BY_DEFAULT: BAD,
    Standing.UNKNOWN: DOUBT,
    Standing.OFF_NEXT: DOUBT,
    Standing.OPTED_OUT: CALM,
    Standing.OFF_AND_KEPT: GOOD,
}
#: What the sums say of each, in a line.
_STANDING_SENTENCES = {
    Standing.CONFLICT: "flavor and image contradict each other: the next start fails",
    Standing.BEHIND_NOVA: "defined otherwise than Nova wrote it: the next hard reboot drops that",
    Standing.ON_BY_DEFAULT: "nobody said otherwise: QEMU's default",
    Standing.UNKNOWN: "it could not be told",
    Standing.OFF_NEXT: "off from the next hard reboot, or stop and start; still on until then",
    Standing.OPTED_OUT: "somebody asked for the PMU, and keeps it",
    Standing.OFF_AND_KEPT: "Nova starts it with the PMU off, each time",
}
STANDING_LABELS = {
    Standing.CONFLICT: "conflict",
    Standing.BEHIND_NOVA: "behind Nova",
    Standing.ON_BY_DEFAULT: "on by default",
    Standing.UNKNOWN: "unknown",
    Standing.OFF_NEXT: "off next",
    Standing.OPTED_OUT: "opted out",
    Standing.OFF_AND_KEPT: "off and kept",
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
_DEFAULTS = {Tri.YES: ("off", GOOD), Tri.NO: ("none", ""), Tri.UNKNOWN: ("?", DOUBT)}
#: What needs somebody first, what is well last.
_ORDER = tuple(STANDING_STYLES)


def sums_section(report: CloudReport, look: Look) -> Iterator[RenderableType]:
    """How many instances stand how, and how much of each is known."""
    projects = len({instance.project for instance in report.instances})
    where = f" in {counted(projects, 'project')}" if projects else ""
    yield heading(look, "Instances", f"{counted(len(report.instances), 'instance')}{where}")
    tally = Counter(standing(instance) for instance in report.instances)
    width = max((len(f"{count:,}") for count in tally.values()), default=1)
    rows = [
        (
            STANDING_LABELS[each],
            Text.assemble(look.own(f"{tally[each]:>{width},}", STANDING_STYLES[each]), look.own(f"  {_STANDING_SENTENCES[each]}", FAINT)),
        )
        for each in _ORDER
        if tally[each]
    ]
    if rows:
        yield labelled(look, rows)
    yield indented(_joined(report, look))


def _joined(report: CloudReport, look: Look) -> Text:
    hosts = counted(len(report.computes), "compute host") if report.computes else "compute hosts"
    if not report.hosts_joined:
        return look.own(f"No facts of its {hosts} were given: what is defined and what runs there is not known.", DOUBT)
    seen = sum(instance.host_id is not None for instance in report.instances)
    return look.own(
        f"Facts of {report.hosts_joined:,} of {hosts} were given; the domains of {counted(seen, 'instance')} are in them.", FAINT
    )


def instances_section(report: CloudReport, look: Look) -> Iterator[RenderableType]:
    """One row an instance; equal ones share a row where there are many. What needs somebody comes first."""
    if not report.instances:
        return
    yield heading(look, "Where their settings come from")
    ordered = sorted(report.instances, key=lambda instance: (_ORDER.index(standing(instance)), instance.name, instance.uuid))
    rows = [(instance,) for instance in ordered] if len(ordered) <= MOST_ROWS else _grouped(ordered)
    yield from _rows(rows[:MOST_ROWS], look)
    left = sum(len(group) for group in rows[MOST_ROWS:])
    if left:
        yield indented(look.own(f"… and {left:,} more", DOUBT))
    yield indented(look.own("set: defined now · live: in this run · next: as Nova starts it next · (on) (off): QEMU's default", FAINT))
    if len(ordered) > MOST_ROWS:
        yield indented(
            look.own("Each of them by itself: --format csv or json. By project, flavor, host …: `exitguard nova report --by`.", FAINT)
        )


def _grouped(instances: Sequence[InstanceReport]) -> list[tuple[InstanceReport, ...]]:
    """Equal rows together, in the order of the first of each."""
    groups: dict[tuple[object, ...], list[InstanceReport]] = {}
    for instance in instances:
        key = (standing(instance), instance.flavor, instance.origin, instance.persistent, instance.live, instance.next_setting)
        groups.setdefault(key, []).append(instance)
    return [tuple(group) for group in groups.values()]


def _rows(groups: Sequence[tuple[InstanceReport, ...]], look: Look) -> Iterator[RenderableType]:
    if look.columns < _NARROW_COLUMNS:
        for group in groups:
            first = group[0]
            yield indented(_names(group, look))
            yield indented(Text.assemble(_flavor(first, look), ", from ", _origin(first, look), ", PMU ", _pmu(first, look)), 4)
        return
    yield columns(
        look,
        ["instance", "flavor", "from", "set → live → next"],
        [(_names(group, look), _flavor(group[0], look), _origin(group[0], look), _pmu(group[0], look)) for group in groups],
    )


def _names(group: tuple[InstanceReport, ...], look: Look) -> Text:
    names = Text(", ").join(look.foreign(instance.name or instance.uuid, limit_characters=64) for instance in group[:_NAMES_IN_GROUP])
    if len(group) == 1:
        return names
    more = look.own(" …" if len(group) > _NAMES_IN_GROUP else "")
    return Text.assemble(look.own(f"{counted(len(group), 'instance')}: ", STRONG), names, more)


def _flavor(instance: InstanceReport, look: Look) -> Text:
    return look.foreign(instance.flavor, limit_characters=20)


def _origin(instance: InstanceReport, look: Look) -> Text:
    return look.own(label(instance.origin), DOUBT if instance.origin is PmuOrigin.UNKNOWN else STANDING_STYLES[standing(instance)])


def _pmu(instance: InstanceReport, look: Look) -> Text:
    settings = (instance.persistent, instance.live, instance.next_setting)
    # No setting at all is what a conflict ends in.
    words = [_SETTINGS[setting] for setting in settings[:2]] + [
        "fails" if instance.origin is PmuOrigin.CONFLICT else _SETTINGS[settings[2]]
    ]
    styles = [DOUBT if word == "?" else WORST if word == "fails" else "" for word in words]
    return look.own(" → ", FAINT).join([look.own(word, style) for word, style in zip(words, styles, strict=True)])


def computes_section(computes: Sequence[ComputeReport], look: Look) -> Iterator[RenderableType]:
    """Whether the Nova of each compute host defaults to PMU off: the doubtful first."""
    if not computes:
        return
    tally = Counter(compute.default_off for compute in computes)
    parts = [
        f"off on {tally[Tri.YES]:,}" if tally[Tri.YES] else "",
        f"none on {tally[Tri.NO]:,}" if tally[Tri.NO] else "",
        f"not known of {tally[Tri.UNKNOWN]:,}" if tally[Tri.UNKNOWN] else "",
    ]
    yield heading(look, "Compute hosts", f"Nova's default for the PMU: {', '.join(part for part in parts if part)}")
    order = (Tri.UNKNOWN, Tri.NO, Tri.YES)
    ordered = sorted(computes, key=lambda compute: (order.index(compute.default_off), compute.host))
    yield labelled(look, [_compute(compute, look) for compute in ordered[:MOST_COMPUTES]], label_columns=_host_columns(computes))
    if len(ordered) > MOST_COMPUTES:
        yield indented(look.own(f"… and {len(ordered) - MOST_COMPUTES:,} more, see --format json", DOUBT))


def _host_columns(computes: Sequence[ComputeReport]) -> int:
    return max(6, min(24, max(len(compute.host) for compute in computes)))


def _compute(compute: ComputeReport, look: Look) -> tuple[str, Text]:
    word, style = _DEFAULTS[compute.default_off]
    text = Text.assemble(
        look.own(word, style),
        look.own(f"  {counted(compute.instances, 'instance')}: ", FAINT),
        look.foreign(compute.reason, FAINT, limit_characters=300),
    )
    return look.foreign(compute.host, limit_characters=24).plain, text
