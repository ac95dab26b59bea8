"""What is known of one server, by what its cloud's API, its host's facts and this agent's own records say together. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from exitguard.audit.host_side import NovaDomain
from exitguard.audit.instance import Known, Said, said
from exitguard.audit.instance_domain import SHELVED_OFFLOADED, Found
from exitguard.model.cloud import CloudFacts, Image, RemediedInstance, Server
from exitguard.model.pmu import Tri
from exitguard.model.time import parse_rfc3339

#: While it is resized it has two flavors, and which one stays is its owner's to say.
_TWO_FLAVORS = frozenset({"RESIZE", "VERIFY_RESIZE", "REVERT_RESIZE"})
#: What Nova wrote for the run that is ending says nothing of the next one.
_CHANGING = frozenset({"MIGRATING", "REBUILD"}) | _TWO_FLAVORS
#: Their next start is not on the host that they have now.
_ELSEWHERE = frozenset({"MIGRATING", SHELVED_OFFLOADED})


class Texts(NamedTuple):
    """What flavor and image say as text ("" silent, None not known), and why what they say is not known."""

    flavor: str | None
    image: str | None
    why_flavor: str
    why_image: str


@dataclass(frozen=True)
class Records:
    """What there is to look up beside the server itself."""

    cloud: CloudFacts
    remedied: Mapping[str, RemediedInstance] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "remedied", {record.uuid: record for record in self.cloud.remedied})

    def of(self, server: Server) -> RemediedInstance | None:
        """What was set on this server, unless it may have been rebuilt since: that drops it."""
        record = self.remedied.get(server.uuid)
        return record if record is not None and record.still_holds(server) else None


def is_of_now(domain: NovaDomain, server: Server) -> bool:
    """Whether an XML was written for the flavor and the image that the server has now."""
    return domain.flavor == server.flavor and (domain.image is None or server.image is None or domain.image == server.image)


def known_of(server: Server, found: Found, default: Tri, records: Records) -> tuple[Known, Texts]:
    """What is known of one server. What is older than a later change is left out."""
    domain = found.domain if found.domain is not None and is_of_now(found.domain, server) else None
    record = records.of(server)
    newer_record = record is not None and domain is not None and _is_older(domain, record)
    texts = _texts(server, domain, found, records.cloud, newer_record=newer_record)
    running = domain is not None and domain.active is True and not newer_record
    copied = _copied(server, domain, records.cloud, newer_record=newer_record)
    flavor = Said.UNKNOWN if server.status in _TWO_FLAVORS else said(texts.flavor)
    if found.missing and flavor in (Said.ON, Said.OFF):
        copied = None  # it may be gone because its stored properties were changed, and Nova refused to start it
    if texts.image and said(texts.image) is Said.UNKNOWN:
        copied, record = None, None  # what is stored was shown, and is neither
    return Known(
        flavor=flavor,
        image=said(texts.image),
        default=Tri.UNKNOWN if server.status in _ELSEWHERE else default,
        wrote=domain.wrote if domain is not None and not newer_record and server.status not in _CHANGING else None,
        record=said(record.hw_pmu) if record is not None else Said.UNKNOWN,
        copied=said(copied),
        defined=domain.defined if domain is not None and server.status not in _CHANGING else None,
        runs=running,
    ), texts


def _texts(server: Server, domain: NovaDomain | None, found: Found, cloud: CloudFacts, *, newer_record: bool) -> Texts:
    flavor = server.flavor_hw_pmu
    if flavor is None and domain is not None:
        flavor = domain.flavor_hw_pmu
    image = server.image_hw_pmu
    if image is None and domain is not None and domain.active and not newer_record and server.status not in _CHANGING:
        image = domain.image_hw_pmu
    return Texts(flavor, image, _why_flavor(server, flavor), _why_image(server, image, found, cloud))


def _why_flavor(server: Server, flavor: str | None) -> str:
    if server.status in _TWO_FLAVORS:
        return f"it is in {server.status}, and has two flavors until that is confirmed or reverted"
    if flavor is None:
        return "what its embedded flavor says was not shown"
    return f"its embedded flavor says {flavor!r}, which is no boolean"


def _why_image(server: Server, image: str | None, found: Found, cloud: CloudFacts) -> str:
    if image:
        return f"its stored image properties say {image!r}, which is no boolean"
    told = f"Nova shows its stored image properties from microversion 2.98 on, and {cloud.cloud.microversion} was spoken"
    if found.missing:
        return f"{told}; its domain is gone, as after a start that Nova refused"
    if server.image is None:
        return f"{told}; it boots from a volume, so that Glance has no image of it"
    today = cloud.images_by_id.get(server.image)
    if cloud.images.value is None:
        return f"{told}; images were not shown: {cloud.images.reason}"
    if today is None:
        return f"{told}; its image is deleted, or not shown"
    if today.hw_pmu is None:
        return f"{told}; what its image says was not shown"
    return f"{told}; its image may have changed since it was made" if not _unchanged(today, server) else told


def _copied(server: Server, domain: NovaDomain | None, cloud: CloudFacts, *, newer_record: bool) -> str | None:
    """What was copied from its image as far as that can be seen; nova-manage may have changed the copy since."""
    if domain is not None and domain.image_hw_pmu is not None and not newer_record and server.status not in _CHANGING:
        return domain.image_hw_pmu
    image = cloud.images_by_id.get(server.image) if server.image is not None else None
    return image.hw_pmu if image is not None and _unchanged(image, server) else None


def _unchanged(image: Image, server: Server) -> bool:
    """Whether the image is as it was when the instance was made. Times have whole seconds, so the same second proves nothing."""
    changed, made = _instant(image.updated_at or image.created_at), _instant(server.created_at)
    return changed is not None and made is not None and changed < made


def _is_older(domain: NovaDomain, record: RemediedInstance) -> bool:
    generated = _instant(domain.generated_at)
    return generated is None or generated < record.set_at


@lru_cache(maxsize=1 << 14)
def _instant(text: str | None) -> datetime | None:
    try:
        return parse_rfc3339(text) if text is not None else None
    except ValueError:
        return None
