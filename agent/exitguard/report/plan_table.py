"""A plan for a person who is to answer for it: what would change and why that is safe, in which order, and what is left alone and why.

Steps with the same words are told once, with whom they are about; so the plan of a fleet is as long as what differs in it.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.finding import Subject, SubjectKind
from exitguard.model.plan import Approval, Disruption, LeftAlone, LeftAloneBecause, Mode, Plan, Remedy, SavingPerExit, Step, Wave
from exitguard.report.page import (
    BAD,
    DOUBT,
    FAINT,
    GOOD,
    STRONG,
    Look,
    counted,
    hanging,
    heading,
    indented,
    labelled,
    render,
)
from exitguard.report.table import moment
from exitguard.report.words import label

STEPS_SHOWN = 8
#: What is enough of a hash to tell two apart by eye; the whole one stands at the end of the page.
_SHOWN_DIGITS = 12
_MOST_NAMES = 4
_MOST_HOSTS = 4
_MOST_REASONS = 3
_MOST_DIFF_LINES = 40
_MOST_WAVES = 20
_LIMIT_CHARACTERS = 600
_NAME_CHARACTERS = 64
_SHOW_ALL = "--format json shows all"


def plan_page(plan: Plan, look: Look, *, named: str = "PLAN", steps_shown: int | None = STEPS_SHOWN) -> str:
    """The plan as a page.

    `named` is what commands call it: the file that it was saved in. `steps_shown` kinds of steps are told of each remedy; None tells all
    of them, with every name.
    """
    return render(look, _parts(plan, look, named, steps_shown))


def _parts(plan: Plan, look: Look, named: str, steps_shown: int | None) -> Iterator[RenderableType]:
    hosts = host_names(plan)
    yield _headline(plan, look)
    yield _circumstances(plan, look)
    yield _next(plan, look, named)
    if plan.steps:
        yield from _waves(plan, hosts, look)
        for remedy, steps in _by_remedy(plan.steps).items():
            yield from _remedy(remedy, steps, hosts, look, steps_shown)
        if any(saving.unit is not None for step in plan.steps for saving in step.savings):
            yield Text()
            yield indented(look.own("What is saved is per exit, once in force. How often guests exit is not in it.", FAINT))
    yield from _left_alone(plan.left_alone, hosts, look, everything=steps_shown is None)
    yield from _made_from(plan, look)


def short_hash(value: str) -> str:
    """The beginning of a `sha256:` hash, without its prefix."""
    return value.removeprefix("sha256:")[:_SHOWN_DIGITS]


def host_names(plan: Plan) -> dict[str, str]:
    """What people call each host, by host id: its name in the inventory or its own; with the id where two have the same."""
    called = {host.id: host.inventory_name or host.hostname or host.id for host in plan.inputs.hosts}
    often = Counter(called.values())
    return {key: name if often[name] == 1 or name == key else f"{name} ({key[:8]})" for key, name in called.items()}


def name_of(subject: Subject) -> str:
    """What people call a domain or a host."""
    return subject.name or subject.id


# The first lines


def _headline(plan: Plan, look: Look) -> Text:
    left = f"{len(plan.left_alone):,} left alone"
    hosts = len({step.host_id for step in plan.steps})
    undoes = [look.own(" It undoes run "), look.foreign(plan.undoes, STRONG), look.own(".")] if plan.undoes is not None else []
    if not plan.steps:
        looked_at = counted(len(plan.inputs.hosts), _place_word(plan))
        return Text.assemble(look.own("NOTHING TO DO", f"bold {GOOD}"), look.own(f"  on {looked_at}: no step is planned, {left}."), *undoes)
    return Text.assemble(
        look.own("PLAN" if plan.undoes is None else "UNDO PLAN", STRONG),
        "  ",
        look.foreign(short_hash(plan.hash), STRONG),
        look.own(f": {counted(len(plan.steps), 'step')} on {counted(hosts, _place_word(plan))}, {left}."),
        *undoes,
    )


def _place_word(plan: Plan) -> str:
    """A cloud is planned for as if it were one host."""
    return "cloud" if any(host.cloud is not None for host in plan.inputs.hosts) else "host"


def _circumstances(plan: Plan, look: Look) -> Text:
    approval = "approval required" if plan.approval is Approval.REQUIRED else "no approval needed"
    return look.own(" · ", FAINT).join(
        [
            look.own(f"mode {plan.mode.value}", FAINT),
            look.own(approval, FAINT),
            look.own(f"made {moment(plan.made_at)}", FAINT),
        ]
    )


def _next(plan: Plan, look: Look, named: str) -> Text:
    """What to type next; of an empty plan, why there is nothing."""
    if not plan.steps:
        if not plan.left_alone:
            return look.own("No rule that names a remedy fails here. `exitguard audit` shows how this host stands.")
        return look.own("Whatever fails is left alone; below is why, and what would have to be otherwise.")
    if plan.undoes is not None:
        return look.own("The way back needs no approval and no window: the same `exitguard rollback` without --show goes it.")
    if plan.mode is Mode.REPORT:
        return look.own("Mode report: plans are shown, and none is carried out. That is remedies.mode of the policy.", DOUBT)
    commands = ["approve", "apply"] if plan.approval is Approval.REQUIRED else ["apply"]
    told = look.own(", then ").join([_command(verb, named, look) for verb in commands])
    window = " Steps begin only inside a window of the policy." if plan.mode is Mode.WINDOWED else ""
    return Text.assemble(look.own("Nothing is changed yet. Next: "), told, look.own(f".{window}"))


def _command(verb: str, argument: str, look: Look) -> Text:
    return look.foreign(f"`exitguard {verb} {shlex.quote(argument)}`", STRONG, limit_characters=_LIMIT_CHARACTERS)


# Waves


def _waves(plan: Plan, hosts: dict[str, str], look: Look) -> Iterator[RenderableType]:
    pace = plan.pace
    yield heading(look, "Waves", f"at most {counted(pace.max_hosts_in_flight, 'host')} at a time")
    steps = Counter(step.host_id for step in plan.steps)
    for number, wave in enumerate(pace.waves[:_MOST_WAVES], start=1):
        yield hanging(look, f"{number}.", _wave(wave, hosts, steps, look))
    if len(pace.waves) > _MOST_WAVES:
        yield indented(look.own(f"… and {counted(len(pace.waves) - _MOST_WAVES, 'more wave', 'more waves')}: {_SHOW_ALL}", DOUBT))
    yield indented(look.own(_stops(plan), FAINT))


def _wave(wave: Wave, hosts: dict[str, str], steps: Counter[str], look: Look) -> Text:
    many = sum(steps[host] for host in wave.hosts)
    return Text.assemble(
        look.foreign(wave.name, STRONG, limit_characters=_NAME_CHARACTERS),
        look.own(f"  {counted(len(wave.hosts), 'host')}, {counted(many, 'step')}: "),
        _names([hosts.get(host, host) for host in wave.hosts], look, FAINT),
    )


def _stops(plan: Plan) -> str:
    pace = plan.pace
    budget = pace.failure_budget
    stops = "The first host that fails" if budget == 0 else f"Failure number {budget + 1:,}"
    sentences = [f"{stops} stops everything that has not begun."]
    if len(pace.waves) > 1 and pace.pause_between_waves_seconds:
        sentences.append(f"{counted(pace.pause_between_waves_seconds, 'second')} between waves.")
    sentences.append(
        "What a failing host had changed is undone there, where that is exact and disturbs nobody."
        if pace.automatic_rollback
        else "Nothing is undone without your word."
    )
    return " ".join(sentences)


# Steps


def _by_remedy(steps: Iterable[Step]) -> dict[Remedy, list[Step]]:
    found: dict[Remedy, list[Step]] = {}
    for step in steps:
        found.setdefault(step.remedy, []).append(step)
    return found


@dataclass(frozen=True)
class _Row:
    """One thing to say of steps: where two steps give the same `of`, they are told alike."""

    label: str
    of: Callable[[Step], object]
    tell: Callable[[Step, Look], Text]


def _remedy(remedy: Remedy, steps: list[Step], hosts: dict[str, str], look: Look, shown: int | None) -> Iterator[RenderableType]:
    """What all steps of the remedy have in common once; then each kind of step with what differs, and with whom it is about."""
    many = len({step.host_id for step in steps})
    yield heading(look, remedy.value, f"{counted(len(steps), 'step')} on {counted(many, 'host')}")
    common = [row for row in _ROWS if len({row.of(step) for step in steps}) == 1]
    differing = [row for row in _ROWS if row not in common]
    if not differing:
        yield labelled(look, [_for(steps, hosts, look, shown), *_told(common, steps[0], look)])
        return
    yield labelled(look, _told(common, steps[0], look), label_columns=_LABEL_COLUMNS)
    kinds: dict[tuple[object, ...], list[Step]] = {}
    for step in steps:
        kinds.setdefault(tuple(row.of(step) for row in differing), []).append(step)
    for kind in list(kinds.values())[:shown]:
        yield Text()
        yield indented(look.own(counted(len(kind), "step"), STRONG))
        yield labelled(look, [_for(kind, hosts, look, shown), *_told(differing, kind[0], look)], columns=4, label_columns=_LABEL_COLUMNS)
    rest = list(kinds.values())[shown:] if shown is not None else []
    if rest:
        yield Text()
        yield indented(look.own(f"… and {counted(sum(map(len, rest)), 'step')} of {len(rest):,} other kinds: {_SHOW_ALL}", DOUBT))


def _told(rows: Iterable[_Row], step: Step, look: Look) -> list[tuple[str, Text]]:
    return [(row.label, text) for row in rows if (text := row.tell(step, look)).plain]


def _for(steps: Sequence[Step], hosts: dict[str, str], look: Look, shown: int | None) -> tuple[str, Text]:
    """Whom the steps are about: hosts, or the domains of each host."""
    everything = shown is None
    if all(step.subject.kind is SubjectKind.HOST for step in steps):
        return "for", _names([hosts.get(step.host_id, step.host_id) for step in steps], look, STRONG, everything=everything)
    by_host: dict[str, list[str]] = {}
    for step in steps:
        by_host.setdefault(step.host_id, []).append(name_of(step.subject))
    if len(hosts) == 1:
        return "for", _names(next(iter(by_host.values())), look, STRONG, everything=everything)
    lines = [
        Text.assemble(
            look.foreign(hosts.get(host, host), STRONG, limit_characters=_NAME_CHARACTERS),
            look.own(": "),
            _names(names, look, everything=everything, hint=""),
        )
        for host, names in list(by_host.items())[: None if everything else _MOST_HOSTS]
    ]
    if len(lines) < len(by_host):
        left = sum(len(names) for names in list(by_host.values())[len(lines) :])
        more = counted(len(by_host) - len(lines), "more host", "more hosts")
        lines.append(look.own(f"and {more} with {counted(left, 'step')}: {_SHOW_ALL}", DOUBT))
    return "for", Text("\n").join(lines)


def _names(names: Sequence[str], look: Look, style: str = "", *, everything: bool = False, hint: str = f": {_SHOW_ALL}") -> Text:
    """`a, b, c, d and 37 more: --format json shows all`."""
    shown = names if everything else names[:_MOST_NAMES]
    text = look.own(", ", FAINT).join([look.foreign(name, style, limit_characters=_NAME_CHARACTERS) for name in shown])
    if len(shown) < len(names):
        text.append_text(look.own(f" and {len(names) - len(shown):,} more{hint}", FAINT))
    return text


def _sentence(text: str, look: Look) -> Text:
    return look.foreign(text, limit_characters=_LIMIT_CHARACTERS)


def _sentences(texts: Iterable[str], look: Look) -> Text:
    return Text("\n").join([Text.assemble(look.own("- ", FAINT), _sentence(text, look)) for text in texts])


def _diff(step: Step, look: Look) -> Text:
    lines = step.diff.split("\n")
    styles = {"+": GOOD, "-": BAD}
    texts = [look.foreign(line, styles.get(line[:1], FAINT)) for line in lines[:_MOST_DIFF_LINES]]
    if len(lines) > _MOST_DIFF_LINES:
        texts.append(look.own(f"… {counted(len(lines) - _MOST_DIFF_LINES, 'more line', 'more lines')}: {_SHOW_ALL}", DOUBT))
    return Text("\n").join(texts)


def _disturbs(step: Step, look: Look) -> Text:
    return look.own("nothing that runs") if step.disruption is Disruption.NONE else look.own(step.disruption.value, DOUBT)


def _saves(step: Step, look: Look) -> Text:
    if not step.savings:
        return look.own("unquantified: nothing was said about it", DOUBT)
    return Text("\n").join([_saving(saving, look) for saving in step.savings])


def _saving(saving: SavingPerExit, look: Look) -> Text:
    reason = _sentence(saving.reason, look)
    if saving.unit is None or saving.low is None or saving.high is None:
        return Text.assemble(look.own("unquantified", DOUBT), look.own(": "), reason)
    amount = f"{saving.low:,}" if saving.low == saving.high else f"{saving.low:,} to {saving.high:,}"
    rows = ", ".join(saving.costs)
    rests_on = [look.own(" "), look.foreign(rows)] if rows else []
    return Text.assemble(
        look.own(f"{amount} {saving.unit} an exit", STRONG),
        look.own(f" ({saving.provenance}"),
        *rests_on,
        look.own("): "),
        reason,
    )


def _undo(step: Step, look: Look) -> Text:
    return look.own("exact: what was there before comes back" if step.reversible else "by hand: not undone by `exitguard rollback`")


_ROWS = (
    _Row("why", lambda step: step.why, lambda step, look: _sentence(step.why, look)),
    _Row("changes", lambda step: step.diff, _diff),
    _Row("safe", lambda step: step.safe, lambda step, look: _sentences(step.safe, look)),
    _Row("disturbs", lambda step: step.disruption, _disturbs),
    _Row("in force", lambda step: step.takes_effect, lambda step, look: _sentence(step.takes_effect, look)),
    _Row("guest loses", lambda step: step.guest_loses, lambda step, look: _sentences(step.guest_loses, look)),
    _Row("saves", lambda step: tuple((each.unit, each.low, each.high, each.costs, each.reason) for each in step.savings), _saves),
    _Row("undo", lambda step: step.reversible, _undo),
)
_LABEL_COLUMNS = max(len(row.label) for row in _ROWS)


# What is not touched, and what the plan rests on


def _left_alone(left: Sequence[LeftAlone], hosts: dict[str, str], look: Look, *, everything: bool) -> Iterator[RenderableType]:
    if not left:
        return
    yield heading(look, "Left alone", "not touched, each for a reason")
    groups: dict[LeftAloneBecause, dict[tuple[Remedy | None, str], list[LeftAlone]]] = {}
    for each in left:
        groups.setdefault(each.because, {}).setdefault((each.remedy, each.reason), []).append(each)
    for because in LeftAloneBecause:
        reasons = groups.get(because, {})
        if not reasons:
            continue
        many = _kinds([each for alike in reasons.values() for each in alike])
        yield indented(Text.assemble(look.own(label(because), STRONG), look.own(f"  {many}", FAINT)))
        often = sorted(reasons.items(), key=lambda item: -len(item[1]))
        for (remedy, reason), alike in often[: None if everything else _MOST_REASONS]:
            yield indented(_who(alike, hosts, look, everything=everything), 4)
            of = look.own(f"  {remedy.value}" if remedy is not None else "", FAINT)
            yield indented(Text.assemble(_sentence(reason, look), of), 6)
        rest = [] if everything else often[_MOST_REASONS:]
        if rest:
            more = sum(len(alike) for _, alike in rest)
            yield indented(look.own(f"… and {more:,} more, for {counted(len(rest), 'other reason')}: {_SHOW_ALL}", DOUBT), 4)


def _kinds(left: Sequence[LeftAlone]) -> str:
    """`12 domains, 1 host`."""
    tally: dict[SubjectKind, set[tuple[str, str]]] = {}
    for each in left:
        tally.setdefault(each.subject.kind, set()).add((each.host_id, each.subject.id))
    return ", ".join(counted(len(found), kind.value) for kind, found in tally.items())


def _who(alike: Sequence[LeftAlone], hosts: dict[str, str], look: Look, *, everything: bool) -> Text:
    shown = alike if everything else alike[:_MOST_NAMES]
    rest = f" and {len(alike) - len(shown):,} more: {_SHOW_ALL}" if len(shown) < len(alike) else ""
    return _names([_place(each, hosts) for each in shown], look, everything=True).append_text(look.own(rest, FAINT))


def _place(left: LeftAlone, hosts: dict[str, str]) -> str:
    host = hosts.get(left.host_id, left.host_id)
    if left.subject.kind is SubjectKind.HOST:
        return host
    return name_of(left.subject) if len(hosts) == 1 else f"{name_of(left.subject)} on {host}"


def _made_from(plan: Plan, look: Look) -> Iterator[RenderableType]:
    inputs = plan.inputs
    yield heading(look, "Made from", "where any of it is another, it is another plan")
    yield indented(look.foreign(plan.hash))
    rows = [
        ("policy", look.foreign(f"{inputs.policy}  {short_hash(inputs.policy_hash)}")),
        ("waivers", look.foreign(short_hash(inputs.waivers_hash))),
        ("playbooks", look.foreign(short_hash(inputs.playbooks_hash))),
    ]
    if inputs.inventory_hash is not None:
        rows.append(("inventory", look.foreign(short_hash(inputs.inventory_hash))))
    rows.append(("facts", look.own(f"of {counted(len(inputs.hosts), _place_word(plan))}")))
    yield labelled(look, rows)
