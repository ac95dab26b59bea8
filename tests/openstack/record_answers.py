"""Write down what a real cloud answers, for the tests that have none: `record_answers.py TARGET`, with the variables of running_cloud.py.

TARGET is laid out as tests/facts. Below openstack/: one folder a user and microversion, one file a request:

    {"request": {"user", "method", "service", "path", "microversion"}, "answer": {"status", "headers", "body"}}

Few headers are kept and the token's answer is not recorded, so no credential is in them. Below domain_xml/: what libvirt holds; its
expected.json is then made by the parser and read by a person.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openstack.connection import Connection
from running_cloud import ADMINISTRATOR, MEMBER, MICROVERSION, READER, cloud_of_environment
from zoo import EIGHT, REAL_COMPUTE, STRANGE, RefusedByNovaError, Specimen, Zoo, make_strange_parts, open_zoo

PREFIX = "a-"
_KEPT_HEADERS = ("OpenStack-API-Version", "Retry-After", "WWW-Authenticate")
#: What a listing takes, by name. A service of the catalogue, and a path below its endpoint.
LISTINGS = {
    "flavors": ("compute", "/flavors/detail?is_public=None"),
    "servers-of-all-projects": ("compute", "/servers/detail?all_tenants=1"),
    "servers": ("compute", "/servers/detail"),
    "services": ("compute", "/os-services?binary=nova-compute"),
    "hypervisors": ("compute", "/os-hypervisors/detail?with_servers=true"),
    "aggregates": ("compute", "/os-aggregates"),
    "images": ("image", "/v2/images"),
}
#: Listings whose pages are followed by their links.
PAGED = {
    "flavors-page": ("compute", "/flavors/detail?is_public=None&limit=2"),
    "servers-page": ("compute", "/servers/detail?all_tenants=1&limit=3"),
    "hypervisors-page": ("compute", "/os-hypervisors/detail?with_servers=true&limit=1"),
    "images-page": ("image", "/v2/images?limit=2"),
}
_MOST_PAGES = 20
VERSIONS = {"nova": "26.2.2", "glance": "25.1.0", "keystone": "22.0.2", "placement": "8.0.0"}
#: Instances whose XML says something that no other recorded XML says.
_DOMAINS = {
    "edited": "an instance whose flavor and image are silent, and whose definition was edited by virsh while it ran",
    "remedied": "an instance of a silent flavor and image, after nova-manage image_property set hw_pmu=false and a start",
    "markup": "an instance whose name holds markup",
}
_INSTANCES_PATH = re.compile(r"'/[^']*/instances/")


@dataclass(frozen=True)
class Visitor:
    """Who asks."""

    user: str
    connection: Connection
    #: Sent instead of a good one.
    token: str | None = None


def asked(visitor: Visitor, service: str, path: str, microversion: str) -> dict[str, Any]:
    """One request and its answer, whatever its status."""
    connection = visitor.connection
    endpoint = endpoint_of(connection, service)
    # A path such as Glance's /v2/images stands below the host, one of Nova's below the endpoint with its version.
    address = path if "://" in path else f"{endpoint.rstrip('/')}{path}"
    headers = {"Accept": "application/json"}
    if service == "compute" and microversion:
        headers["OpenStack-API-Version"] = f"compute {microversion}"
    if visitor.token is not None:
        headers["X-Auth-Token"] = visitor.token
    answer = connection.session.request(address, "GET", headers=headers, raise_exc=False, authenticated=visitor.token is None)
    try:
        body = answer.json()
    except ValueError:
        body = answer.text
    parts = urlsplit(address)
    return {
        "request": {
            "user": visitor.user,
            "method": "GET",
            "service": service,
            "path": parts.path + (f"?{parts.query}" if parts.query else ""),
            "microversion": microversion,
        },
        "answer": {
            "status": answer.status_code,
            "headers": {name: answer.headers[name] for name in _KEPT_HEADERS if name in answer.headers},
            "body": body,
        },
    }


def endpoint_of(connection: Connection, service: str) -> str:
    """Where the catalogue says that a service is."""
    return str(connection.session.get_endpoint(service_type=service, interface="public", region_name=connection.config.region_name))


def next_address(body: Any) -> str | None:
    """Where the next page is: Nova's `<what>_links`, Glance's `next`; None at the last one."""
    if not isinstance(body, dict):
        return None
    for name, links in body.items():
        if name.endswith("_links"):
            return next((link["href"] for link in links if link["rel"] == "next"), None)
    return body.get("next")


def paged(visitor: Visitor, service: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each page with its number, until there is no next one."""
    address: str | None = path
    for number in range(1, _MOST_PAGES):
        if address is None:
            return
        record = asked(visitor, service, address, MICROVERSION)
        yield number, record
        address = next_address(record["answer"]["body"])


class Recorder:
    """Folders of records below a target."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def write(self, case: str, name: str, record: dict[str, Any]) -> None:
        folder = self._target / case
        if not folder.exists():
            folder.mkdir(parents=True)
            write_origin(folder, "tests/openstack/record_answers.py", VERSIONS, _NOTES[case.split("-", maxsplit=1)[0]])
        (folder / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=True) + "\n")


_NOTES = {
    "administrator": "the answers of a real cloud of one libvirt and one fake compute, as an administrator",
    "member": "the same cloud, as a member of the project that most instances are in",
    "reader": "the same cloud, as a reader of the project that most instances are in",
    "faults": "what the same cloud refuses, and how",
}


def record_user(recorder: Recorder, visitor: Visitor, case: str) -> None:
    for name, (service, path) in LISTINGS.items():
        recorder.write(case, name, asked(visitor, service, path, MICROVERSION))


def record_administrator(recorder: Recorder, zoo: Zoo) -> None:
    visitor = Visitor(ADMINISTRATOR, zoo.administrator)
    case = f"administrator-{MICROVERSION}"
    record_user(recorder, visitor, case)
    endpoint = urlsplit(endpoint_of(zoo.administrator, "compute"))
    root = f"{endpoint.scheme}://{endpoint.netloc}"
    recorder.write(case, "versions", asked(visitor, "compute", f"{root}/", ""))
    recorder.write(case, "version", asked(visitor, "compute", f"{root}/v2.1/", ""))
    for name, (service, path) in PAGED.items():
        for number, record in paged(visitor, service, path):
            recorder.write(case, f"{name}-{number}", record)
    for name in ("no-valid-host", "remedied"):
        actions = asked(visitor, "compute", f"/servers/{zoo.servers[name]}/os-instance-actions", MICROVERSION)
        recorder.write(case, f"actions-{name}", actions)
        first = actions["answer"]["body"]["instanceActions"][0]["request_id"]
        path = f"/servers/{zoo.servers[name]}/os-instance-actions/{first}"
        recorder.write(case, f"action-{name}", asked(visitor, "compute", path, MICROVERSION))
    for microversion in ("2.1", "2.46", "2.47", "2.52", "2.60", "2.61"):
        older = f"administrator-{microversion}"
        for name in ("flavors", "hypervisors", "services"):
            recorder.write(older, name, asked(visitor, *LISTINGS[name], microversion))
        limited = "/servers/detail?all_tenants=1&limit=2"
        recorder.write(older, "servers", asked(visitor, "compute", limited, microversion))


def record_faults(recorder: Recorder, zoo: Zoo) -> None:
    visitor = Visitor(ADMINISTRATOR, zoo.administrator)
    for name, path, microversion in (
        ("microversion-too-high", "/servers/detail", "2.99"),
        ("microversion-malformed", "/servers/detail", "zed"),
        ("marker-unknown", "/servers/detail?all_tenants=1&marker=00000000-0000-4000-8000-000000000000", MICROVERSION),
        ("limit-of-no-number", "/servers/detail?limit=many", MICROVERSION),
        ("server-unknown", "/servers/00000000-0000-4000-8000-000000000000", MICROVERSION),
        ("flavor-gone", "/flavors/00000000-0000-4000-8000-000000000000", MICROVERSION),
    ):
        recorder.write("faults", name, asked(visitor, "compute", path, microversion))
    forgotten = Visitor(ADMINISTRATOR, zoo.administrator, token="no-longer-valid")  # noqa: S106
    for name, service in (("token-no-longer-valid", "compute"), ("token-no-longer-valid-image", "image")):
        path = LISTINGS["servers" if service == "compute" else "images"][1]
        recorder.write("faults", name, asked(forgotten, service, path, MICROVERSION))
    recorder.write("faults", "conflict-at-boot", refused_order(zoo, Specimen("conflict", flavor="on", image="off")))


def refused_order(zoo: Zoo, specimen: Specimen) -> dict[str, Any]:
    """How Nova refuses an instance whose flavor and image contradict each other."""
    try:
        zoo.order(specimen)
    except RefusedByNovaError as refusal:
        request = {"user": MEMBER, "method": "POST", "service": "compute", "path": "/v2.1/servers", "microversion": MICROVERSION}
        return {"request": request, "answer": {"status": refusal.status, "headers": {}, "body": json.loads(str(refusal).split(": ", 1)[1])}}
    raise AssertionError("Nova took an instance whose flavor says on and whose image says off")


def make_aggregates(zoo: Zoo) -> None:
    compute = zoo.administrator.compute
    quiet = compute.create_aggregate(name=f"{PREFIX}quiet")
    compute.add_host_to_aggregate(quiet, REAL_COMPUTE)
    # A zone of its own and no host: a host with instances cannot change its zone.
    compute.create_aggregate(name=f"{PREFIX}empty", availability_zone=f"{PREFIX}zone")


def main(target: Path) -> None:
    cloud = cloud_of_environment()
    zoo = open_zoo(cloud, PREFIX)
    try:
        make_strange_parts(zoo)
        make_aggregates(zoo)
        zoo.populate(EIGHT + STRANGE)
        recorder = Recorder(target / "openstack")
        record_administrator(recorder, zoo)
        record_user(recorder, Visitor(MEMBER, cloud.connect(MEMBER)), f"member-{MICROVERSION}")
        record_user(recorder, Visitor(READER, cloud.connect(READER)), f"reader-{MICROVERSION}")
        record_faults(recorder, zoo)
        record_domains(target / "domain_xml", zoo)
    finally:
        zoo.clear()


def record_domains(target: Path, zoo: Zoo) -> None:
    """What libvirt holds of some instances: of the run, and of the definition."""
    for name, note in _DOMAINS.items():
        for words, suffix in (("virsh dumpxml", ""), ("virsh dumpxml --inactive", "-inactive")):
            case = target / f"nova-{VERSIONS['nova']}-{name}{suffix}"
            case.mkdir(parents=True, exist_ok=True)
            xml = zoo.cloud.domain_xml(zoo.servers[name], inactive=bool(suffix))
            (case / "input").write_text(_INSTANCES_PATH.sub(r"'/var/lib/nova/instances/", xml))
            versions = {"nova": VERSIONS["nova"], **hypervisor_versions(zoo)}
            write_origin(case, f"{words} DOMAIN", versions, f"{note}; paths are those of an installed Nova")


def hypervisor_versions(zoo: Zoo) -> dict[str, str]:
    """Of libvirt and QEMU, as virsh tells them."""
    told = zoo.cloud.virsh("version")
    return {name.lower(): version for name, version in re.findall(r"(?:library|hypervisor): (libvirt|QEMU) (\S+)", told)}


def write_origin(case: Path, command: str, versions: dict[str, str], note: str) -> None:
    told = ", ".join(f"{name}: {version}" for name, version in versions.items())
    (case / "origin.yaml").write_text(f"command: {command}\nversions: {{{told}}}\ndate: {datetime.now(UTC).date()}\nnote: {note}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
