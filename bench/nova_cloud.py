"""A cloud made up from one that was recorded: the pages of its API and the facts of its compute hosts, as files.

recorded_cloud.json holds one member of every listing as Nova 26.2.2 and Glance answered, and the facts of the host that ran the instance.
What is varied from instance to instance is what decides its PMU; everything else is as it was recorded.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid5

_RECORDED = json.loads((Path(__file__).parent / "recorded_cloud.json").read_text())
_NAMESPACE = UUID("6f0f7d0e-52c4-4b3e-9c58-7f5f8f4f1a10")
_PAGE = 1_000  # Nova's own limit (api.max_limit)
_IMAGES_PAGE = 500
_IMAGES, _PROJECTS, _ZONES, _AGGREGATES = 200, 400, 4, 20
_KVM = (("host-passthrough", "host"), ("custom", "EPYC"))
#: What a flavor or an image says, by its share in percent: most say nothing.
_FLAVOR_SAYS = (("", 60), ("false", 30), ("true", 10))
_IMAGE_SAYS = (("", 92), ("false", 6), ("true", 2))
_STATUS = (("ACTIVE", 92), ("SHUTOFF", 6), ("SHELVED_OFFLOADED", 1), ("ERROR", 1))
#: Of the running ones: what somebody edited in the definition, in percent.
_EDITED_PERCENT = 1
#: Every fourth host has a Nova whose metadata holds extra specs and image properties.
_NEWER_NOVA = "32.0.0"

Json = dict[str, Any]


@dataclass(frozen=True)
class _Instance:
    number: int
    host: int
    flavor: int
    image: int
    status: str
    edited: bool

    @property
    def uuid(self) -> str:
        return _id("instance", self.number)

    @property
    def has_domain(self) -> bool:
        return self.status not in ("SHELVED_OFFLOADED", "ERROR")


@dataclass(frozen=True)
class Sizes:
    instances: int = 100_000
    flavors: int = 500
    hosts: int = 2_000


def write_cloud(folder: Path, sizes: Sizes) -> None:
    """`folder` with one file a page, called LISTING-NUMBER.json, and one a host, called hosts/NUMBER.json."""
    random = Random(100_000)  # noqa: S311 - the same cloud each time, no secret
    flavors = [_draw(random, _FLAVOR_SAYS) for _ in range(sizes.flavors)]
    images = [_draw(random, _IMAGE_SAYS) for _ in range(_IMAGES)]
    instances = [_instance(random, number, sizes, flavors, images) for number in range(sizes.instances)]
    by_host: list[list[_Instance]] = [[] for _ in range(sizes.hosts)]
    for instance in instances:
        by_host[instance.host].append(instance)
    _write_pages(folder, "flavors", (_flavor(number, says) for number, says in enumerate(flavors)), _PAGE)
    _write_pages(folder, "images", (_image(number, says) for number, says in enumerate(images)), _IMAGES_PAGE)
    _write_pages(folder, "servers", (_server(each, flavors[each.flavor]) for each in instances), _PAGE)
    _write_pages(folder, "services", (_service(host) for host in range(sizes.hosts)), sizes.hosts)
    _write_pages(folder, "hypervisors", (_hypervisor(host, by_host[host]) for host in range(sizes.hosts)), _PAGE)
    _write_pages(folder, "aggregates", (_aggregate(number, sizes.hosts) for number in range(_AGGREGATES)), _AGGREGATES)
    (folder / "hosts").mkdir()
    for host, here in enumerate(by_host):
        document = _facts(host, [_domain(each, flavors[each.flavor], images[each.image]) for each in here if each.has_domain])
        (folder / "hosts" / f"{host:05}.json").write_text(json.dumps(document))


def pages(folder: Path, listing: str) -> list[Path]:
    """The files of one listing, in order."""
    return sorted(folder.glob(f"{listing}-*.json"))


def _write_pages(folder: Path, listing: str, members: Iterator[Json], size: int) -> None:
    page: list[Json] = []
    number = 0
    for member in members:
        page.append(member)
        if len(page) == size:
            (folder / f"{listing}-{number:05}.json").write_text(json.dumps({listing: page, **_link(listing, size, member)}))
            page, number = [], number + 1
    (folder / f"{listing}-{number:05}.json").write_text(json.dumps({listing: page}))


def _link(listing: str, size: int, last: Json) -> Json:
    """To the next page, as Nova and Glance each write it."""
    if listing == "images":
        return {"next": f"/v2/images?limit={size}&marker={last['id']}"}
    return {f"{listing}_links": [{"rel": "next", "href": f"http://127.0.0.1:8774/v2.1/{listing}/detail?limit={size}&marker={last['id']}"}]}


def _instance(random: Random, number: int, sizes: Sizes, flavors: list[str], images: list[str]) -> _Instance:
    flavor, image = random.randrange(sizes.flavors), random.randrange(_IMAGES)
    # What Nova refuses to start stays in ERROR, on no host.
    refused = bool(flavors[flavor]) and bool(images[image]) and flavors[flavor] != images[image]
    status = "ERROR" if refused else _draw(random, _STATUS)
    edited = status == "ACTIVE" and random.randrange(100) < _EDITED_PERCENT
    return _Instance(number, number % sizes.hosts, flavor, image, status, edited)


def _draw(random: Random, shares: tuple[tuple[str, int], ...]) -> str:
    return random.choices([name for name, _ in shares], [share for _, share in shares])[0]


def _id(kind: str, number: int) -> str:
    return str(uuid5(_NAMESPACE, f"{kind} {number}"))


def _project(instance: _Instance) -> str:
    return UUID(_id("project", instance.number % _PROJECTS)).hex


def _host(number: int) -> str:
    return f"compute-{number:05}"


def _zone(host: int) -> str:
    return f"zone-{host % _ZONES}"


def _flavor(number: int, says: str) -> Json:
    specs = {"hw:cpu_policy": "shared"} | ({"hw:pmu": says} if says else {})
    return {**_RECORDED["flavor"], "id": _id("flavor", number), "name": f"m1.size-{number}", "extra_specs": specs}


def _image(number: int, says: str) -> Json:
    image = {**_RECORDED["image"], "id": _id("image", number), "name": f"image-{number}"}
    return {**image, "hw_pmu": says} if says else image


def _server(instance: _Instance, says: str) -> Json:
    server = _RECORDED["server"]
    specs = {"hw:cpu_policy": "shared"} | ({"hw:pmu": says} if says else {})
    placed = instance.has_domain
    return {
        **server,
        "id": instance.uuid,
        "name": f"customer-web-{instance.number}",
        "status": instance.status,
        "tenant_id": _project(instance),
        "image": {**server["image"], "id": _id("image", instance.image)},
        "flavor": {**server["flavor"], "original_name": f"m1.size-{instance.flavor}", "extra_specs": specs},
        "OS-EXT-AZ:availability_zone": _zone(instance.host),
        "OS-EXT-SRV-ATTR:host": _host(instance.host) if placed else None,
        "OS-EXT-SRV-ATTR:hypervisor_hostname": _host(instance.host) if placed else None,
        "OS-EXT-SRV-ATTR:instance_name": f"instance-{instance.number:08x}",
    }


def _service(host: int) -> Json:
    return {**_RECORDED["service"], "id": _id("service", host), "host": _host(host), "zone": _zone(host)}


def _hypervisor(host: int, instances: list[_Instance]) -> Json:
    recorded = _RECORDED["hypervisor"]
    servers = [{"name": f"instance-{each.number:08x}", "uuid": each.uuid} for each in instances if each.has_domain]
    service = {**recorded["service"], "id": _id("service", host), "host": _host(host)}
    return {**recorded, "id": _id("hypervisor", host), "hypervisor_hostname": _host(host), "service": service, "servers": servers}


def _aggregate(number: int, hosts: int) -> Json:
    within = [_host(host) for host in range(hosts) if host % _AGGREGATES == number]
    zone = _zone(number)
    recorded = _RECORDED["aggregate"]
    return {**recorded, "id": number, "name": f"rack-{number}", "hosts": within, "availability_zone": zone}


def _facts(host: int, domains: list[Json]) -> Json:
    document: Json = deepcopy(_RECORDED["facts"])
    document["host"]["identity"]["id"] = _id("host", host)
    document["host"]["identity"]["hostname"]["value"] = _host(host)
    return {**document, "domains": sorted(domains, key=lambda domain: domain["uuid"])}


def _domain(instance: _Instance, flavor_says: str, image_says: str) -> Json:
    """What libvirt and the process show of it: Nova wrote what flavor or image say; somebody may have edited the definition since."""
    mode, model = _KVM[instance.number % len(_KVM)]
    wrote = {"": "absent", "false": "off", "true": "on"}[flavor_says or image_says]
    running = instance.status == "ACTIVE"
    domain: Json = deepcopy(_RECORDED["facts"]["domains"][0])
    domain |= {"uuid": instance.uuid, "name": f"instance-{instance.number:08x}"}
    for part in ("definition", "run"):
        domain[part]["value"] |= {"type": "kvm", "cpu_mode": mode, "cpu_model": None if mode == "host-passthrough" else model, "pmu": wrote}
    if instance.edited:
        domain["definition"]["value"]["pmu"] = "off" if wrote == "absent" else "absent"
    newer = instance.host % 4 == 0
    domain["owner"]["name"] = f"Nova {_NEWER_NOVA if newer else domain['nova']['version']}"
    domain["nova"] |= {
        "name": f"customer-web-{instance.number}",
        "flavor": f"m1.size-{instance.flavor}",
        "project": _project(instance),
        "image": _id("image", instance.image),
    }
    if newer:
        said = {"flavor_hw_pmu": flavor_says, "image_hw_pmu": image_says.title(), "flavor_id": _id("flavor", instance.flavor)}
        domain["nova"] |= {"version": _NEWER_NOVA, **said}
    domain["process"]["value"]["cpu"]["value"] = {"model": model, "pmu": wrote}
    domain["process"]["value"]["accelerator"]["value"] = "kvm"
    if not running:
        domain["active"]["value"] = False
        domain |= {"run": None, "process": None, "started_as_generated": None}
    return domain
