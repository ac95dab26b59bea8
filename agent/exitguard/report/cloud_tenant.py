"""What a cloud's operator hands to the owner of a project: which instances have a virtual PMU, which lose it, and what the owner can do.

It names nothing but the project's own instances and the cloud's public flavors: no other project, no compute host, no evidence and no
reason, since those tell of hosts. It is made field by field from what may be told, never from a report with parts taken out.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import Field

from exitguard.audit.nova import wish
from exitguard.model.cloud import CloudFacts
from exitguard.model.documents import Tool
from exitguard.model.instance import CloudReport, InstanceReport
from exitguard.model.pmu import PmuSetting
from exitguard.model.record import Record
from exitguard.model.time import UtcTime
from exitguard.report.cells import csv_pieces, markdown_code, markdown_rows
from exitguard.report.cloud_groups import Counts, Standing, counts, standing
from exitguard.report.page import Look, counted
from exitguard.report.table import moment

_MOST_FLAVORS = 10


class _Section(NamedTuple):
    title: str
    #: What it means, and what the owner can do.
    meaning: str


#: What an owner is told of a standing. In the order in which they matter.
_SECTIONS: dict[Standing, _Section] = {
    Standing.CONFLICT: _Section(
        "Do not stop or hard reboot these",
        "What their flavor says about the PMU and what their image says contradict each other. They run for now, but OpenStack would not "
        "start them again: they would end up stopped. Please talk to us before you stop, hard reboot, resize or rebuild one of them.",
    ),
    Standing.ON_BY_DEFAULT: _Section(
        "These have a PMU, because nobody said otherwise",
        "If nothing in them needs it, they are better off without. Either stop the instance when it suits you and tell us: while it is "
        "stopped we can switch its PMU off, and it is without one from its next start on. Or resize it to a flavor of the same size with "
        "`hw:pmu=false`, which restarts it. Otherwise it stays as it is.",
    ),
    Standing.OFF_NEXT: _Section(
        "These lose their PMU at their next start",
        "What counts is a hard reboot, or a stop and start; a reboot from inside the instance changes nothing. There is nothing to do, "
        "unless you need the PMU.",
    ),
    Standing.BEHIND_NOVA: _Section(
        "These are not as OpenStack set them up",
        "They were changed without its knowledge. The next hard reboot, or stop and start, undoes that; the table says what they have "
        "then. There is nothing to do, unless that is not what you want: then please talk to us.",
    ),
    Standing.UNKNOWN: _Section(
        "Of these we cannot tell",
        "We could not see enough of them to say what they have after their next start. If it matters to you, please ask.",
    ),
    Standing.OPTED_OUT: _Section(
        "These keep their PMU, as was asked for",
        "Their flavor or their image asks for it. Nobody takes it away from them.",
    ),
    Standing.OFF_AND_KEPT: _Section(
        "These start without a PMU, each time",
        "There is nothing to do.",
    ),
}
_NOW = {
    PmuSetting.OFF: "off",
    PmuSetting.DEFAULT_OFF: "off",
    PmuSetting.ON: "on",
    PmuSetting.DEFAULT_ON: "on",
    PmuSetting.UNKNOWN: "not known",
    PmuSetting.NONE: "-",
}


class TenantInstance(Record):
    """One instance, as its owner may be told of it."""

    uuid: str
    name: str
    status: str
    flavor: str
    image: str | None
    standing: Standing
    #: on, off, not known, or - where it does not run.
    pmu_now: str
    #: on, off, not known, or fails: it would not start.
    pmu_next: str


class TenantReport(Record):
    """One project's instances, for its owner."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    observed_at: UtcTime
    project: str
    #: Names of public flavors that switch the PMU off, and of those that switch it on.
    flavors_off: tuple[str, ...] = Field(description="public flavors with hw:pmu=false")
    flavors_on: tuple[str, ...] = Field(description="public flavors with hw:pmu=true")
    total: Counts
    instances: tuple[TenantInstance, ...]


def tenant_report(report: CloudReport, cloud: CloudFacts, project: str) -> TenantReport:
    """What the owner of `project` may be told; without an instance where the project has none."""
    own = sorted((each for each in report.instances if each.project == project), key=lambda each: (each.name, each.uuid))
    flavors = [flavor for flavor in cloud.flavors.value or () if flavor.is_public]
    return TenantReport(
        observed_at=report.observed_at,
        project=project,
        flavors_off=tuple(sorted(flavor.name for flavor in flavors if wish(flavor.hw_pmu) is False)),
        flavors_on=tuple(sorted(flavor.name for flavor in flavors if wish(flavor.hw_pmu) is True)),
        total=counts(Counter(standing(instance) for instance in own)),
        instances=tuple(_told(instance) for instance in own),
    )


def _told(instance: InstanceReport) -> TenantInstance:
    how = standing(instance)
    return TenantInstance(
        uuid=instance.uuid,
        name=instance.name,
        status=instance.status,
        flavor=instance.flavor,
        image=instance.image,
        standing=how,
        pmu_now=_NOW[instance.live],
        pmu_next="fails" if how is Standing.CONFLICT else _NOW[instance.next_setting],
    )


def tenant_csv(told: TenantReport, look: Look) -> Iterator[str]:
    """A line an instance."""
    titles = [name for name in TenantInstance.model_fields if name != "standing"]
    return csv_pieces(
        [*titles, "standing"],
        ([*(getattr(instance, title) for title in titles), instance.standing.value] for instance in told.instances),
        look,
    )


def tenant_markdown(told: TenantReport, look: Look) -> Iterator[str]:
    """A page for the owner, in plain words: what it is about, the instances by what becomes of them, and how to keep the PMU."""
    yield "# The virtual PMU of your instances\n\n"
    yield f"Project {markdown_code(told.project, look)}: {counted(told.total.instances, 'instance')}, as of {moment(told.observed_at)}.\n\n"
    yield (
        "A virtual PMU (performance monitoring unit) lets programs inside an instance count what the processor does: cycles, instructions, "
        "cache misses. Profilers use it (perf, VTune, rr), and hypervisors that run inside an instance. Where nothing uses it, it can "
        "make the instance a little slower, each time it needs its host. So an instance should have one only where its owner wants it.\n\n"
        "Your instances are not stopped, restarted or changed for this while they run.\n"
    )
    for how, section in _SECTIONS.items():
        own = [instance for instance in told.instances if instance.standing is how]
        if own:
            yield f"\n## {section.title}\n\n{section.meaning}\n\n"
            if how is Standing.ON_BY_DEFAULT:
                yield from _flavor_line("Flavors with the PMU off", told.flavors_off, look)
            yield from _table(own, look)
    if told.instances:
        yield from _how_to_keep(told, look)


def _table(instances: list[TenantInstance], look: Look) -> Iterator[str]:
    yield from markdown_rows(
        ["instance", "id", "status", "flavor", "PMU now", "PMU after its next start"],
        (
            [
                markdown_code(instance.name, look),
                markdown_code(instance.uuid, look),
                markdown_code(instance.status, look),
                markdown_code(instance.flavor, look),
                instance.pmu_now,
                "does not start" if instance.pmu_next == "fails" else instance.pmu_next,
            ]
            for instance in instances
        ),
    )


def _how_to_keep(told: TenantReport, look: Look) -> Iterator[str]:
    yield (
        "\n## If you need the PMU\n\n"
        "- **Tell us** which instances: we note it, and leave them as they are.\n"
        "- **New instances**: set `hw_pmu=true` on an image of your own (`openstack image set --property hw_pmu=true IMAGE`) and use it "
        "with a flavor that says nothing about the PMU. With a flavor that has `hw:pmu=false` the two contradict each other, and OpenStack "
        "refuses to start the instance.\n"
        "- **Existing instances** have a copy of their flavor and of their image's properties: a property that you set on the image later "
        "does not reach them. Resize the instance to a flavor with `hw:pmu=true` (not where its image says `hw_pmu=false`), or rebuild it "
        "onto an image with `hw_pmu=true`, which overwrites its disk.\n"
    )
    if told.flavors_on:
        yield "\n"
        yield from _flavor_line("Flavors with the PMU on", told.flavors_on, look)


def _flavor_line(title: str, names: tuple[str, ...], look: Look) -> Iterator[str]:
    if names:
        more = f" and {len(names) - _MOST_FLAVORS:,} more" if len(names) > _MOST_FLAVORS else ""
        yield f"{title}: {', '.join(markdown_code(name, look) for name in names[:_MOST_FLAVORS])}{more}.\n\n"
