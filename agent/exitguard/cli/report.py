"""`exitguard report`: what the last audits found, of this host or of many, for every kind of reader; or what changed since a time."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.fleet import FleetOption, hub_for
from exitguard.cli.ledger import with_savings_of
from exitguard.cli.log import configure_logging
from exitguard.cli.options import ConfigOption, OutputOption, StateDirOption, some_path, some_text
from exitguard.cli.output import look_for, note, opened, write_result
from exitguard.cli.refusal import Refusal
from exitguard.cli.report_formats import Form, ReportFormat, formats_of, writer_for
from exitguard.cli.target import Asked, state_dir_for

if TYPE_CHECKING:
    from exitguard.cli.fleet_reports import FleetReports
    from exitguard.cli.report_inputs import ReportFiles
    from exitguard.model.documents import AuditReport
    from exitguard.report.changes import Changes
    from exitguard.report.deeds import Deed
    from exitguard.report.formats.writer import RuleText
    from exitguard.report.history import Moment
    from exitguard.report.overview import Overview
    from exitguard.report.page import Look
    from exitguard.report.result import HostResult
    from exitguard.store.host import HostStore


#: These have a place for what a rule demands.
_TELL_RULES = (ReportFormat.HTML, ReportFormat.SARIF)


class Only(StrEnum):
    """Verdicts that may be asked for alone."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    WAIVED = "waived"
    NOT_APPLICABLE = "not_applicable"
    UNKNOWN = "unknown"
    ERROR = "error"


class GroupBy(StrEnum):
    """By what hosts or domains may be put together."""

    KERNEL = "kernel"
    QEMU = "qemu"
    CPU = "cpu"
    CHAIN = "chain"
    PROJECT = "project"
    RULE = "rule"


FilesArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FILE]...",
        parser=some_path,
        show_default=False,
        help="Reports of hosts, as `audit --format json` writes them, or folders of them. Default: what this host remembers.",
    ),
]
FormatsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT[:FILE]",
        parser=some_text,
        help=f"{', '.join(ReportFormat)}; with :FILE it goes there. May be repeated. Default: table.",
    ),
]
OnlyOption = Annotated[list[Only] | None, typer.Option("--only", help="Only findings with this verdict. May be repeated.")]
GroupByOption = Annotated[GroupBy | None, typer.Option("--group-by", help="Put together what is alike; in table, markdown and html.")]
AtOption = Annotated[str | None, typer.Option("--at", metavar="TIME", help="The report in force then, for example 2026-01-31T00:00:00Z.")]
SinceOption = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Instead: what changed since then, and what was lost.")]


def report(
    context: typer.Context,
    files: FilesArgument = None,
    *,
    fleet: FleetOption = False,
    at: AtOption = None,
    since: SinceOption = None,
    formats: FormatsOption = None,
    only: OnlyOption = None,
    group_by: GroupByOption = None,
    output: OutputOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Print the last stored audit, or those in files or of a fleet, without looking at a host.

    One older than a day is stale: exit code 3, not 0.
    """
    if at is not None and since is not None:
        raise typer.BadParameter("give either --at or --since", param_hint="--at")
    if files and fleet:
        raise typer.BadParameter("asks the hub: give no FILE", param_hint="--fleet")
    if files and since is not None:
        raise typer.BadParameter("tells what this host remembers: give no FILE", param_hint="--since")
    asked_at, asked_since = time_of(at, "--at"), time_of(since, "--since")
    if asked_since is not None and (only or group_by):
        raise typer.BadParameter("tells changes: give no --only or --group-by", param_hint="--since")
    if asked_since is not None and asked_since > datetime.now(UTC):
        raise typer.BadParameter(f"{since} is still to come", param_hint="--since")
    forms = formats_of(formats or [ReportFormat.TABLE], output)
    if group_by is not None and not any(form.format.groups for form in forms):
        raise typer.BadParameter("is for table, markdown and html", param_hint="--group-by")
    configure_logging(context.obj, os.environ)
    with _told_to_nagios(forms):
        rules = rule_texts(config) if any(form.format in _TELL_RULES for form in forms) else {}
        telling = _Telling(forms, asked_at, datetime.now(UTC), tuple(only or ()), group_by=group_by, rules=rules)
        if fleet:
            code = _tell_fleet(telling, asked_since, config)
        elif files:
            code = _tell_files(files, telling)
        else:
            code = _tell_store(state_dir_for(Asked(config=config, state_dir=state_dir), os.environ), telling, asked_since, config)
    raise typer.Exit(code)


@contextlib.contextmanager
def _told_to_nagios(forms: Sequence[Form]) -> Iterator[None]:
    """Where standard output is for Nagios, whatever cannot be told is UNKNOWN there: it would take exit code 1 for a warning."""
    try:
        yield
    except Exception as error:
        if not _is_for_nagios(forms):
            raise
        from exitguard.report.formats.as_nagios import UNKNOWN, unknown_line

        write_result(unknown_line(" ".join(error.sentences) if isinstance(error, Refusal) else str(error)), None)
        raise typer.Exit(UNKNOWN) from error


def _is_for_nagios(forms: Sequence[Form]) -> bool:
    return any(form.format is ReportFormat.NAGIOS and form.file is None for form in forms)


def _tell_store(directory: Path, telling: "_Telling", asked_since: datetime | None, config: Path | None) -> int:
    """The report of this host, or what changed; the exit code. Raises Refusal, StoreError."""
    from exitguard.store.host import HostStore

    asked_at, now, forms = telling.at, telling.now, telling.forms
    with HostStore.open(directory, now=now, read_only=True) as store:
        stored, stale = aged(last_report(store, asked_at), store.audited_at(asked_at), asked_at or now)
        if asked_since is not None:
            _tell_losses(store, stored.observed_at)
            if stale:
                _tell_stale(stored)
            _write_changes(_changes_of_store(store, asked_since, config), forms)
            return stored.summary.exit_code
        if asked_at is None:
            _tell_losses(store, stored.observed_at)
            stored = with_savings_of(stored, store, now)
        history = _history_of_store(store, asked_at or now)
    if stale and not any(form.format is ReportFormat.TABLE for form in forms):
        _tell_stale(stored)

    from exitguard.report.result import HostResult

    return telling.tell(iter([HostResult(stored, stale, str(directory))]), history)


class _Telling:
    """The hosts told in every form that was asked for, in one pass."""

    def __init__(
        self,
        forms: Sequence[Form],
        at: datetime | None,
        now: datetime,
        verdicts: tuple[Only, ...],
        *,
        group_by: GroupBy | None,
        rules: "Mapping[str, RuleText]",
    ) -> None:
        from exitguard.model.finding import Verdict
        from exitguard.report.overview import GroupKey

        self.forms = forms
        self.at = at
        self.now = now
        self._rules = rules
        self._only: tuple[Verdict, ...] = tuple(Verdict(each) for each in verdicts)
        self._group_by: GroupKey | None = None if group_by is None else GroupKey(group_by)

    def tell(
        self, results: "Iterator[HostResult]", history: "tuple[Moment, ...]", inputs: "ReportFiles | FleetReports | None" = None
    ) -> int:
        """Write all of it; the exit code."""
        from exitguard.report.formats.writer import Setting
        from exitguard.report.overview import Overview

        overview = Overview(group_by=self._group_by, history=history)
        with ExitStack() as stack:
            writers = []
            for form in self.forms:
                look = look_for(form.file, os.environ)
                setting = Setting(generated_at=self.now, look=look, at=self.at, only=self._only, group_by=self._group_by, rules=self._rules)
                writers.append((writer_for(form.format, setting), stack.enter_context(opened(form.file))))
            for writer, write in writers:
                for piece in writer.begin():
                    write(piece)
            for result in results:
                chosen = result.only(self._only)
                overview.add(chosen)
                for writer, write in writers:
                    for piece in writer.host(chosen):
                        write(piece)
            overview.unread = inputs.unread if inputs is not None else []
            for writer, write in writers:
                for piece in writer.end(overview):
                    write(piece)
        return self._exit_code(overview)

    def _exit_code(self, overview: "Overview") -> int:
        """Nagios's own where standard output is for Nagios."""
        if _is_for_nagios(self.forms):
            from exitguard.report.formats.as_nagios import nagios_exit_code

            return nagios_exit_code(overview)
        return overview.exit_code


def rule_texts(config: Path | None) -> "Mapping[str, RuleText]":
    """What the rules of the policy here demand and why; none where it cannot be read: reports of others may be told all the same."""
    from exitguard.config import load_settings
    from exitguard.policy.load import load_rulebook
    from exitguard.policy.problem import ProblemsError
    from exitguard.report.formats.writer import RuleText

    try:
        rules = load_rulebook(load_settings(config, os.environ).settings.policy_files).policy.rules
    except ProblemsError as error:
        note([f"exitguard: the titles of rules are left out: {error}"])
        return {}
    return {rule.id: RuleText(rule.title, rule.rationale) for rule in rules}


def _tell_files(paths: Sequence[Path], telling: _Telling) -> int:
    from exitguard.cli.report_inputs import look_through
    from exitguard.report.history import history_of
    from exitguard.report.result import HostResult

    found = look_through(paths, telling.at)

    def results() -> "Iterator[HostResult]":
        for path, report in found.read():
            told, stale = aged(report, report.observed_at, telling.at or telling.now)
            yield HostResult(told, stale, str(path))

    with _without_cycles():
        code = telling.tell(results(), history_of(found.history, telling.at or telling.now), found)
    note(f"exitguard: {sentence}" for sentence in (*found.unread, *found.left_out))
    return code


def _tell_fleet(telling: _Telling, asked_since: datetime | None, config: Path | None) -> int:
    """Every host that its hub knows, or what changed; the exit code. Raises Refusal, ConfigError, PolicyError."""
    from exitguard.cli.fleet_changes import fleet_changes
    from exitguard.cli.fleet_reports import FleetReports
    from exitguard.config import load_settings
    from exitguard.fleet.operator import HubError
    from exitguard.model.finding import EXIT_COMPLIANT, EXIT_ERROR
    from exitguard.policy.load import load_rulebook
    from exitguard.report.result import HostResult

    settings = load_settings(config, os.environ).settings
    rulebook = load_rulebook(settings.policy_files, settings.waiver_files)
    at = telling.at or telling.now
    try:
        with hub_for(config) as hub, FleetReports(at, rulebook) as reports:
            if asked_since is not None:
                changes, whole = fleet_changes(hub, asked_since)
                _write_changes(changes, telling.forms)
                if not whole:
                    note(["exitguard: there is more than is told here: ask for a shorter time."])
                return EXIT_COMPLIANT
            reports.fetch(hub, telling.at)

            def results() -> "Iterator[HostResult]":
                for report, known_at in reports.read():
                    told, stale = (report, False) if known_at is None else aged(report, known_at, at)
                    yield HostResult(told, stale, hub.url)

            with _without_cycles():
                code = telling.tell(results(), (), reports)
            note(f"exitguard: {sentence}" for sentence in reports.unread)
            return code
    except HubError as error:
        raise Refusal(f"exitguard: {error}", code=EXIT_ERROR) from error


@contextlib.contextmanager
def _without_cycles() -> Iterator[None]:
    """Millions of records come and go, and none is in a cycle: looking for cycles would take a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _history_of_store(store: "HostStore", until: datetime) -> "tuple[Moment, ...]":
    from exitguard.report.history import history_of

    return history_of(((store.host_id, at, code) for at, code in store.exit_codes(until)), until)


def _tell_stale(stored: "AuditReport") -> None:
    note([f"exitguard: stale: this report is of {stored.observed_at:%Y-%m-%d %H:%M} UTC; run `exitguard audit`."])


def last_report(store: "HostStore", at: datetime | None) -> "AuditReport":
    """The report that was in force at `at`, or the last one. Raises Refusal where there is none, StoreError."""
    from exitguard.model.finding import EXIT_UNKNOWN

    found = store.report(at)
    if found is None:
        when = f" of {at:%Y-%m-%d %H:%M:%S} UTC or earlier" if at is not None else ""
        raise Refusal(f"exitguard: {store.state_dir} holds no audit{when}: run `exitguard audit` first.", code=EXIT_UNKNOWN)
    return found


def aged(stored: "AuditReport", audited_at: datetime | None, at: datetime) -> tuple["AuditReport", bool]:
    """The report as it may be told at `at`, and whether it is stale: then it no longer says that the host is compliant.

    It is as old as the last audit of the whole host: an event that made one domain be looked at says nothing of the others.
    """
    from exitguard.model.finding import EXIT_COMPLIANT, EXIT_UNKNOWN
    from exitguard.report.result import STALE_AFTER

    # A report from the future has an unknown age: the clock was wrong then, or is now.
    stale = abs(at - (audited_at or stored.observed_at)) > STALE_AFTER
    if stale and stored.summary.exit_code == EXIT_COMPLIANT:
        return stored.model_copy(update={"summary": stored.summary.model_copy(update={"exit_code": EXIT_UNKNOWN})}), True
    return stored, stale


def _changes_of_store(store: "HostStore", since: datetime, config: Path | None) -> "Changes":
    from exitguard.model.time import EPOCH
    from exitguard.report.changes import Changes
    from exitguard.report.deeds import with_runs

    transitions = with_runs(store.transitions(EPOCH), _deeds(config, store.host_id))
    return Changes(since=since, transitions=tuple(each for each in transitions if each.at >= since), gaps=store.gaps(since))


def _write_changes(changes: "Changes", forms: Sequence[Form]) -> None:
    from exitguard.report.changes import changes_page
    from exitguard.report.changes_rows import changes_csv, changes_markdown
    from exitguard.report.json_document import json_text

    tellers: dict[ReportFormat, Callable[[Changes, Look], str]] = {
        ReportFormat.TABLE: changes_page,
        ReportFormat.MARKDOWN: changes_markdown,
        ReportFormat.CSV: changes_csv,
        ReportFormat.JSON: lambda told, _look: json_text(told),
    }
    for form in forms:
        if form.format not in tellers:
            raise typer.BadParameter(f"changes are told as {', '.join(tellers)}, not as {form.format}", param_hint="--since")
    for form in forms:
        write_result(tellers[form.format](changes, look_for(form.file, os.environ)), form.file)


def _deeds(config: Path | None, host_id: str) -> "Iterator[Deed]":
    """What runs of plans on this machine changed on the host; what may not be read is told, and left out."""
    from exitguard.cli.remedy_setup import runs_dir
    from exitguard.report.deeds import deeds_of
    from exitguard.store.errors import StoreError
    from exitguard.store.journal import RunStore

    runs = RunStore(runs_dir(config, None))
    try:
        for run_id in runs.run_ids():
            record = runs.read(run_id)
            yield from (deed for deed in deeds_of(run_id, record.plan, record.events) if deed.host_id == host_id)
    except StoreError as error:
        note([f"exitguard: which changes followed a run of a plan is not told: {error}"])


def _tell_losses(store: "HostStore", since: datetime) -> None:
    note(
        f"exitguard: since the last stored audit at least {gap.dropped} could not be stored, the last at {gap.last_at:%Y-%m-%d %H:%M} UTC: "
        f"{gap.reason}"
        for gap in store.gaps(since)
        if gap.last_at > since
    )


def time_of(text: str | None, option: str) -> datetime | None:
    """The time that an option gives. Raises typer.BadParameter for what is none."""
    from exitguard.model.time import parse_rfc3339

    if text is None:
        return None
    try:
        return parse_rfc3339(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
