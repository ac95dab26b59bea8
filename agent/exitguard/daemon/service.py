"""The daemon: its jobs, what wakes it, and how it starts, reloads and ends.

Jobs, events and signals all meet in the job loop. A signal sets a flag and wakes it; libvirt's threads note an event and wake it; the
loop does the rest. While a job runs, its pulse feeds the watchdog and ends the job where the daemon is to stop.
"""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from uuid import uuid4

from exitguard import __version__
from exitguard.config import LoadedSettings, changes_needing_restart, load_settings
from exitguard.cycle import AuditRequest
from exitguard.daemon.auditor import Auditor, Retention
from exitguard.daemon.conditions import Conditions
from exitguard.daemon.log import LogFormat, bound, configure_log, get_logger
from exitguard.daemon.loop import Interval, JobLoop, JobOutcome, Wake
from exitguard.daemon.memory import give_back
from exitguard.daemon.metrics import Metrics, MetricsError, MetricsServer
from exitguard.daemon.notify import Notifier
from exitguard.daemon.pending import PendingDomains
from exitguard.daemon.tracing import Tracing
from exitguard.facts.collect import DomainsUnseen
from exitguard.facts.libvirt.events import EventsUnavailable, LifecycleEvents
from exitguard.policy.load import load_rulebook
from exitguard.policy.problem import ProblemsError
from exitguard.policy.schema import Rulebook
from exitguard.settings import Settings
from exitguard.store.errors import StoreError, StoreOfAnother
from exitguard.store.state_dir import prepare_directory

if TYPE_CHECKING:
    from exitguard.daemon.pushing import Pusher, Pushing

_AUDIT, _SAMPLES, _LEDGER, _RETENTION, _LISTEN, _EVENTS = "audit", "samples", "ledger", "retention", "listen", "events"
_PUSH = "push"
JOBS = (_AUDIT, _SAMPLES, _LEDGER, _RETENTION, _LISTEN, _EVENTS, _PUSH)
_RETENTION_INTERVAL = Interval(3600, first_after_seconds=120)
#: Each booking is a pass over the samples of a few hours: one for several samples, and within these seconds.
_SAMPLES_A_BOOKING, _MOST_SECONDS_A_BOOKING = 3, 900
#: How often a connection for events is looked for, where there is none.
_LISTEN_INTERVAL = Interval(5)
#: How long after that the first audit begins: with a connection by then, it is not followed by another.
_CONNECT_SECONDS = 1.0
_LOCK_NAME = "daemon.lock"
_WORDS = {0: "compliant", 1: "a check broke", 2: "not compliant", 3: "unknown"}
_MIB = 1 << 20

_log = get_logger()


class AlreadyRunning(Exception):  # noqa: N818 - nobody's error
    """Another daemon, or another user's, keeps the same state directory current."""


class _Stopped(BaseException):
    """The daemon is to end, and the job under way with it; not an Exception, so that nothing on the way takes it for a failure."""


@dataclass(frozen=True)
class Start:
    """What one start of the daemon was given."""

    config: Path | None
    environ: Mapping[str, str]
    log_format: LogFormat = "auto"


def load(start: Start) -> tuple[LoadedSettings, Rulebook]:
    """Settings and policy as they are on disk. Raises ProblemsError for any that nothing may run on."""
    loaded = load_settings(start.config, start.environ)
    return loaded, load_rulebook(loaded.settings.policy_files, loaded.settings.waiver_files)


def run(start: Start, loaded: LoadedSettings, rulebook: Rulebook, notifier: Notifier) -> None:
    """Keep the audit current until SIGTERM or SIGINT. Raises AlreadyRunning."""
    with _locked(loaded.settings.state_dir):
        Service(start, loaded.settings, rulebook, notifier).run()


class Service:
    """One run of the daemon, from its start to its end."""

    def __init__(self, start: Start, settings: Settings, rulebook: Rulebook, notifier: Notifier) -> None:
        self._start = start
        self._settings = settings
        self._notifier = notifier
        self._wake = Wake()
        self._loop = JobLoop(self._wake, self._job_ended, self._clock_stepped)
        self._pending = PendingDomains()
        self._conditions = Conditions(begun=_condition_begun, over=_condition_over)
        self._metrics = Metrics(jobs=JOBS, rules=_rules(rulebook))
        self._server: MetricsServer | None = None
        self._reload_wanted = False
        self._events_changed = False
        self._job_seconds: dict[str, float] = {}
        self._auditor = Auditor(
            request=_request(settings),
            rulebook=rulebook,
            retention=_retention(settings),
            metrics=self._metrics,
            conditions=self._conditions,
            pulse=self._pulse,
            changed=self._domain_changed,
            tracing=_tracing(settings),
            pusher=self._pusher(settings),
        )
        self._events = self._events_of(self._auditor.request)

    def run(self) -> None:
        """Work until SIGTERM or SIGINT."""
        settings = self._settings
        with _signals({signal.SIGTERM: self._on_end, signal.SIGINT: self._on_end, signal.SIGHUP: self._on_reload}):
            _log.info("daemon.started", version=__version__, state_dir=str(settings.state_dir), target=self._auditor.request.target.uri)
            self._auditor.read_measurements(settings.measurement_files)
            self._auditor.remove_trace_leftovers()
            self._serve_metrics(None, settings.metrics_listen)
            # Events first: what happens during the first audit is not missed.
            self._loop.plan(_LISTEN, self._job(_LISTEN, self._listen), _LISTEN_INTERVAL)
            first = Interval(settings.audit_interval_seconds, first_after_seconds=_CONNECT_SECONDS)
            self._loop.plan(_AUDIT, self._job(_AUDIT, self._audit), first)
            samples = Interval(settings.sample_interval_seconds, first_after_seconds=settings.sample_interval_seconds)
            self._loop.plan(_SAMPLES, self._job(_SAMPLES, self._auditor.sample), samples)
            self._loop.plan(_LEDGER, self._job(_LEDGER, self._auditor.keep_books), _booking(settings))
            self._loop.plan(_RETENTION, self._job(_RETENTION, self._auditor.prune), _RETENTION_INTERVAL)
            self._loop.plan(_PUSH, self._job(_PUSH, self._auditor.push), _push_interval(settings))
            self._notifier.ready("the first audit begins")
            try:
                self._loop.run(self._turn)
            finally:
                self._end()

    # --- what the loop does in each turn ----------------------------------------------------------------------------------------

    def _turn(self) -> float | None:
        """Signals and events; seconds until there is something to do again."""
        self._notifier.alive()
        if self._reload_wanted:
            self._reload_wanted = False
            self._reload()
        if self._events_changed:
            self._events_changed = False
            self._tell_connection()
        waiting = self._pending.due_in(time.monotonic())
        if waiting == 0.0:
            self._loop.run_now(_EVENTS, self._job(_EVENTS, self._judge_pending))
        self._metrics.pending(len(self._pending))
        watchdog_seconds = self._notifier.watchdog_seconds
        waits = (self._pending.due_in(time.monotonic()), watchdog_seconds / 4 if watchdog_seconds is not None else None)
        return min((wait for wait in waits if wait is not None), default=None)

    def _pulse(self) -> None:
        """A job is alive, and goes on unless the daemon is to end."""
        self._notifier.alive()
        if self._loop.ended:
            raise _Stopped

    # --- jobs -------------------------------------------------------------------------------------------------------------------

    def _job(self, name: str, work: Callable[[], None]) -> Callable[[], None]:
        def job() -> None:
            self._pulse()
            began = time.monotonic()
            host = self._auditor.standing.head.host.hostname if self._auditor.standing is not None else os.uname().nodename
            with bound(run_id=uuid4().hex[:12], host=host, job=name):
                work()
            self._job_seconds[name] = time.monotonic() - began

        return job

    def _audit(self) -> None:
        self._pending.take_all()  # an event from now on is about what this audit may have seen already, or not: it waits
        with self._asking_again_after_failure():
            self._auditor.audit()
        give_back()

    def _judge_pending(self) -> None:
        began = time.process_time()  # to wait for libvirt costs nobody anything
        taken = self._pending.take(time.monotonic())
        everything = taken.everything
        try:
            with self._asking_again_after_failure():
                if everything:
                    self._auditor.audit()
                    give_back()
                elif self._auditor.judge_again(taken.uuids):
                    self._pending.add_everything(time.monotonic())
        except DomainsUnseen as unseen:
            # An audit of everything tries again after a pause, and says how the host stands without libvirt.
            self._conditions.holds("libvirt", str(unseen))
        finally:
            self._pending.pause(time.process_time() - began, time.monotonic(), everything=everything)

    @contextmanager
    def _asking_again_after_failure(self) -> Iterator[None]:
        """What was taken and could not be judged is not lost: an audit of everything follows, after a pause."""
        try:
            yield
        except Exception:
            self._pending.add_everything(time.monotonic())
            raise

    def _listen(self) -> None:
        try:
            self._events.connect()
        except EventsUnavailable as unavailable:
            self._conditions.holds("events", str(unavailable))
        if self._events.connected and self._auditor.may_know_more:
            self._pending.add_everything(time.monotonic())

    def _job_ended(self, outcome: JobOutcome) -> None:
        if outcome.missed:
            self._metrics.job_missed(outcome.job)
            _log.warning("job.missed", job=outcome.job)
        elif isinstance(outcome.error, _Stopped):
            self._metrics.job_stopped(outcome.job)
        elif outcome.error is not None:
            self._metrics.job_failed(outcome.job)
            if self._conditions.holds(f"job {outcome.job}", f"{type(outcome.error).__name__}: {outcome.error}"):
                _log.error("job.failed", job=outcome.job, exc_info=outcome.error)
        else:
            self._conditions.holds(f"job {outcome.job}", None)
            self._metrics.job_finished(outcome.job, self._job_seconds.get(outcome.job, 0.0), datetime.now(UTC))
        if outcome.job != _LISTEN:
            self._write_metrics()
            self._notifier.status(self._status())

    def _pusher(self, settings: Settings) -> "Pusher | None":
        """What pushes to the hub; None where there is none, and then nothing that it takes is in memory."""
        pushing = _pushing(settings)
        if pushing is None:
            return None

        from exitguard.daemon.pushing import Pusher

        return Pusher(pushing=pushing, metrics=self._metrics, conditions=self._conditions, pulse=self._pulse)

    # --- libvirt's events: these are called in its threads ----------------------------------------------------------------------

    def _events_of(self, request: AuditRequest) -> LifecycleEvents:
        return LifecycleEvents(request.target.uri or "", on_event=self._on_event, on_change=self._on_events_change)

    def _on_event(self, uuid: str) -> None:
        self._metrics.events_seen()
        self._domain_changed(uuid)

    def _domain_changed(self, uuid: str) -> None:
        if self._pending.add(uuid, time.monotonic()):
            self._wake.set()

    def _on_events_change(self) -> None:
        self._events_changed = True
        self._wake.set()

    def _tell_connection(self) -> None:
        connected = self._events.connected
        if connected:
            _log.info("events.connected")
            self._metrics.libvirt_connected()
        else:
            self._metrics.libvirt_lost()
        self._conditions.holds("events", self._events.obstacle)
        if connected:  # what happened before is not known
            self._pending.add_everything(time.monotonic())
        self._write_metrics()
        self._notifier.status(self._status())

    # --- signals ----------------------------------------------------------------------------------------------------------------

    def _on_end(self, _number: int, _frame: FrameType | None) -> None:
        self._notifier.stopping()
        self._loop.end()

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        self._reload_wanted = True
        self._wake.set()

    def _reload(self) -> None:
        """Settings and policy anew; where any of them is bad, all stay as they were."""
        self._notifier.reloading()
        try:
            loaded, rulebook = load(self._start)
        except ProblemsError as error:
            self._metrics.reload_refused()
            for problem in error.problems:
                _log.error("reload.refused", problem=problem.sentence)
            self._conditions.holds("reload", "settings or policy are bad: the old ones stay in force; see `exitguard config check`")
        else:
            self._apply(loaded.settings, rulebook)
            self._metrics.reload_applied()
            self._conditions.holds("reload", None)
            _log.info("reload.applied", policy=f"{rulebook.policy.id} {rulebook.policy.version}")
        self._write_metrics()
        self._notifier.ready(self._status())

    def _apply(self, settings: Settings, rulebook: Rulebook) -> None:
        for setting in changes_needing_restart(self._settings, settings):
            _log.warning("reload.needs_restart", setting=setting)
        old, self._settings = self._settings, settings
        request = _request(settings, state_dir=self._auditor.request.state_dir)
        if request.target != self._auditor.request.target:
            self._events.close()
            self._events = self._events_of(request)
            self._metrics.libvirt_lost()
        self._auditor.judge_by(request, rulebook, _retention(settings))
        self._auditor.read_measurements(settings.measurement_files)
        if _tracing(settings) != _tracing(old):
            self._auditor.tracing = _tracing(settings)
        if _pushing(settings) != _pushing(old):
            self._auditor.push_to(self._pusher(settings))
        self._metrics.policy_in_force(_rules(rulebook))
        configure_log(settings.log_level, dict(self._start.environ), log_format=self._start.log_format)
        if settings.audit_interval_seconds != old.audit_interval_seconds:
            self._loop.replan(_AUDIT, Interval(settings.audit_interval_seconds))
        if settings.sample_interval_seconds != old.sample_interval_seconds:
            self._loop.replan(_SAMPLES, Interval(settings.sample_interval_seconds))
            self._loop.replan(_LEDGER, _booking(settings))
        if settings.push_interval_seconds != old.push_interval_seconds:
            self._loop.replan(_PUSH, _push_interval(settings))
        self._serve_metrics(old.metrics_listen, settings.metrics_listen)
        if old.metrics_textfile is not None and old.metrics_textfile != settings.metrics_textfile:
            with suppress(OSError):  # it would go on telling of a daemon that no longer writes it
                old.metrics_textfile.unlink()
        self._pending.add_everything(time.monotonic(), at_once=True)

    # --- telling ----------------------------------------------------------------------------------------------------------------

    def _status(self) -> str:
        """One line: how the host stands, or what keeps that from being known."""
        standing = self._auditor.standing
        if standing is None:
            return self._conditions.worst or "no audit yet"
        summary = standing.summary
        failing = summary.by_verdict.get("fail", 0)
        parts = [_WORDS.get(summary.exit_code, "unknown"), f"{len(standing.chains)} domains", f"{failing} checks fail"]
        parts.append(f"observed {self._auditor.audited_at or standing.head.observed_at:%H:%M} UTC")
        worst = self._conditions.worst
        return " · ".join([*parts, *([worst] if worst is not None else [])])

    def _serve_metrics(self, old: str | None, listen: str | None) -> None:
        if listen == old and self._server is not None:
            return
        if self._server is not None:
            self._server.close()
            self._server = None
        reason = None
        if listen is not None:
            try:
                self._server = self._metrics.serve(listen)
            except MetricsError as error:
                reason = str(error)
        self._conditions.holds("metrics", reason)

    def _write_metrics(self) -> None:
        path = self._settings.metrics_textfile
        if path is None:
            return
        try:
            self._metrics.write_textfile(path)
        except MetricsError as error:
            self._conditions.holds("textfile", str(error))
        else:
            self._conditions.holds("textfile", None)

    def _clock_stepped(self, seconds: float) -> None:
        _log.warning("clock.stepped", seconds=round(seconds, 3))

    def _end(self) -> None:
        self._notifier.stopping()
        self._events.close()
        self._auditor.close()
        if self._auditor.pusher is not None:
            self._auditor.pusher.close()
        if self._server is not None:
            self._server.close()
        _log.info("daemon.ended")


def _request(settings: Settings, *, state_dir: Path | None = None) -> AuditRequest:
    return AuditRequest(
        uri=settings.connect,
        policy_files=settings.policy_files,
        waiver_files=settings.waiver_files,
        state_dir=state_dir or settings.state_dir,
        call_timeout_seconds=settings.call_timeout_seconds,
    )


def _booking(settings: Settings) -> Interval:
    seconds = max(settings.sample_interval_seconds, min(_SAMPLES_A_BOOKING * settings.sample_interval_seconds, _MOST_SECONDS_A_BOOKING))
    return Interval(seconds, first_after_seconds=seconds)


def _push_interval(settings: Settings) -> Interval:
    # The first audit comes first; a tenth of the interval is left to chance, so that a fleet that starts together spreads.
    return Interval(settings.push_interval_seconds, first_after_seconds=min(10, settings.push_interval_seconds))


def _pushing(settings: Settings) -> "Pushing | None":
    if settings.hub_url is None:
        return None

    from exitguard.daemon.pushing import Pushing
    from exitguard.fleet.client import HubAccess

    key_file = settings.hub_key_file or settings.state_dir / "hub-key"
    access = HubAccess(settings.hub_url, key_file, settings.hub_enrolment_file, settings.hub_ca_file)
    return Pushing(access, settings.spool_limit_mib * _MIB)


def _tracing(settings: Settings) -> Tracing:
    return Tracing(seconds=settings.exit_trace_milliseconds / 1000, interval_seconds=settings.sample_interval_seconds)


def _retention(settings: Settings) -> Retention:
    return Retention(
        history=timedelta(days=settings.retention_days),
        samples=timedelta(days=settings.sample_retention_days),
        ledger_hours=timedelta(days=settings.ledger_hours_retention_days),
        limit_bytes=settings.database_limit_mib * _MIB,
    )


def _rules(rulebook: Rulebook) -> list[str]:
    return [rule.id for rule in rulebook.policy.rules]


def _condition_begun(name: str, reason: str) -> None:
    _log.warning("condition.begun", condition=name, reason=reason)


def _condition_over(name: str, reason: str) -> None:
    _log.info("condition.over", condition=name, was=reason)


@contextmanager
def _signals(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """The state directory for one daemon alone. Where no lock can be made there, the daemon runs without: its store says why."""
    try:
        prepare_directory(state_dir)
        descriptor = os.open(state_dir / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except StoreOfAnother as error:
        raise AlreadyRunning(str(error)) from None
    except (OSError, StoreError) as error:
        _log.warning("start.unlocked", reason=str(error))
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"{state_dir}: another exitguard daemon keeps it current. Expected one daemon a state directory: stop the other "
                "(`systemctl status exitguard-audit`), or give this one a state_dir of its own."
            ) from None
        yield
    finally:
        os.close(descriptor)
