"""The `parameters:` of a rule: what a check can be told, for the two checks that take any."""

import string
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag

from exitguard.policy.part import Line, PolicyPart

_OPTION_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_-")
_SOURCES = "sources"
_NOVA_DEFAULT = "nova_default_off"


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


def _meant(given: object) -> str:
    """Which of the two: an unknown key is then told beside the keys that were meant."""
    keys = given.keys() if isinstance(given, dict) else ()
    is_nova = isinstance(given, NovaDefaultParameters) or any(key in NovaDefaultParameters.model_fields for key in keys)
    return _NOVA_DEFAULT if is_nova else _SOURCES


Parameters = Annotated[
    Annotated[SourcesParameters, Tag(_SOURCES)] | Annotated[NovaDefaultParameters, Tag(_NOVA_DEFAULT)],
    Discriminator(_meant),
]
