"""Instances of a cloud counted by project, flavor, zone, aggregate, compute build or host: sums that add up."""

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import Literal

from pydantic import Field

from exitguard.audit.nova import wish
from exitguard.model.cloud import CloudIdentity
from exitguard.model.documents import Tool
from exitguard.model.instance import CloudReport, InstanceReport, PmuOrigin
from exitguard.model.pmu import PmuSetting
from exitguard.model.record import Record
from exitguard.model.time import UtcTime

_ON = frozenset({PmuSetting.ON, PmuSetting.DEFAULT_ON})


class GroupBy(StrEnum):
    """What instances may be counted by."""

    PROJECT = "project"
    FLAVOR = "flavor"
    ZONE = "zone"
    AGGREGATE = "aggregate"
    BUILD = "build"
    HOST = "host"


class Standing(StrEnum):
    """How an instance stands: each is in exactly one, the first that applies."""

    CONFLICT = "conflict"
    BEHIND_NOVA = "behind_nova"
    OPTED_OUT = "opted_out"
    OFF_AND_KEPT = "off_and_kept"
    OFF_NEXT = "off_next"
    ON_BY_DEFAULT = "on_by_default"
    UNKNOWN = "unknown"


class Counts(Record):
    """How many instances there are, and how they stand: the standings add up to `instances`."""

    instances: int
    off_and_kept: int = Field(description="Nova starts it with its PMU off, each time, and nothing that was seen of it has the PMU on")
    off_next: int = Field(description="off from its next start by Nova; until then its definition or its run has the PMU on")
    on_by_default: int = Field(description="on at its next start, since nobody said otherwise")
    opted_out: int = Field(description="its flavor or image asks for the PMU")
    conflict: int = Field(description="its flavor and image contradict each other: its next start fails")
    behind_nova: int = Field(description="its definition says what Nova did not write")
    unknown: int = Field(description="it could not be told")


class Group(Counts):
    #: None where instances have no such thing, or it was not shown.
    name: str | None


class CloudGroups(Record):
    """The instances of a cloud by one thing that they have in common."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    observed_at: UtcTime
    policy: str
    cloud: CloudIdentity
    by: GroupBy
    groups: tuple[Group, ...] = Field(description="the largest first")
    total: Counts = Field(description="of all instances, each counted once")
    counted_again: int = Field(description="how often an instance stands in a further group: a host may be in several aggregates")


def standing(instance: InstanceReport) -> Standing:
    """How one instance stands. A contradiction or an edit behind Nova's back comes first: neither is a state that anybody chose."""
    if instance.origin is PmuOrigin.CONFLICT:
        return Standing.CONFLICT
    if instance.origin is PmuOrigin.BEHIND_NOVA:
        return Standing.BEHIND_NOVA
    if wish(instance.flavor_hw_pmu) is True or wish(instance.image_hw_pmu) is True:
        return Standing.OPTED_OUT
    match instance.next_setting:
        case PmuSetting.OFF | PmuSetting.DEFAULT_OFF:
            return Standing.OFF_NEXT if {instance.persistent, instance.live} & _ON else Standing.OFF_AND_KEPT
        case PmuSetting.DEFAULT_ON:
            return Standing.ON_BY_DEFAULT
        case _:
            return Standing.UNKNOWN


def counts(tally: Counter[Standing]) -> Counts:
    """The counts of one group."""
    return Counts(instances=tally.total(), **{each.value: tally[each] for each in Standing})


def group_instances(report: CloudReport, by: GroupBy) -> CloudGroups:
    """The instances of a report, grouped; one that several aggregates hold stands in each of them."""
    aggregates = {compute.host: compute.aggregates for compute in report.computes}
    tallies: dict[str | None, Counter[Standing]] = {}
    everything: Counter[Standing] = Counter()
    again = 0
    for instance in report.instances:
        how = standing(instance)
        everything[how] += 1
        names = tuple(_names(instance, by, aggregates))
        again += len(names) - 1
        for name in names:
            tallies.setdefault(name, Counter())[how] += 1
    # The largest first; those without a name last among their equals.
    ordered = sorted(tallies.items(), key=lambda item: (-item[1].total(), item[0] is None, item[0] or ""))
    return CloudGroups(
        observed_at=report.observed_at,
        policy=report.policy,
        cloud=report.cloud,
        by=by,
        groups=tuple(Group(name=name, **counts(tally).model_dump()) for name, tally in ordered),
        total=counts(everything),
        counted_again=again,
    )


def _names(instance: InstanceReport, by: GroupBy, aggregates: dict[str, tuple[str, ...]]) -> Iterator[str | None]:
    match by:
        case GroupBy.PROJECT:
            yield instance.project
        case GroupBy.FLAVOR:
            yield instance.flavor
        case GroupBy.ZONE:
            yield instance.zone
        case GroupBy.BUILD:
            yield instance.build
        case GroupBy.HOST:
            yield instance.host
        case GroupBy.AGGREGATE:
            yield from dict.fromkeys(aggregates.get(instance.host or "", ())) or (None,)
