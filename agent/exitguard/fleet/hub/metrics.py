"""What the hub counts, for Prometheus. None is labelled by host: routes, statuses and words are few."""

from exitguard import __version__

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class HubMetrics:
    """Any thread may count. Of this process alone: Prometheus adds replicas up."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        build = Gauge("exitguard_hub_build_info", "The version of this program.", ["version"], registry=self._registry)
        build.labels(__version__).set(1)
        self._requests = Counter("exitguard_hub_requests", "Requests by route and status.", ["route", "status"], registry=self._registry)
        self._refused = Counter("exitguard_hub_refused", "Requests that were refused, by why.", ["error"], registry=self._registry)
        self._seconds = Histogram(
            "exitguard_hub_request_seconds",
            "How long requests took, the sending of their answers not counted.",
            ["route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=self._registry,
        )
        self._bytes = Counter("exitguard_hub_received_bytes", "What came as bodies of requests, packed.", registry=self._registry)

    def answered(self, route: str, status: int, seconds: float, received_bytes: int) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._bytes.inc(received_bytes)

    def refused(self, error: str) -> None:
        self._refused.labels(error).inc()

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
