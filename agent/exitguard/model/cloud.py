"""What is observed of one OpenStack cloud through its API: flavors, images, servers and the hosts that run them.

A property's text is kept as it is stored: "" where its owner was shown and says nothing, None where it was not shown. What a role may
not see is a reason with the policy's name, never an empty list.
"""

from functools import cached_property
from typing import Literal

from pydantic import Field

from exitguard.model.canonical import record_hash
from exitguard.model.documents import Tool
from exitguard.model.record import Observed, Record
from exitguard.model.time import UtcTime


class CloudIdentity(Record):
    """Which cloud it is. The id is derived from where its compute API is, so that one cloud under two names is one."""

    id: str
    #: Its name in clouds.yaml; `envvars` where the environment describes it.
    name: str
    region: str | None
    #: The microversion of the compute API that was spoken, and the highest that it offers.
    microversion: str
    microversion_offered: str


class Flavor(Record):
    """A flavor of today. Instances keep a copy of theirs, and never see a later change of it."""

    id: str
    name: str
    #: `hw:pmu` of its extra specs.
    hw_pmu: str | None
    is_public: bool


class Image(Record):
    """An image of today. Instances keep a copy of its properties, and never see a later change of them."""

    id: str
    name: str
    #: `hw_pmu` of its properties.
    hw_pmu: str | None
    #: public, community, shared or private.
    visibility: str
    owner: str | None
    created_at: str | None
    updated_at: str | None


class Server(Record):
    """An instance as Nova tells of it. Names are the tenant's words."""

    uuid: str
    name: str
    project: str
    #: ACTIVE, SHUTOFF, ERROR, BUILD, VERIFY_RESIZE, SHELVED_OFFLOADED ...
    status: str
    #: What Nova is doing with it; None where it is doing nothing.
    task_state: str | None
    #: Nova's lock; None where it was not shown.
    locked: bool | None
    created_at: str | None
    #: When Nova last made its disk: at first, by a rebuild, by a resize, when it was unshelved. Stops, starts and reboots leave it.
    launched_at: str | None = None
    #: Name of the flavor that it was made or resized with, and that copy's `hw:pmu`: Nova builds the next XML from it.
    flavor: str
    flavor_hw_pmu: str | None
    #: Id of its image; None for one that boots from a volume.
    image: str | None
    #: `hw_pmu` of its own stored image properties; None before microversion 2.98, which does not show them.
    image_hw_pmu: str | None
    zone: str | None
    #: Its compute host, that host's name as hypervisor, and its domain's name in libvirt; None where only an administrator may see them.
    host: str | None
    hypervisor_hostname: str | None
    domain_name: str | None


class ComputeService(Record):
    """One nova-compute."""

    id: str
    host: str
    zone: str | None
    #: enabled or disabled, and up or down.
    status: str
    state: str
    disabled_reason: str | None


class Hypervisor(Record):
    """What a nova-compute drives, and the instances that it says it has."""

    id: str
    hostname: str
    #: The host of its service.
    host: str
    type: str
    servers: tuple[str, ...]


class Aggregate(Record):
    """Hosts under one name, chosen by an operator."""

    name: str
    zone: str | None
    hosts: tuple[str, ...]


class CloudFacts(Record):
    """Everything that was observed of one cloud at one time."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    observed_at: UtcTime
    cloud: CloudIdentity
    #: Whether the servers are those of the whole cloud, or of the credentials' own project only.
    scope: Literal["cloud", "project"] = "cloud"
    flavors: Observed[tuple[Flavor, ...]]
    images: Observed[tuple[Image, ...]]
    servers: Observed[tuple[Server, ...]]
    services: Observed[tuple[ComputeService, ...]]
    hypervisors: Observed[tuple[Hypervisor, ...]]
    aggregates: Observed[tuple[Aggregate, ...]]
    #: What this agent has set on stored image properties itself, by instance: Nova before microversion 2.98 does not show it.
    remedied: tuple["RemediedInstance", ...] = ()
    canaries: tuple["Canary", ...] = ()
    #: Sentences for the operator: notes of playbooks that could not be read.
    notices: tuple[str, ...] = ()

    @cached_property
    def flavors_by_id(self) -> dict[str, Flavor]:
        return {flavor.id: flavor for flavor in self.flavors.value or ()}

    @cached_property
    def images_by_id(self) -> dict[str, Image]:
        return {image.id: image for image in self.images.value or ()}

    @cached_property
    def servers_by_uuid(self) -> dict[str, Server]:
        return {server.uuid: server for server in self.servers.value or ()}

    @cached_property
    def remedied_by_uuid(self) -> dict[str, "RemediedInstance"]:
        return {record.uuid: record for record in self.remedied}

    @cached_property
    def hash(self) -> str:
        """`sha256:` over everything but the time."""
        return record_hash(self.model_dump(mode="json", exclude={"observed_at", "tool"}))


class RemediedInstance(Record):
    """A stored image property that nova_instance_pmu_off set: one file an instance, written by its playbook where nova-manage ran."""

    schema_version: Literal[1] = 1
    cloud: str = Field(description="id of the cloud")
    uuid: str
    #: What it set `hw_pmu` to.
    hw_pmu: str
    set_at: UtcTime
    #: The image of the instance then, and when its disk had been made: a rebuild drops the property, onto the same image too.
    image: str | None
    launched_at: str | None = None

    def still_holds(self, server: Server) -> bool:
        """Whether the instance is still the one that it was set on: Nova tells of no rebuild but by these two."""
        return (
            self.uuid == server.uuid
            and self.image == server.image
            and self.launched_at is not None
            and self.launched_at == server.launched_at
        )


class Canary(Record):
    """What Nova made of an instance of a silent flavor and a silent image on one compute host: proof or disproof of a default."""

    schema_version: Literal[1] = 1
    cloud: str = Field(description="id of the cloud")
    #: The compute host as Nova names it.
    host: str
    #: nova:package of the XML that it generated.
    version: str
    #: off, on or absent.
    element: str
    observed_at: UtcTime
