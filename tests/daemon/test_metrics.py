"""What the daemon counts: the text read by prometheus_client's parser, and by promtool where there is one; the port by real clients."""

import errno
import http.client
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exitguard.daemon.metrics import Metrics, MetricsError, MetricsServer, _explain_bind, _explain_textfile
from exitguard.model.documents import KernelReport, Summary
from exitguard.model.finding import Verdict
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import ChainState
from exitguard.model.rates import PerSecond

JOBS = ("audit", "samples", "retention")
RULES = ("HOST-KERNEL-GUARD", "DOM-PMU-LIVE")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DEADLINE_SECONDS = 60

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(text: str) -> Samples:
    """Each sample's value by name and labels; no sample is there twice."""
    listed = [
        ((sample.name, frozenset(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert len(dict(listed)) == len(listed)
    return dict(listed)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples_of(metrics.text()).get((name, frozenset(labels.items())))


def kernel(state: KernelState, release: str | None) -> KernelReport:
    return KernelReport(
        release=release, state=state, body=None, reason="", pending_reboot=False, pending_release=None, evidence=(), disagreements=()
    )


def summary(by_chain: dict[str, int], exit_code: int) -> Summary:
    return Summary(by_verdict={}, by_chain=by_chain, exit_code=exit_code)


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(jobs=JOBS, rules=RULES, version="1.2.3")


@pytest.fixture
def server(metrics: Metrics) -> Iterator[MetricsServer]:
    serving = metrics.serve("127.0.0.1:0")
    yield serving
    serving.close()


def test_every_known_series_is_there_from_the_start(metrics: Metrics) -> None:
    told = samples_of(metrics.text())
    zero = {key for key, amount in told.items() if amount == 0 and key[0].startswith("exitguard_")}
    expected = {("exitguard_job_runs_total", job, outcome) for job in JOBS for outcome in ("finished", "failed", "missed", "stopped")}
    expected |= {(f"exitguard_job_{what}", job) for job in JOBS for what in ("last_success_timestamp_seconds", "duration_seconds")}
    expected |= {("exitguard_findings", rule, verdict) for rule in RULES for verdict in Verdict}
    expected |= {("exitguard_domains", state) for state in ChainState}
    expected |= {("exitguard_reloads_total", outcome) for outcome in ("applied", "refused")}
    expected |= {
        (f"exitguard_{name}",)
        for name in (
            "last_observation_timestamp_seconds",
            "lifecycle_events_total",
            "pending_domains",
            "libvirt_connected",
            "libvirt_blocked_calls",
            "store_bytes",
            "store_dropped_total",
            "spool_records",
            "spool_bytes",
            "pushed_records_total",
            "push_refused_records_total",
            "last_push_timestamp_seconds",
        )
    }
    assert {(name, *sorted(labels_of(labels))) for name, labels in zero} == {(name, *sorted(labels)) for name, *labels in expected}


def labels_of(labels: frozenset[tuple[str, str]]) -> list[str]:
    return [text for _, text in labels]


def test_what_was_not_observed_is_not_claimed(metrics: Metrics) -> None:
    assert value(metrics, "exitguard_compliance_exit_code") == 3
    assert value(metrics, "exitguard_host_kernel_info", state="unknown", release="") == 1
    assert value(metrics, "exitguard_last_observation_timestamp_seconds") == 0


def test_this_process_tells_its_own_cost_and_version(metrics: Metrics) -> None:
    told = samples_of(metrics.text())
    assert told["exitguard_build_info", frozenset({("version", "1.2.3")})] == 1
    for name in (
        "exitguard_process_cpu_seconds_total",
        "exitguard_process_resident_memory_bytes",
        "exitguard_process_open_fds",
        "exitguard_process_start_time_seconds",
    ):
        assert told[name, frozenset()] > 0


def test_names_follow_prometheus_convention(metrics: Metrics) -> None:
    families = list(text_string_to_metric_families(metrics.text()))
    assert all(family.type in {"counter", "gauge"} and family.documentation for family in families)
    counters = {family.name for family in families if family.type == "counter"}
    assert {line.split()[2] for line in metrics.text().splitlines() if line.startswith("# TYPE") and line.endswith("_total counter")} == {
        f"{name}_total" for name in counters
    }
    assert not [sample.name for family in families for sample in family.samples if sample.name.endswith("_created")]


def test_promtool_has_nothing_to_say(metrics: Metrics, promtool: str) -> None:
    metrics.observed(summary({"effective": 3}, 0), kernel(KernelState.GUARDED, 'x"\n\\'), {(RULES[0], Verdict.PASS): 1}, NOW)
    checked = subprocess.run([promtool, "check", "metrics"], input=metrics.text(), capture_output=True, text=True, check=False, timeout=60)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_runs_of_jobs_are_counted_by_how_they_ended(metrics: Metrics) -> None:
    metrics.job_finished("audit", 0.41, NOW)
    metrics.job_finished("audit", 0.5, NOW)
    metrics.job_failed("audit")
    metrics.job_missed("samples")
    metrics.job_stopped("retention")
    told = {
        (dict(labels)["job"], dict(labels)["outcome"]): amount
        for (name, labels), amount in samples_of(metrics.text()).items()
        if name == "exitguard_job_runs_total" and amount
    }
    assert told == {("audit", "finished"): 2, ("audit", "failed"): 1, ("samples", "missed"): 1, ("retention", "stopped"): 1}
    assert value(metrics, "exitguard_job_duration_seconds", job="audit") == 0.5
    assert value(metrics, "exitguard_job_last_success_timestamp_seconds", job="audit") == NOW.timestamp()
    assert value(metrics, "exitguard_job_last_success_timestamp_seconds", job="samples") == 0


def test_job_that_is_not_known_makes_no_series(metrics: Metrics) -> None:
    before = samples_of(metrics.text()).keys()
    with pytest.raises(KeyError):
        metrics.job_failed("adit")
    with pytest.raises(KeyError):
        metrics.job_finished("adit", 1, NOW)
    assert samples_of(metrics.text()).keys() == before


def test_newest_report_replaces_the_one_before(metrics: Metrics) -> None:
    metrics.observed(
        summary({"effective": 3, "on": 1}, 2), kernel(KernelState.GUARDED, "6.1.0-1"), {("DOM-PMU-LIVE", Verdict.FAIL): 1}, NOW
    )
    before = samples_of(metrics.text()).keys()
    metrics.observed(summary({"effective": 4}, 0), kernel(KernelState.AFFECTED, "6.1.0-2"), {("DOM-PMU-LIVE", Verdict.PASS): 4}, NOW)
    told = samples_of(metrics.text())
    chain = {dict(labels)["chain_state"]: amount for (name, labels), amount in told.items() if name == "exitguard_domains" and amount}
    findings = {tuple(sorted(labels_of(labels))): amount for (name, labels), amount in told.items() if name == "exitguard_findings"}
    kernels = [dict(labels) for name, labels in told if name == "exitguard_host_kernel_info"]
    assert chain == {"effective": 4}
    assert findings["DOM-PMU-LIVE", "pass"] == 4
    assert sum(findings.values()) == 4
    assert kernels == [{"state": "affected", "release": "6.1.0-2"}]
    assert value(metrics, "exitguard_compliance_exit_code") == 0
    assert value(metrics, "exitguard_last_observation_timestamp_seconds") == NOW.timestamp()
    assert len(told) == len(before)


def test_savings_are_told_with_their_bounds_and_absent_where_unquantified(metrics: Metrics) -> None:
    metrics.booked(PerSecond(low=10.0, high=20.0), None, PerSecond(low=1.0, high=2.0))
    text = metrics.text()
    assert 'exitguard_saved_cycles_per_second{bound="low"} 10.0' in text
    assert 'exitguard_unquantified_skip_exits_per_second{bound="high"} 2.0' in text
    assert "exitguard_available_cycles_per_second{" not in text


def test_new_policy_brings_its_rules_and_takes_the_old_ones(metrics: Metrics) -> None:
    metrics.observed(summary({}, 2), kernel(KernelState.UNKNOWN, None), {("DOM-PMU-LIVE", Verdict.FAIL): 7}, NOW)
    metrics.policy_in_force(["DOM-PMU-LIVE", "SITE-RULE"])
    assert value(metrics, "exitguard_findings", rule="DOM-PMU-LIVE", verdict="fail") == 7
    assert value(metrics, "exitguard_findings", rule="SITE-RULE", verdict="fail") == 0
    assert value(metrics, "exitguard_findings", rule="HOST-KERNEL-GUARD", verdict="fail") is None


def test_events_connection_and_store_are_told(metrics: Metrics) -> None:
    metrics.events_seen()
    metrics.events_seen(4)
    metrics.pending(2)
    metrics.libvirt_connected()
    metrics.blocked_calls(1)
    metrics.store_size(4096)
    metrics.observation_dropped()
    told = {name: amount for (name, labels), amount in samples_of(metrics.text()).items() if not labels}
    names = (
        "lifecycle_events_total",
        "pending_domains",
        "libvirt_connected",
        "libvirt_blocked_calls",
        "store_bytes",
        "store_dropped_total",
    )
    assert [told[f"exitguard_{name}"] for name in names] == [5, 2, 1, 1, 4096, 1]
    metrics.libvirt_lost()
    assert value(metrics, "exitguard_libvirt_connected") == 0


def test_refused_reload_shows_until_one_is_applied(metrics: Metrics) -> None:
    assert value(metrics, "exitguard_last_reload_successful") == 1
    metrics.reload_refused()
    assert value(metrics, "exitguard_last_reload_successful") == 0
    metrics.reload_applied()
    assert value(metrics, "exitguard_last_reload_successful") == 1
    assert [value(metrics, "exitguard_reloads_total", outcome=outcome) for outcome in ("applied", "refused")] == [1, 1]


@pytest.mark.parametrize("hostile", ['a"} 1\nexitguard_pending_domains 9\n', "a\\", "\x1b[31m\0\u202e", "\udce9", "x" * 100_000, "{}#\r\n"])
def test_label_from_outside_stays_one_bounded_value(metrics: Metrics, hostile: str) -> None:
    before = samples_of(metrics.text()).keys()
    metrics.policy_in_force([*RULES, hostile])
    metrics.observed(summary({hostile: 5}, 0), kernel(KernelState.AFFECTED, hostile), {(hostile, Verdict.FAIL): 3}, NOW)
    text = metrics.text()
    told = samples_of(text)
    assert all(len(shown) <= 100 and shown.isprintable() for _, labels in told for shown in labels_of(labels))
    assert len(told) == len(before) + len(Verdict)
    assert max(map(len, text.splitlines())) < 500
    assert value(metrics, "exitguard_pending_domains") == 0
    assert [amount for (name, labels), amount in told.items() if name == "exitguard_findings" and amount] == [3]


def test_prometheus_client_is_imported_only_when_the_metrics_are_asked_for() -> None:
    script = """
import sys
from exitguard.daemon.metrics import Metrics
metrics = Metrics(jobs=["audit"], rules=["A"])
metrics.job_failed("audit")
assert "prometheus_client" not in sys.modules
assert "exitguard_job_runs_total" in metrics.text()
assert not {name.split(".")[0] for name in sys.modules} & {"rich", "typer", "alembic", "twisted", "sqlalchemy"}
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=120).returncode == 0


def test_textfile_is_readable_by_anybody_and_alone(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / "exitguard.prom"
    (tmp_path / ".exitguard.prom.new").write_text("left by a kill")
    umask = os.umask(0o077)
    try:
        metrics.write_textfile(path)
        metrics.job_failed("audit")
        metrics.write_textfile(path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert samples_of(path.read_text())["exitguard_job_runs_total", frozenset({("job", "audit"), ("outcome", "failed")})] == 1
    assert files_in(tmp_path) == ["exitguard.prom"]


def test_link_in_the_place_of_the_new_textfile_is_not_followed(metrics: Metrics, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / ".exitguard.prom.new").symlink_to(victim)
    metrics.write_textfile(tmp_path / "exitguard.prom")
    assert victim.read_text() == "untouched"
    assert not (tmp_path / "exitguard.prom").is_symlink()


def test_reader_of_the_textfile_never_sees_a_part(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / "exitguard.prom"
    metrics.write_textfile(path)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            metrics.write_textfile(path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert path.read_text().splitlines()[-1].startswith("exitguard_process_max_fds ")
    finally:
        done.set()
        writer.join()


def test_textfile_in_a_missing_directory_says_so(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "exitguard.prom"
    with pytest.raises(MetricsError, match=f"metrics_textfile: {path}: no such file or directory.*Create {path.parent}"):
        metrics.write_textfile(path)


def test_textfile_on_a_full_disk_leaves_the_old_one_and_nothing_else(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / "exitguard.prom"
    metrics.write_textfile(path)
    script = """
import resource, signal, sys
from pathlib import Path
from exitguard.daemon.metrics import Metrics, MetricsError
metrics = Metrics(jobs=["audit"], rules=["A"])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    metrics.write_textfile(Path(sys.argv[1]))
except MetricsError as error:
    print(error)
"""
    before = path.read_text()
    told = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, timeout=120).stdout
    assert f"metrics_textfile: {path}: file too large. Expected" in told
    assert f"`df -h {tmp_path}`" in told
    assert path.read_text() == before
    assert files_in(tmp_path) == ["exitguard.prom"]


def test_textfile_that_is_a_directory_says_so(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / "exitguard.prom"
    path.mkdir()
    with pytest.raises(MetricsError, match=r"is a directory.*Correct the path"):
        metrics.write_textfile(path)
    assert files_in(tmp_path) == ["exitguard.prom"]


def ask(server: MetricsServer, path: str = "/metrics", method: str = "GET") -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=DEADLINE_SECONDS)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def exchange(server: MetricsServer, request: bytes) -> bytes:
    """What the server answers to these bytes and their end."""
    with socket.create_connection((server.host, server.port), timeout=DEADLINE_SECONDS) as client:
        answer = b""
        with suppress(ConnectionError):  # it need not read all of it
            client.sendall(request)
        with suppress(ConnectionError):
            while piece := client.recv(65536):
                answer += piece
        return answer


def test_port_serves_the_metrics(metrics: Metrics, server: MetricsServer) -> None:
    metrics.pending(7)
    status, headers, body = ask(server)
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert samples_of(body)["exitguard_pending_domains", frozenset()] == 7
    assert samples_of(ask(server, "/metrics?name=x")[2]).keys() == samples_of(body).keys()


def test_ipv6_loopback_is_served(metrics: Metrics) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 loopback address")
    server = metrics.serve("[::1]:0")
    try:
        assert ask(server)[0] == 200
    finally:
        server.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/metrics/", 404), ("GET", "//metrics", 404), ("POST", "/metrics", 405), ("HEAD", "/metrics", 405)],
)
def test_nothing_else_is_served(server: MetricsServer, method: str, path: str, status: int) -> None:
    assert ask(server, path, method)[0] == status


@pytest.mark.parametrize(
    "request_bytes", [b"\x16\x03\x01\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics SPDY/3\r\n\r\n", b"\0" * 8192, b"\r\n\r\n"]
)
def test_what_is_no_request_is_refused(server: MetricsServer, request_bytes: bytes) -> None:
    assert exchange(server, request_bytes).startswith(b"HTTP/1.1 400 ")
    assert ask(server)[0] == 200


def test_endless_head_is_cut(server: MetricsServer) -> None:
    answer = exchange(server, b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 1_000_000)
    assert b"200 OK" not in answer
    assert ask(server)[0] == 200


def test_client_that_says_nothing_delays_the_next_one_only(server: MetricsServer) -> None:
    with socket.create_connection((server.host, server.port)), socket.create_connection((server.host, server.port)):
        assert ask(server)[0] == 200


def test_client_that_drips_is_cut_off(server: MetricsServer) -> None:
    cut_off = threading.Event()

    def drip() -> None:
        with socket.create_connection((server.host, server.port)) as client:
            deadline = time.monotonic() + DEADLINE_SECONDS
            with suppress(OSError):
                while time.monotonic() < deadline:
                    client.sendall(b"G")
                    time.sleep(0.05)
                return
            cut_off.set()

    dripping = threading.Thread(target=drip)
    dripping.start()
    assert ask(server)[0] == 200
    dripping.join(DEADLINE_SECONDS)
    assert cut_off.is_set()


def test_client_that_does_not_read_is_cut_off() -> None:
    class Wordy(Metrics):
        def text(self) -> str:
            return "# more than any socket holds\n" * 2_000_000

    wordy = Wordy(jobs=JOBS, rules=RULES).serve("127.0.0.1:0")
    try:
        with socket.create_connection((wordy.host, wordy.port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert ask(wordy, "/other")[0] == 404
    finally:
        wordy.close()


def test_one_broken_answer_is_not_the_last(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Metrics):
        broken = True

        def text(self) -> str:
            if self.broken:
                raise ValueError("a fault of ours")
            return super().text()

    metrics = Broken(jobs=JOBS, rules=RULES)
    server = metrics.serve("127.0.0.1:0")
    try:
        assert exchange(server, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        metrics.broken = False
        assert ask(server)[0] == 200
    finally:
        server.close()
    assert "metrics.request_failed" in caplog.text + "".join(capsys.readouterr())


def test_no_client_adds_a_thread_or_a_descriptor(server: MetricsServer) -> None:
    threads, descriptors = threading.active_count(), len(files_in(Path("/proc/self/fd")))
    clients = [socket.create_connection((server.host, server.port)) for _ in range(4)]
    assert threading.active_count() == threads
    for client in clients:
        client.close()
    for _ in range(50):
        assert ask(server)[0] == 200
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(files_in(Path("/proc/self/fd"))) > descriptors and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(files_in(Path("/proc/self/fd"))) == descriptors


def test_closed_server_frees_its_port_and_its_thread(metrics: Metrics) -> None:
    server = metrics.serve("127.0.0.1:0")
    with socket.create_connection((server.host, server.port)):  # that it is being served must not hold it up
        server.close()
    assert "metrics" not in [thread.name for thread in threading.enumerate()]
    again = metrics.serve(f"127.0.0.1:{server.port}")
    assert ask(again)[0] == 200
    again.close()
    again.close()


@pytest.mark.parametrize(
    "listen",
    [
        "0.0.0.0:9478",
        "192.0.2.1:9478",
        "128.0.0.1:9478",
        "[::]:9478",
        "[::ffff:127.0.0.1]:9478",
        "[fe80::1]:9478",
        "::1:9478",
        "localhost:9478",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.999:1",
        "127.0.0.1:\u0661",
        ":9478",
        "unix:/run/x",
        "",
    ],
)
def test_only_loopback_addresses_are_served(metrics: Metrics, listen: str) -> None:
    with pytest.raises(
        MetricsError, match=r"metrics_listen: .*Expected a loopback address in digits and a port, such as 127\.0\.0\.1:9478"
    ):
        metrics.serve(listen)


def test_port_that_is_taken_is_named_with_a_way_out(metrics: Metrics, server: MetricsServer) -> None:
    listen = f"127.0.0.1:{server.port}"
    with pytest.raises(
        MetricsError, match=f"metrics_listen: {listen}: address already in use.*ss -ltnp 'sport = :{server.port}'"
    ) as caught:
        metrics.serve(listen)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "Choose a port of 1024 or above"),
        (errno.EADDRNOTAVAIL, "Use 127.0.0.1 where IPv6 is off"),
        (errno.EAFNOSUPPORT, "RestrictAddressFamilies="),
        (errno.EMFILE, "or use metrics_textfile"),
    ],
)
def test_what_the_kernel_refuses_to_serve_has_a_way_out(number: int, remedy: str) -> None:
    told = _explain_bind(OSError(number, os.strerror(number)), "[::1]:80", 80)
    assert told.startswith(f"metrics_listen: [::1]:80: {os.strerror(number).lower()}. Expected a loopback address")
    assert remedy in told


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EROFS, "ReadWritePaths="),
        (errno.EACCES, "Let the user of the agent write to /var/lib/metrics"),
        (errno.ENOSPC, "`df -h /var/lib/metrics`"),
        (errno.ENOTDIR, "Create /var/lib/metrics"),
        (errno.EIO, "or remove the setting"),
    ],
)
def test_what_the_kernel_refuses_to_write_has_a_way_out(number: int, remedy: str) -> None:
    told = _explain_textfile(OSError(number, os.strerror(number)), Path("/var/lib/metrics/exitguard.prom"))
    assert told.startswith(f"metrics_textfile: /var/lib/metrics/exitguard.prom: {os.strerror(number).lower()}. Expected a directory")
    assert remedy in told
