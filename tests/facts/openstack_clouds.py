"""Clouds on the loopback for the tests of facts/openstack: a small whole one, and recorded ones."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fake_openstack import Answer, FakeOpenStack, Query, fake_openstack

from exitguard.facts.openstack import CloudRequest, read_cloud
from exitguard.model.cloud import CloudFacts

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
QUICK = CloudRequest(timeout_seconds=20.0, requests_per_second=1000, retry_pause_seconds=0.01)
LISTINGS = {
    "flavors": "/v2.1/flavors/detail",
    "images": "/image/v2/images",
    "servers": "/v2.1/servers/detail",
    "services": "/v2.1/os-services",
    "hypervisors": "/v2.1/os-hypervisors/detail",
    "aggregates": "/v2.1/os-aggregates",
}
_RECORDED = Path(__file__).parent / "openstack"


def server(number: int, **other: Any) -> dict[str, Any]:
    """As Nova 26.2.2 shows one at microversion 2.93, without what is not read."""
    return {
        "id": f"00000000-0000-4000-8000-{number:012}",
        "name": f"vm-{number}",
        "tenant_id": "p",
        "status": "ACTIVE",
        "created": "2026-11-23T07:16:04Z",
        "OS-SRV-USG:launched_at": "2026-11-23T07:16:06.000000",
        "locked": False,
        "flavor": {"original_name": "small", "extra_specs": {"hw:pmu": "false"}, "vcpus": 1},
        "image": {"id": "debian", "links": []},
        "OS-EXT-AZ:availability_zone": "nova",
        "OS-EXT-SRV-ATTR:host": "compute-a",
        "OS-EXT-SRV-ATTR:hypervisor_hostname": "compute-a.example",
        "OS-EXT-SRV-ATTR:instance_name": f"instance-{number:08x}",
        "OS-EXT-STS:task_state": None,
    } | other


def whole() -> dict[str, Any]:
    """An answer for each listing, with one item in it."""
    flavor = {"id": "1", "name": "small", "extra_specs": {"hw:pmu": "false"}, "os-flavor-access:is_public": True}
    image = {"id": "debian", "name": "Debian", "visibility": "public", "owner": "o", "hw_pmu": "true", "updated_at": "2026-11-23T07:15:43Z"}
    service = {"id": "s", "binary": "nova-compute", "host": "compute-a", "zone": "nova", "status": "enabled", "state": "up"}
    hypervisor = {
        "id": "h",
        "hypervisor_hostname": "compute-a.example",
        "hypervisor_type": "QEMU",
        "service": {"id": "s", "host": "compute-a"},
        "servers": [{"uuid": server(1)["id"], "name": "instance-00000001"}],
    }
    return {
        LISTINGS["flavors"]: {"flavors": [flavor]},
        LISTINGS["images"]: {"images": [image], "first": "/v2/images", "schema": "/v2/schemas/images"},
        LISTINGS["servers"]: {"servers": [server(1)]},
        LISTINGS["services"]: {"services": [service]},
        LISTINGS["hypervisors"]: {"hypervisors": [hypervisor]},
        LISTINGS["aggregates"]: {"aggregates": [{"id": 1, "name": "rack-1", "hosts": ["compute-a"], "availability_zone": None}]},
    }


@contextmanager
def whole_cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenStack]:
    """A cloud of which everything is seen; the OS_ variables lead to it."""
    with fake_openstack() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("OS_CLOUD", raising=False)
        running.answers.update(whole())
        yield running


def recording(case: str, name: str) -> dict[str, Any]:
    """One request with its answer, of tests/facts/openstack."""
    found: dict[str, Any] = json.loads((_RECORDED / case / f"{name}.json").read_text())
    return found


def play(cloud: FakeOpenStack, case: str, *names: str) -> None:
    """Have the cloud answer what was recorded: by marker where pages were, and for all projects apart from the own one."""
    by_path: dict[str, dict[tuple[str | None, bool], Answer]] = {}
    for name in names:
        found = recording(case, name)
        where = urlsplit(found["request"]["path"])
        query = parse_qs(where.query)
        path = where.path if found["request"]["service"] == "compute" else f"/image{where.path}"
        answer = Answer(found["answer"]["body"], found["answer"]["status"])
        by_path.setdefault(path, {})[query.get("marker", [None])[0], "all_tenants" in query] = answer

    for path, answers in by_path.items():

        def replay(_path: str, query: Query, answers: dict[tuple[str | None, bool], Answer] = answers) -> Answer | None:
            return answers.get((query.get("marker", [None])[0], "all_tenants" in query))

        cloud.answers[path] = replay


def facts(request: CloudRequest = QUICK) -> CloudFacts:
    return read_cloud(request, NOW)


def seen_listings(found: CloudFacts) -> set[str]:
    return {name for name in LISTINGS if getattr(found, name).known}
