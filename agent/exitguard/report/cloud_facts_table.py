"""The facts of a cloud for a person: what its API showed, in sums and first names, and why the rest was not seen."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import RenderableType
from rich.text import Text

from exitguard.audit.nova import wish
from exitguard.model.cloud import Aggregate, CloudFacts, ComputeService, Flavor, Hypervisor, Image, Server
from exitguard.model.record import Observed, Record
from exitguard.report.page import DOUBT, FAINT, STRONG, Look, counted, heading, indented, labelled, render
from exitguard.report.table import moment

_MOST_NAMES = 12
_LIMIT_CHARACTERS = 48
R = TypeVar("R", bound=Record)


def cloud_facts_table(facts: CloudFacts, look: Look) -> str:
    """The facts as a page: each source with what it showed, or the reason why it showed nothing and the policy that would."""
    return render(look, _parts(facts, look))


def _parts(facts: CloudFacts, look: Look) -> Iterator[RenderableType]:
    cloud = facts.cloud
    yield Text.assemble(
        look.own("Facts of cloud "),
        look.foreign(cloud.name, STRONG, limit_characters=64),
        look.own(f", observed {moment(facts.observed_at)}", FAINT),
    )
    yield labelled(
        look,
        [
            ("id", look.foreign(cloud.id)),
            ("region", look.foreign(cloud.region) if cloud.region else look.own("-", FAINT)),
            ("microversion", look.foreign(f"{cloud.microversion}, of {cloud.microversion_offered} offered", limit_characters=64)),
        ],
    )
    if facts.scope == "project":
        yield indented(look.own("Its role may see the servers of its own project alone: of the others nothing is known.", DOUBT))
    yield from _section("Flavors", facts.flavors, _flavors, look)
    yield from _section("Images", facts.images, _images, look)
    yield from _section("Servers", facts.servers, _servers, look)
    yield from _section("Compute services", facts.services, _services, look)
    yield from _section("Hypervisors", facts.hypervisors, _hypervisors, look)
    yield from _section("Aggregates", facts.aggregates, _aggregates, look)
    yield from _noted(facts, look)
    yield indented(look.own("Every one of them: --format json.", FAINT))


def _section(
    title: str, observed: Observed[tuple[R, ...]], rows: Callable[[tuple[R, ...], Look], Iterable[tuple[str, Text]]], look: Look
) -> Iterator[RenderableType]:
    if observed.value is None:
        yield heading(look, title, "not seen")
        yield indented(Text.assemble(look.foreign(observed.reason or "", DOUBT, limit_characters=400), _source(observed.source, look)))
        if observed.unlock is not None:
            yield indented(Text.assemble(look.own("would be shown by "), look.foreign(observed.unlock, STRONG)))
        return
    yield heading(look, title, f"{len(observed.value):,}")
    yield indented(look.foreign(observed.source, FAINT))
    if observed.value:
        yield labelled(look, rows(observed.value, look))


def _source(source: str, look: Look) -> Text:
    return Text.assemble(look.own(" (", FAINT), look.foreign(source, FAINT), look.own(")", FAINT))


def _flavors(flavors: tuple[Flavor, ...], look: Look) -> Iterator[tuple[str, Text]]:
    yield from _by_wish(((flavor.hw_pmu, flavor.name) for flavor in flavors), "hw:pmu", look)


def _images(images: tuple[Image, ...], look: Look) -> Iterator[tuple[str, Text]]:
    yield from _by_wish(((image.hw_pmu, image.name or image.id) for image in images), "hw_pmu", look)


def _by_wish(entries: Iterable[tuple[str | None, str]], key: str, look: Look) -> Iterator[tuple[str, Text]]:
    """A row for each thing that a property may say, with how many say it and who."""
    groups: dict[str, list[str]] = {}
    for text, name in entries:
        groups.setdefault(_says(text, key), []).append(name)
    for says in (f"{key}=true", f"{key}=false", "not a boolean", "silent", "not shown"):
        if says in groups:
            yield says, _names(groups[says], look)


def _says(text: str | None, key: str) -> str:
    if text is None:
        return "not shown"
    if not text:
        return "silent"
    wanted = wish(text)
    return "not a boolean" if wanted is None else f"{key}={'true' if wanted else 'false'}"


def _servers(servers: tuple[Server, ...], look: Look) -> Iterator[tuple[str, Text]]:
    yield "projects", look.own(f"{len({server.project for server in servers}):,}")
    for status, count in Counter(server.status for server in servers).most_common(_MOST_NAMES):
        yield look.foreign(status, limit_characters=24).plain, look.own(f"{count:,}")
    locked = sum(server.locked is True for server in servers)
    if locked:
        yield "locked", look.own(f"{locked:,}")
    for what, missing in (
        ("host", sum(server.host is None for server in servers)),
        ("embedded flavor", sum(server.flavor_hw_pmu is None for server in servers)),
        ("stored image", sum(server.image_hw_pmu is None for server in servers)),
    ):
        if missing:
            yield what, look.own(f"not shown of {counted(missing, 'server')}", DOUBT)


def _services(services: tuple[ComputeService, ...], look: Look) -> Iterator[tuple[str, Text]]:
    groups: dict[str, list[str]] = {}
    for service in services:
        groups.setdefault(f"{service.status}, {service.state}", []).append(service.host)
    for state, hosts in sorted(groups.items()):
        yield look.foreign(state, limit_characters=24).plain, _names(hosts, look)


def _hypervisors(hypervisors: tuple[Hypervisor, ...], look: Look) -> Iterator[tuple[str, Text]]:
    groups: dict[str, list[Hypervisor]] = {}
    for hypervisor in hypervisors:
        groups.setdefault(hypervisor.type, []).append(hypervisor)
    for kind, found in sorted(groups.items()):
        servers = sum(len(hypervisor.servers) for hypervisor in found)
        names = _names([hypervisor.hostname for hypervisor in found], look)
        yield look.foreign(kind, limit_characters=24).plain, Text.assemble(names, look.own(f"; {counted(servers, 'server')}", FAINT))


def _aggregates(aggregates: tuple[Aggregate, ...], look: Look) -> Iterator[tuple[str, Text]]:
    for aggregate in aggregates[:_MOST_NAMES]:
        hosts = _names(list(aggregate.hosts), look) if aggregate.hosts else look.own("no host", FAINT)
        yield look.foreign(aggregate.name, limit_characters=24).plain, hosts
    if len(aggregates) > _MOST_NAMES:
        yield "…" if look.unicode else "...", look.own(f"and {len(aggregates) - _MOST_NAMES:,} more", DOUBT)


def _noted(facts: CloudFacts, look: Look) -> Iterator[RenderableType]:
    """What playbooks wrote down beside what the API shows, and what of that could not be read."""
    if not facts.remedied and not facts.canaries and not facts.notices:
        return
    yield heading(look, "Noted by our playbooks")
    rows = [
        (canary.host, Text.assemble(look.own("canary: element "), look.foreign(f"{canary.element}, Nova {canary.version}")))
        for canary in facts.canaries[:_MOST_NAMES]
    ]
    if facts.remedied:
        rows.insert(0, ("stored hw_pmu set", look.own(f"on {counted(len(facts.remedied), 'instance')}")))
    yield labelled(look, [(look.foreign(name, limit_characters=24).plain, text) for name, text in rows])
    for notice in facts.notices[:_MOST_NAMES]:
        yield indented(look.foreign(notice, DOUBT, limit_characters=400))
    if len(facts.notices) > _MOST_NAMES:
        yield indented(look.own(f"… and {len(facts.notices) - _MOST_NAMES:,} more", DOUBT))


def _names(names: list[str], look: Look) -> Text:
    """`12: a, b, c and 9 more`."""
    shown = look.own(", ", FAINT).join([look.foreign(name, limit_characters=_LIMIT_CHARACTERS) for name in names[:_MOST_NAMES]])
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return Text.assemble(look.own(f"{len(names):,}: "), shown, look.own(more, FAINT))
