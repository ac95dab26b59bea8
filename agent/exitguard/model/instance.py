"""What is concluded of a cloud's instances: where each one's PMU setting comes from, and whether Nova will write it again."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from exitguard.model.cloud import CloudIdentity
from exitguard.model.documents import Tool
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding
from exitguard.model.pmu import ChainState, PmuElement, PmuSetting, Tri
from exitguard.model.record import Record
from exitguard.model.time import UtcTime


class PmuOrigin(StrEnum):
    """Where the PMU setting of an instance comes from."""

    FLAVOR = "flavor"  # its embedded flavor alone says it
    IMAGE = "image"  # its stored image properties alone say it
    FLAVOR_AND_IMAGE = "flavor_and_image"  # both say the same
    REMEDY = "remedy"  # the stored image property that nova_instance_pmu_off set
    CLOUD_DEFAULT = "cloud_default"  # both are silent, and this compute's Nova writes <pmu state='off'/> by itself
    QEMU_DEFAULT = "qemu_default"  # both are silent, Nova writes nothing, and QEMU decides by the CPU mode
    BEHIND_NOVA = "behind_nova"  # the definition says what Nova did not write
    CONFLICT = "conflict"  # both say something, and not the same: the next start fails
    UNKNOWN = "unknown"


class InstanceReport(Record):
    """One instance: what is defined and runs on its host, where that comes from, and what its next start by Nova will be."""

    uuid: str
    name: str
    project: str
    status: str
    locked: bool | None
    flavor: str
    image: str | None
    zone: str | None
    #: Compute host as Nova names it; None where it has none, or it was not shown.
    host: str | None
    #: Host id of the facts that its domain was found in; None where none were given.
    host_id: str | None
    #: Version of the nova-compute that generated its XML.
    build: str | None
    #: `hw:pmu` embedded, and `hw_pmu` stored: "" silent, None not known.
    flavor_hw_pmu: str | None
    image_hw_pmu: str | None
    #: By its domain: what the next start would have, and what runs; unknown without facts of its host.
    persistent: PmuSetting
    live: PmuSetting
    #: The state of its chain by its host's facts; None without them.
    chain: ChainState | None
    origin: PmuOrigin
    #: Why the origin is what it is, in a sentence.
    origin_reason: str
    #: The element that Nova will write when it next generates the XML (hard reboot, stop and start); None: not known.
    next_element: PmuElement | None
    #: What the next start by Nova will have; unknown where it cannot be told.
    next_setting: PmuSetting
    #: Whether what the definition says now survives the next hard reboot.
    survives: Tri
    survives_reason: str
    evidence: tuple[Evidence, ...] = ()


class ComputeReport(Record):
    """One compute host: whether its Nova defaults to PMU off."""

    host: str
    host_id: str | None
    zone: str | None
    aggregates: tuple[str, ...]
    #: Versions of nova-compute that generated the XML of its instances.
    builds: tuple[str, ...]
    default_off: Tri
    reason: str
    witnesses_for: int
    witnesses_against: int
    instances: int


class CloudSummary(Record):
    by_verdict: dict[str, int]
    by_origin: dict[str, int]
    by_next_setting: dict[str, int]
    exit_code: int


class CloudReport(Record):
    """The result of one audit of a cloud: its facts joined with those of its hosts by instance uuid, and judged."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    observed_at: UtcTime
    policy: str = Field(description="id and version of the policy that was judged by")
    cloud: CloudIdentity
    #: How many hosts' facts were joined.
    hosts_joined: int
    computes: tuple[ComputeReport, ...]
    instances: tuple[InstanceReport, ...]
    findings: tuple[Finding, ...]
    summary: CloudSummary
