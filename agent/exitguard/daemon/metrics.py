"""What the daemon counts, for Prometheus: on a loopback port, or in a file for node_exporter's textfile collector.

The values are plain numbers here; prometheus_client, 2.5 MiB for the life of the process, is imported when they are first asked
for, so never where no port and no file is configured. Every series with known labels is there from the start, with 0; none is
labelled by domain. What has not been observed yet says so: exit code 3, kernel state unknown, last observation at 0.
"""

import errno
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from exitguard import __version__
from exitguard.daemon.log import get_logger
from exitguard.model.documents import KernelReport, Summary
from exitguard.model.finding import EXIT_UNKNOWN, Verdict
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import ChainState
from exitguard.model.rates import PerSecond
from exitguard.report.text import visible

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

_LIMIT_LABEL_CHARACTERS = 100
_TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: How long one client may take to ask and to read; another one waits for no longer than that.
REQUEST_SECONDS = 3.0
_LIMIT_HEAD_BYTES = 8192
_BACKLOG = 8
#: Before another try where no client can be accepted: no file descriptor is left.
_PAUSE_SECONDS = 1.0
_LISTEN = re.compile(r"(?P<four>[0-9]{1,3}(?:\.[0-9]{1,3}){3}):(?P<port>[0-9]{1,5})|\[(?P<six>[0-9A-Fa-f:]+)\]:(?P<port_six>[0-9]{1,5})")
_PORTS = range(65536)

_log = get_logger()


class MetricsError(Exception):
    """The metrics cannot be served or written. A sentence for the operator: what, where, what was expected, what to do."""


class Outcome(StrEnum):
    """How one run of a job ended."""

    FINISHED = "finished"
    FAILED = "failed"
    MISSED = "missed"  # it never began: the one before still ran, or the machine slept
    STOPPED = "stopped"  # by the end of the daemon


class _Series:
    """One metric: its values by label values."""

    def __init__(self, kind: Literal["counter", "gauge"], name: str, description: str, labels: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.name = name
        self.description = description
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, amount: float, *labels: str) -> None:
        self.values[labels] += amount

    def family(self) -> "Metric":
        from prometheus_client.metrics_core import Metric

        metric = Metric(self.name.removesuffix("_total"), self.description, self.kind)
        for values, value in self.values.items():
            metric.add_sample(self.name, dict(zip(self.labels, values, strict=True)), value)
        return metric


class Metrics:
    """Methods that say what happened, and the text that tells it. Any thread may call them.

    `jobs` are all the jobs there are: to name another one is a KeyError.
    """

    def __init__(self, *, jobs: Iterable[str], rules: Iterable[str], version: str = __version__) -> None:
        self._lock = threading.Lock()
        self._registry: CollectorRegistry | None = None
        self._all: list[_Series] = []
        self._build = self._gauge("exitguard_build_info", "The version of this program.", "version")
        self._runs = self._counter("exitguard_job_runs_total", "Runs of the daemon's jobs, by how they ended.", "job", "outcome")
        self._success = self._gauge("exitguard_job_last_success_timestamp_seconds", "When the job last finished; 0 for never.", "job")
        self._duration = self._gauge("exitguard_job_duration_seconds", "How long the job's last finished run took.", "job")
        self._findings = self._gauge("exitguard_findings", "Findings of the newest report.", "rule", "verdict")
        self._domains = self._gauge("exitguard_domains", "Domains of the newest report, by the state of their chain.", "chain_state")
        self._kernel = self._gauge("exitguard_host_kernel_info", "The running kernel, and its state by the policy.", "state", "release")
        self._exit_code = self._gauge(
            "exitguard_compliance_exit_code", "What `exitguard report` exits with: 0 compliant, 1 error, 2 not compliant, 3 unknown."
        )
        self._observed_at = self._gauge("exitguard_last_observation_timestamp_seconds", "When the host was last observed; 0 for never.")
        self._events = self._counter("exitguard_lifecycle_events_total", "Lifecycle events of domains that libvirt told.")
        self._pending = self._gauge("exitguard_pending_domains", "Domains that wait to be judged anew after an event.")
        self._connected = self._gauge("exitguard_libvirt_connected", "Whether libvirt's events arrive: 1 or 0.")
        self._blocked = self._gauge("exitguard_libvirt_blocked_calls", "Calls to libvirt that did not return in time and still wait.")
        self._reloads = self._counter("exitguard_reloads_total", "Reloads of settings and policy; a refused one keeps the old.", "outcome")
        self._last_reload = self._gauge("exitguard_last_reload_successful", "Whether settings and policy are as their files say: 1 or 0.")
        self._store = self._gauge("exitguard_store_bytes", "The size of the database with its log.")
        self._dropped = self._counter("exitguard_store_dropped_total", "Observations that could not be stored.")

        self._saved = self._gauge(
            "exitguard_saved_cycles_per_second", "Cycles saved in the last hours of the ledger; absent where unquantified.", "bound"
        )
        self._available = self._gauge(
            "exitguard_available_cycles_per_second",
            "Cycles that the whole chain would save more; absent where unquantified.",
            "bound",
        )
        self._unquantified = self._gauge(
            "exitguard_unquantified_skip_exits_per_second", "Exits that skipped an instruction and have no cost in cycles.", "bound"
        )

        self._spool_records = self._gauge("exitguard_spool_records", "Records that wait to be pushed to the hub.")
        self._spool_bytes = self._gauge("exitguard_spool_bytes", "What these take in the database.")
        self._pushed = self._counter("exitguard_pushed_records_total", "Records that the hub has acknowledged and taken.")
        self._push_refused = self._counter("exitguard_push_refused_records_total", "Records that the hub refused for good.")
        self._last_push = self._gauge("exitguard_last_push_timestamp_seconds", "When the hub last acknowledged anything; 0 for never.")

        self._build.values[(_label(version),)] = 1
        for job in jobs:
            self._runs.values |= dict.fromkeys(((job, outcome) for outcome in Outcome), 0)
            self._success.values[(job,)] = self._duration.values[(job,)] = 0
        self._domains.values |= {(state,): 0 for state in ChainState}
        self._kernel.values[KernelState.UNKNOWN, ""] = 1
        self._exit_code.values[()] = EXIT_UNKNOWN
        self._reloads.values |= {("applied",): 0, ("refused",): 0}
        self._last_reload.values[()] = 1  # nothing starts on bad settings
        self.policy_in_force(rules)

    def _gauge(self, name: str, description: str, *labels: str) -> _Series:
        self._all.append(_Series("gauge", name, description, labels))
        return self._all[-1]

    def _counter(self, name: str, description: str, *labels: str) -> _Series:
        self._all.append(_Series("counter", name, description, labels))
        return self._all[-1]

    def policy_in_force(self, rules: Iterable[str]) -> None:
        """The ids of all rules there are now: a rule that is gone has no series any more, a new one begins with 0."""
        with self._lock:
            self._findings.values = {
                (rule, verdict): self._findings.values.get((rule, verdict), 0) for rule in map(_label, rules) for verdict in Verdict
            }

    def job_finished(self, job: str, seconds: float, now: datetime) -> None:
        with self._lock:
            self._runs.add(1, job, Outcome.FINISHED)
            self._success.values[(job,)] = now.timestamp()
            self._duration.values[(job,)] = seconds

    def job_failed(self, job: str) -> None:
        self._ended(job, Outcome.FAILED)

    def job_missed(self, job: str) -> None:
        self._ended(job, Outcome.MISSED)

    def job_stopped(self, job: str) -> None:
        self._ended(job, Outcome.STOPPED)

    def _ended(self, job: str, outcome: Outcome) -> None:
        with self._lock:
            self._runs.add(1, job, outcome)

    def observed(self, summary: Summary, kernel: KernelReport, findings: Mapping[tuple[str, Verdict], int], observed_at: datetime) -> None:
        """The newest report, whole or updated: its head, and how many findings each rule has with each verdict."""
        with self._lock:
            counted = dict.fromkeys(self._findings.values, 0.0)
            for (rule, verdict), count in findings.items():
                key = (_label(rule), str(verdict))
                counted[key] = counted.get(key, 0) + count
            self._findings.values = counted
            self._domains.values = {(state,): summary.by_chain.get(state, 0) for state in ChainState}
            self._kernel.values = {(kernel.state, _label(kernel.release or "")): 1}
            self._exit_code.values[()] = summary.exit_code
            self._observed_at.values[()] = observed_at.timestamp()

    def booked(self, saved: PerSecond | None, available: PerSecond | None, unquantified_skips: PerSecond | None) -> None:
        """What the ledger says of its last hours; None: nothing."""
        with self._lock:
            for series, rate in ((self._saved, saved), (self._available, available), (self._unquantified, unquantified_skips)):
                series.values = {} if rate is None else {("low",): rate.low, ("high",): rate.high}

    def events_seen(self, count: int = 1) -> None:
        with self._lock:
            self._events.add(count)

    def pending(self, domains: int) -> None:
        self._set(self._pending, domains)

    def libvirt_connected(self) -> None:
        self._set(self._connected, 1)

    def libvirt_lost(self) -> None:
        self._set(self._connected, 0)

    def blocked_calls(self, count: int) -> None:
        self._set(self._blocked, count)

    def reload_applied(self) -> None:
        with self._lock:
            self._reloads.add(1, "applied")
            self._last_reload.values[()] = 1

    def reload_refused(self) -> None:
        with self._lock:
            self._reloads.add(1, "refused")
            self._last_reload.values[()] = 0

    def store_size(self, size_bytes: int) -> None:
        self._set(self._store, size_bytes)

    def observation_dropped(self) -> None:
        with self._lock:
            self._dropped.add(1)

    def spooled(self, records: int, size_bytes: int) -> None:
        self._set(self._spool_records, records)
        self._set(self._spool_bytes, size_bytes)

    def pushed(self, records: int, now: datetime) -> None:
        with self._lock:
            self._pushed.add(records)
        self._set(self._last_push, now.timestamp())

    def push_refused(self, records: int) -> None:
        with self._lock:
            self._push_refused.add(records)

    def _set(self, series: _Series, value: float) -> None:
        with self._lock:
            series.values[()] = value

    def collect(self) -> "Iterator[Metric]":
        """All metrics as they are at one instant: what prometheus_client asks of a collector."""
        with self._lock:
            families = [series.family() for series in self._all]
        return iter(families)

    def text(self) -> str:
        """The metrics and those of this process, in Prometheus's text format 0.0.4."""
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

        if self._registry is None:
            registry = CollectorRegistry()
            registry.register(self)
            # Under names of our own: node_exporter, which brings the textfile home, has process_* for itself, and drops ours.
            ProcessCollector(namespace="exitguard", registry=registry)
            self._registry = registry
        return generate_latest(self._registry).decode()

    def write_textfile(self, path: Path) -> None:
        """The text in the file `path`, replaced as a whole; anybody may read it. Raises MetricsError, and then the old file stays.

        It is not synchronised to the disk: it is about this run of the daemon, which writes it again and again.
        """
        # node_exporter reads whatever ends in .prom. A fixed name: what a kill leaves behind is replaced by the next write.
        new = path.with_name(f".{path.name}.new")
        text = self.text().encode()
        try:
            try:
                new.unlink(missing_ok=True)
                with new.open("xb") as file:
                    os.fchmod(file.fileno(), 0o644)  # whatever the umask: node_exporter is another user
                    file.write(text)
                new.replace(path)
            finally:
                with suppress(OSError):
                    new.unlink()
        except OSError as error:
            raise MetricsError(_explain_textfile(error, path)) from error

    def serve(self, listen: str) -> "MetricsServer":
        """A server of the text at `listen`, `127.0.0.1:PORT` or `[::1]:PORT`; port 0 takes a free one. Raises MetricsError."""
        return MetricsServer(_listener(listen), self.text)


class MetricsServer:
    """`GET /metrics` over HTTP, one client after the other in one thread, each with REQUEST_SECONDS for all it does.

    It reads at most one head of a request and keeps nothing between two of them, so no client makes it grow.
    """

    def __init__(self, listener: socket.socket, text: Callable[[], str]) -> None:
        self._listener = listener
        self._text = text
        #: Where it listens, as `host` and `port`.
        self.host, self.port = listener.getsockname()[:2]
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and drop whoever is being served."""
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # on Linux this ends accept()
        with self._lock, suppress(OSError):
            if self._client is not None:
                self._client.shutdown(socket.SHUT_RDWR)
        self._thread.join(REQUEST_SECONDS)
        self._listener.close()

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                self._closing.wait(_PAUSE_SECONDS)
                continue
            with client:
                with self._lock:
                    self._client = client
                try:
                    self._answer(client, time.monotonic() + REQUEST_SECONDS)
                except OSError:
                    pass  # it took too long, or went away: its own affair
                except Exception:  # noqa: BLE001 - the edge of this thread: the next client is to be answered whatever failed here
                    _log.exception("metrics.request_failed")
                with self._lock:
                    self._client = None

    def _answer(self, client: socket.socket, deadline: float) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _LIMIT_HEAD_BYTES and not self._closing.is_set():
            client.settimeout(max(deadline - time.monotonic(), 0.001))
            received = client.recv(_LIMIT_HEAD_BYTES - len(head))
            if not received:
                return
            head += received
        response = self._response(head)
        client.settimeout(max(deadline - time.monotonic(), 0.001))
        client.sendall(response)  # the time-out is for all of it

    def _response(self, head: bytes) -> bytes:
        match head.split(b"\r\n", 1)[0].split(b" "):
            case [b"GET", target, version] if version.startswith(b"HTTP/1.") and b"\r\n\r\n" in head:
                if target.split(b"?", 1)[0] == b"/metrics":
                    return _http("200 OK", self._text().encode(), _TEXT_TYPE)
                return _http("404 Not Found", b"Expected /metrics.\n")
            case [_, _, version] if version.startswith(b"HTTP/1.") and b"\r\n\r\n" in head:
                return _http("405 Method Not Allowed", b"Expected GET.\n", extra="Allow: GET\r\n")
            case _:
                return _http("400 Bad Request", b"Expected an HTTP request with a head of at most 8 KiB.\n")


def _http(status: str, body: bytes, content_type: str = "text/plain; charset=utf-8", *, extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}Connection: close\r\n\r\n"
    return head.encode() + body


def _label(text: str) -> str:
    """A label's value from outside: harmless where it is shown, and bounded. The format's own escapes are prometheus_client's."""
    return visible(text, limit_characters=_LIMIT_LABEL_CHARACTERS)


def _listener(listen: str) -> socket.socket:
    """A socket that listens at a loopback address given in digits: a name would have to be resolved. Raises MetricsError."""
    family, host, port = _parse(listen)
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a restart would have to wait for old connections
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise MetricsError(_explain_bind(error, listen, port)) from error
    return listener


def _parse(listen: str) -> tuple[socket.AddressFamily, str, int]:
    match = _LISTEN.fullmatch(listen)
    if match is not None:
        family = socket.AF_INET if match["four"] else socket.AF_INET6
        host, port = match["four"] or match["six"], int(match["port"] or match["port_six"])
        with suppress(OSError):  # digits that are no address
            packed = socket.inet_pton(family, host)
            if port in _PORTS and (packed[0] == 127 if match["four"] else packed == bytes(15) + b"\x01"):  # noqa: PLR2004 - 127.0.0.0/8
                return family, host, port
    raise MetricsError(
        f"metrics_listen: {visible(listen)} is no place to serve metrics. Expected a loopback address in digits and a port, such as "
        "127.0.0.1:9478 or [::1]:9478: metrics are not encrypted, and nobody has to log in. To reach them from another machine put "
        "an authenticating proxy in front, or use metrics_textfile."
    )


def _explain_bind(error: OSError, listen: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            remedy = f"See who has it with `ss -ltnp 'sport = :{port}'` and stop it, or choose another port."
        case errno.EACCES:
            remedy = "Choose a port of 1024 or above: those below belong to root."
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            remedy = "Use 127.0.0.1 where IPv6 is off; under systemd look at RestrictAddressFamilies= of the unit."
        case _:
            remedy = "Choose another address or port, or use metrics_textfile."
    return f"metrics_listen: {listen}: {_reason(error)}. Expected a loopback address and a port that are free. {remedy}"


def _explain_textfile(error: OSError, path: Path) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            remedy = f"Free some space there (`df -h {path.parent}`, `df -i {path.parent}`), or lift the quota."
        case errno.ENOENT | errno.ENOTDIR:
            remedy = f"Create {path.parent}, or correct the path."
        case errno.EROFS | errno.EACCES | errno.EPERM:
            remedy = (
                f"Let the user of the agent write to {path.parent}; under systemd the unit also needs it in ReadWritePaths= "
                "(`systemctl edit exitguard-audit.service`)."
            )
        case _:
            remedy = "Correct the path, or remove the setting."
    return f"metrics_textfile: {path}: {_reason(error)}. Expected a directory that this user may write to, with room for the file. {remedy}"


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
