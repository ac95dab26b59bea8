"""How a run stands, for whoever has to decide what to do about it: what happened, what is changed and what is not, what to type next."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Literal

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.documents import Tool
from exitguard.model.plan import Remedy
from exitguard.model.record import Record
from exitguard.model.run import RunEvent, StepOutcome
from exitguard.model.time import UtcTime
from exitguard.remedy.rollout_state import HostPhase, RolloutState, Standing, StepState
from exitguard.report.page import BAD, CALM, DOUBT, FAINT, GOOD, STRONG, Look, counted, hanging, heading, indented, labelled, render
from exitguard.report.plan_table import host_names, name_of, short_hash
from exitguard.report.table import moment
from exitguard.report.words import label

_LAST_EVENTS = 10
_MOST_FAILED = 10
_MOST_NAMES = 4
_MOST_REASONS = 2
_LIMIT_CHARACTERS = 400
_NAME_CHARACTERS = 64
_SHOW_ALL = "--format json shows all"


class RunStanding(StrEnum):
    """How a run stands, as people see it."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ABORTED = "aborted"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # no process works on it, and it has not ended


class WaveStatus(Record):
    """One wave, and whether all of it is through."""

    name: str
    hosts: int
    passed: bool


class HostStatus(Record):
    """One host; `reason` where it failed, or where there was nothing to do."""

    id: str
    name: str
    phase: HostPhase
    reason: str


class StepStatus(Record):
    """One step, and how it ended."""

    id: str
    host_id: str
    subject: str
    remedy: Remedy
    state: StepState
    outcome: StepOutcome | None
    reason: str


class RunStatus(Record):
    """One run: how it stands as a whole, each host, each step, and the last lines of its journal."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    run: str
    plan: str
    #: The run that this one undoes.
    undoes: str | None
    standing: RunStanding
    #: Why it was stopped, paused or aborted.
    why: str
    #: Whether a process works on it.
    held: bool
    begun_at: UtcTime | None
    waves: tuple[WaveStatus, ...]
    #: Counted from 0; None where all have passed.
    wave: int | None
    hosts: tuple[HostStatus, ...]
    steps: tuple[StepStatus, ...]
    last_events: tuple[RunEvent, ...]


def status_of(run: str, state: RolloutState, events: Sequence[RunEvent], *, held: bool) -> RunStatus:
    """The status of a run whose journal `events`, folded, gives `state`."""
    plan, names = state.plan, host_names(state.plan)
    return RunStatus(
        run=run,
        plan=plan.hash,
        undoes=plan.undoes,
        standing=_standing(state.standing, held=held),
        why=state.why,
        held=held,
        begun_at=events[0].at if events else None,
        waves=tuple(
            WaveStatus(name=wave.name, hosts=len(wave.hosts), passed=number in state.passed) for number, wave in enumerate(plan.pace.waves)
        ),
        wave=state.wave,
        hosts=tuple(
            HostStatus(id=host.id, name=names.get(host.id, host.id), phase=state.phase(host.id), reason=host.failure or host.reason)
            for host in state.every_host()
        ),
        steps=tuple(
            StepStatus(
                id=step_id,
                host_id=host.id,
                subject=name_of(step.subject),
                remedy=step.remedy,
                state=progress.state,
                outcome=progress.undo_outcome or progress.outcome,
                reason=progress.reason,
            )
            for host in state.every_host()
            for step_id, progress in host.steps.items()
            for step in [state.index.steps[step_id]]
        ),
        last_events=tuple(events[-_LAST_EVENTS:]),
    )


def status_page(status: RunStatus, look: Look) -> str:
    """The status as a page."""
    return render(look, _parts(status, look))


def _standing(standing: Standing, *, held: bool) -> RunStanding:
    if standing in (Standing.NEW, Standing.RUNNING):
        return RunStanding.RUNNING if held else RunStanding.INTERRUPTED
    return RunStanding(standing.value)


def _parts(status: RunStatus, look: Look) -> Iterator[RenderableType]:
    yield _headline(status, look)
    yield _circumstances(status, look)
    if status.why:
        yield Text.assemble(look.own("Why: "), look.foreign(status.why, _STYLES[status.standing], limit_characters=_LIMIT_CHARACTERS))
    if status.held and status.standing is not RunStanding.RUNNING:
        yield look.own("What was under way is being brought to its end.", FAINT)
    yield from _next(status, look)
    yield from _failed(status, look)
    yield from _steps(status, look)
    yield from _hosts(status, look)
    yield from _last_events(status, look)


# The first lines

_STYLES = {
    RunStanding.RUNNING: GOOD,
    RunStanding.PAUSED: DOUBT,
    RunStanding.STOPPED: BAD,
    RunStanding.ABORTED: BAD,
    RunStanding.FINISHED: GOOD,
    RunStanding.INTERRUPTED: DOUBT,
}
_FAILED = (HostPhase.FAILED, HostPhase.UNDONE)
_THROUGH = (HostPhase.DONE, HostPhase.LEFT)


def _count(status: RunStatus, *phases: HostPhase) -> int:
    return sum(host.phase in phases for host in status.hosts)


def _headline(status: RunStatus, look: Look) -> Text:
    failed, waiting, flying = _count(status, *_FAILED), _count(status, HostPhase.WAITING), _count(status, HostPhase.IN_FLIGHT)
    word = status.standing.value.upper()
    style = _STYLES[status.standing]
    if failed and status.standing is RunStanding.FINISHED:
        word, style = "FINISHED, WITH FAILURES", BAD
    parts = [f"{_count(status, *_THROUGH):,} of {counted(len(status.hosts), 'host')} through"]
    parts += [
        f"{number:,} {what}"
        for number, what in ((flying, "in flight" if status.held else "cut off in flight"), (failed, "failed"), (waiting, "not begun"))
        if number
    ]
    undoes = [look.own(" It undoes run "), look.foreign(status.undoes, STRONG), look.own(".")] if status.undoes is not None else []
    return Text.assemble(
        look.own(word, f"bold {style}"), "  run ", look.foreign(status.run, STRONG), look.own(f": {', '.join(parts)}."), *undoes
    )


def _circumstances(status: RunStatus, look: Look) -> Text:
    parts = [Text.assemble(look.own("plan ", FAINT), look.foreign(short_hash(status.plan), FAINT))]
    if status.wave is not None and status.wave < len(status.waves):
        name = look.foreign(status.waves[status.wave].name, FAINT, limit_characters=_NAME_CHARACTERS)
        parts.append(Text.assemble(look.own(f"wave {status.wave + 1} of {len(status.waves)}: ", FAINT), name))
    if status.begun_at is not None:
        parts.append(look.own(f"begun {moment(status.begun_at)}", FAINT))
    return look.own(" · ", FAINT).join(parts)


def _next(status: RunStatus, look: Look) -> Iterator[RenderableType]:
    """What to type next, and what each of it does."""
    run, changed = status.run, any(step.state in _MAY_BE_CHANGED for step in status.steps)
    pause, resume, abort = (f"rollout {verb} {run}" for verb in ("pause", "resume", "abort"))
    choices: list[tuple[str, str]] = []
    match status.standing:
        case RunStanding.RUNNING:
            choices = [(pause, "lets what is under way end, and starts nothing more"), (abort, "ends it for good; what is changed stays")]
        case RunStanding.PAUSED:
            choices = [(resume, "goes on where it was"), (abort, "ends it for good; what is changed stays")]
        case RunStanding.INTERRUPTED:
            choices = [(resume, "looks first at what was under way, and goes on"), (abort, "ends it for good; what is changed stays")]
        case RunStanding.STOPPED:
            choices = [
                (resume, "gives hosts that failed another chance, once you know why they did, and goes on"),
                (abort, "ends it for good; what is changed stays, until you undo it with `exitguard rollback`"),
            ]
        case RunStanding.ABORTED | RunStanding.FINISHED:
            if changed:
                choices = [(f"rollback {run}", "undoes what it changed, where that is exact")]
            if status.standing is RunStanding.ABORTED or _count(status, *_FAILED):
                choices.append(("plan", "shows what is left to do"))
    if not choices:
        yield look.own("Nothing was changed, and nothing is left to do.", FAINT)
        return
    yield look.own("Next:")
    for command, what in choices:
        shown = look.foreign(f"exitguard {command}", STRONG)
        yield hanging(look, "-", Text.assemble(shown, look.own(f"  {what}.", FAINT)))


# Hosts and steps

#: How a step may stand, from what asks for something to what does not: the words, the colour, and whether its reasons are told.
_STATES: dict[StepState, tuple[str, str, bool]] = {
    StepState.UNCERTAIN: ("not known", BAD, True),
    StepState.UNDO_UNCERTAIN: ("undo not known", BAD, True),
    StepState.IN_DOUBT: ("end not seen", DOUBT, False),
    StepState.UNDO_IN_DOUBT: ("undo not seen", DOUBT, False),
    StepState.STARTED: ("under way", CALM, False),
    StepState.UNDOING: ("being undone", CALM, False),
    StepState.DONE: ("changed", GOOD, False),
    StepState.UNDONE: ("restored", CALM, False),
    StepState.NOT_DONE: ("not changed", DOUBT, True),
    StepState.LEFT: ("not due now", FAINT, True),
    StepState.WAITING: ("not begun", FAINT, False),
}
#: What nobody carries out any more.
_ORPHANED = {StepState.STARTED: StepState.IN_DOUBT, StepState.UNDOING: StepState.UNDO_IN_DOUBT}
_MAY_BE_CHANGED = tuple(
    state for state in StepState if state not in (StepState.WAITING, StepState.LEFT, StepState.NOT_DONE, StepState.UNDONE)
)
_PHASES = {
    HostPhase.FAILED: ("failed", BAD),
    HostPhase.UNDONE: ("failed, restored", DOUBT),
    HostPhase.IN_FLIGHT: ("in flight", CALM),
    HostPhase.DONE: ("changed, verified", GOOD),
    HostPhase.LEFT: ("nothing to change", FAINT),
    HostPhase.WAITING: ("not begun", FAINT),
}


def _failed(status: RunStatus, look: Look) -> Iterator[RenderableType]:
    failed = [host for host in status.hosts if host.phase in _FAILED]
    if not failed:
        return
    yield heading(look, "Failed", counted(len(failed), "host"))
    for host in failed[:_MOST_FAILED]:
        restored = " (what it had changed is restored)" if host.phase is HostPhase.UNDONE else ""
        yield indented(Text.assemble(look.foreign(host.name, STRONG, limit_characters=_NAME_CHARACTERS), look.own(restored, FAINT)))
        yield indented(look.foreign(host.reason, limit_characters=_LIMIT_CHARACTERS), 4)
    if len(failed) > _MOST_FAILED:
        yield indented(look.own(f"… and {len(failed) - _MOST_FAILED:,} more: {_SHOW_ALL}", DOUBT))


def _steps(status: RunStatus, look: Look) -> Iterator[RenderableType]:
    names = {host.id: host.name for host in status.hosts}
    groups: dict[tuple[StepState, StepOutcome | None], list[StepStatus]] = {}
    for step in status.steps:
        state = step.state if status.held else _ORPHANED.get(step.state, step.state)
        # How a step ended says more where it did not end as planned.
        outcome = step.outcome if _STATES[state][2] else None
        groups.setdefault((state, outcome), []).append(step)
    if not groups:
        return
    yield heading(look, "Steps", "what is changed and what is not")
    rows = [
        (words, _group(steps, outcome, names, look, style=style, with_reasons=with_reasons))
        for state, (words, style, with_reasons) in _STATES.items()
        for (of, outcome), steps in groups.items()
        if of is state
    ]
    yield labelled(look, rows)


def _group(
    steps: Sequence[StepStatus], outcome: StepOutcome | None, names: dict[str, str], look: Look, *, style: str, with_reasons: bool
) -> Text:
    how = f", {label(outcome)}" if outcome is not None else ""
    text = Text.assemble(look.own(f"{counted(len(steps), 'step')}{how}", style), look.own(": ", FAINT))
    text.append_text(_names((_place(step, names) for step in steps), len(steps), look))
    reasons = Counter(step.reason for step in steps if step.reason) if with_reasons else Counter[str]()
    for reason, _ in reasons.most_common(_MOST_REASONS):
        text.append_text(look.own("\n- ", FAINT)).append_text(look.foreign(reason, limit_characters=_LIMIT_CHARACTERS))
    if len(reasons) > _MOST_REASONS:
        text.append_text(look.own(f"\n… and {counted(len(reasons) - _MOST_REASONS, 'other reason')}: {_SHOW_ALL}", DOUBT))
    return text


def _names(names: Iterable[str], many: int, look: Look) -> Text:
    shown = [look.foreign(name, limit_characters=_NAME_CHARACTERS) for name, _ in zip(names, range(_MOST_NAMES), strict=False)]
    text = look.own(", ", FAINT).join(shown)
    return text.append_text(look.own(f" and {many - len(shown):,} more", FAINT)) if len(shown) < many else text


def _place(step: StepStatus, names: dict[str, str]) -> str:
    host = names.get(step.host_id, step.host_id)
    return step.subject if len(names) == 1 else host if step.subject == host else f"{step.subject} on {host}"


def _hosts(status: RunStatus, look: Look) -> Iterator[RenderableType]:
    if len(status.hosts) < 2:  # noqa: PLR2004 - of one host the headline has said it
        return
    yield heading(look, "Hosts")
    rows: list[tuple[str, Text]] = []
    for phase, (words, style) in _PHASES.items():
        of = [host.name for host in status.hosts if host.phase is phase]
        if of:
            rows.append((words, Text.assemble(look.own(f"{len(of):,}", style), look.own(": ", FAINT), _names(of, len(of), look))))
    yield labelled(look, rows)


# The journal


def _last_events(status: RunStatus, look: Look) -> Iterator[RenderableType]:
    if not status.last_events:
        return
    hosts = {host.id: host.name for host in status.hosts}
    steps = {step.id: _place(step, hosts) for step in status.steps}
    yield heading(look, "Last events", f"up to {moment(status.last_events[-1].at)}")
    for event in status.last_events:
        yield hanging(look, f"{event.at:%H:%M:%S}", _event(event, hosts, steps, look), style=FAINT)


def _event(event: RunEvent, hosts: dict[str, str], steps: dict[str, str], look: Look) -> Text:
    text = look.own(label(event.kind))
    about = [hosts.get(host, host) for host in ((event.host,) if event.host is not None else event.hosts)]
    about += [steps.get(step, step) for step in ((event.step,) if event.step is not None else event.steps)]
    if about:
        text.append_text(Text.assemble("  ", _names(about, len(about), look)))
    ended = [label(event.outcome)] if event.outcome is not None else []
    ended += [label(event.check)] if event.check is not None else []
    ended += [("as it should be" if event.passed else "not as it should be")] if event.passed is not None else []
    if ended:
        text.append_text(look.own(f": {', '.join(ended)}"))
    if event.reason:
        text.append_text(Text.assemble(look.own(": ", FAINT), look.foreign(event.reason, limit_characters=_LIMIT_CHARACTERS)))
    return text
