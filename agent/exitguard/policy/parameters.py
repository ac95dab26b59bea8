"""The `parameters:` of a rule: what a check can be told, for the checks that take any."""

import string
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag

from exitguard.policy.part import Line, Pattern, PolicyPart

_OPTION_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_-")


class SourceName(StrEnum):
    """The sources that the `sources` check can require."""

    KERNEL_RELEASE = "kernel_release"
    KERNEL_EVIDENCE = "kernel_evidence"
    KVM_ENABLE_PMU = "kvm_enable_pmu"
    LIBVIRT = "libvirt"
    PROCESSES = "processes"
    ALL_GUESTS = "all_guests"


class SourcesParameters(PolicyPart):
    """Parameters of the `sources` check."""

    required: tuple[SourceName, ...] = Field(default=tuple(SourceName), min_length=1)


def _option_name(text: str) -> str:
    section, _, option = text.partition(".")
    if not all(part and _OPTION_CHARACTERS.issuperset(part) for part in (section, option)):
        raise ValueError("expected a section and an option of nova.conf, such as libvirt.default_pmu")
    return text


def _absolute_path(text: str) -> str:
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError("expected a path that begins with / and has no .. in it")
    return text


class NovaDefaultParameters(PolicyPart):
    """Parameters of the `nova_default_off` check: the option by which a vendor's Nova gets its default, shown beside the witnesses."""

    option: Annotated[Line, AfterValidator(_option_name)] = Field(description="section.option of nova.conf")
    value: Line = Field(description="its value where Nova defaults to PMU off; of a boolean every spelling that Nova knows counts")
    files: tuple[Annotated[Line, AfterValidator(_absolute_path)], ...] = Field(
        default=("/etc/nova/nova.conf", "/etc/nova/nova-compute.conf", "/etc/kolla/nova-compute/nova.conf"),
        min_length=1,
        max_length=8,
        description="where nova-compute's settings may be; of several files that set the option the last one counts",
    )


class FleetSilentParameters(PolicyPart):
    """Parameters of the `fleet_host_silent` check. A daemon leaves a hub that does not answer alone for a quarter of an hour at most."""

    after_minutes: Annotated[int, Field(ge=20, le=10_080)] = Field(
        default=60, description="a host counts as silent once the hub has not heard of it for so long"
    )


class FleetClockParameters(PolicyPart):
    """Parameters of the `fleet_clock` check."""

    most_seconds: Annotated[int, Field(ge=5, le=86_400)] = Field(
        default=60, description="how far a host's clock may be off the hub's, the time that a push takes included"
    )


class FleetQemuParameters(PolicyPart):
    """Parameters of the `fleet_qemu_mixed` check."""

    groups: tuple[Pattern, ...] = Field(
        default=(),
        max_length=1000,
        description="regular expressions, each for the whole names of hosts between which guests may migrate; the first that matches "
        "counts, and a host that none matches is in no group. One with (parentheses) makes a group of each text that they match. Without "
        "any, hosts with the same processor are taken for a group",
    )


_KINDS: dict[str, type[PolicyPart]] = {
    "sources": SourcesParameters,
    "nova_default_off": NovaDefaultParameters,
    "fleet_host_silent": FleetSilentParameters,
    "fleet_clock": FleetClockParameters,
    "fleet_qemu_mixed": FleetQemuParameters,
}


def _meant(given: object) -> str:
    """Which of them: an unknown key is then told beside the keys that were meant."""
    keys = given.keys() if isinstance(given, dict) else ()
    found = (name for name, kind in _KINDS.items() if isinstance(given, kind) or any(key in kind.model_fields for key in keys))
    return next(found, "sources")


Parameters = Annotated[
    Annotated[SourcesParameters, Tag("sources")]
    | Annotated[NovaDefaultParameters, Tag("nova_default_off")]
    | Annotated[FleetSilentParameters, Tag("fleet_host_silent")]
    | Annotated[FleetClockParameters, Tag("fleet_clock")]
    | Annotated[FleetQemuParameters, Tag("fleet_qemu_mixed")],
    Discriminator(_meant),
]
