"""Nova as an owner: what an instance was asked for, and whether this compute node's Nova turns the PMU off by default. Pure.

There is no upstream option for such a default; vendors patch one in under names of their own. So it is told by behaviour: an
instance whose stored flavor and image are silent, whose running XML Nova itself had just generated on this host, shows what
Nova writes by default. Everything else (older metadata without properties, a restored or migrated run, a definition that
somebody touched) is no witness.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from exitguard.model.domain import DomainFacts, NovaInstance, OwnerKind
from exitguard.model.pmu import PmuElement, PmuSetting, Tri

_TRUE = ("true", "on", "yes", "1", "t", "y")
_FALSE = ("false", "off", "no", "0", "f", "n")


def asked(nova: NovaInstance) -> Tri:
    """Whether the stored flavor or image asks for the PMU: yes on, no off or silent, unknown where not stored."""
    wishes = (wish(nova.flavor_hw_pmu), wish(nova.image_hw_pmu))
    if True in wishes:
        return Tri.YES
    if False in wishes or (nova.flavor_hw_pmu == "" and nova.image_hw_pmu == ""):
        return Tri.NO
    return Tri.UNKNOWN


def wish(text: str | None) -> bool | None:
    """A property's text as a wish (oslo_utils.strutils.bool_from_string); None where silent, not stored or not a boolean."""
    lowered = (text or "").strip().lower()
    if lowered in _TRUE:
        return True
    return False if lowered in _FALSE else None


def is_silent(nova: NovaInstance) -> bool:
    """Whether flavor and image are stored and say nothing."""
    return nova.flavor_hw_pmu == "" and nova.image_hw_pmu == ""


@dataclass(frozen=True)
class NovaDefault:
    """Whether Nova defaults to PMU off on this host, by its witnesses."""

    holds: Tri
    instances: int
    proofs: tuple[str, ...]  # uuids of witnesses with <pmu state='off'/>
    disproofs: tuple[str, ...]  # uuids of witnesses without the element


def judge_nova_default(domains: Iterable[DomainFacts]) -> NovaDefault:
    """Proof, disproof, or unknown: no witness, or witnesses that contradict each other."""
    instances = [domain for domain in domains if domain.nova is not None]
    proofs = tuple(domain.uuid for domain in instances if _witnesses(domain, PmuElement.OFF))
    disproofs = tuple(domain.uuid for domain in instances if _witnesses(domain, PmuElement.ABSENT))
    holds = Tri.UNKNOWN if bool(proofs) == bool(disproofs) else Tri.YES if proofs else Tri.NO
    return NovaDefault(holds, len(instances), proofs, disproofs)


def _witnesses(domain: DomainFacts, element: PmuElement) -> bool:
    generated = domain.started_as_generated
    return (
        domain.nova is not None
        and is_silent(domain.nova)
        and generated is not None
        and generated.value is True
        and domain.run is not None
        and domain.run.value is not None
        and domain.run.value.pmu is element
    )


def keeps(domain: DomainFacts, persistent: PmuSetting, default: NovaDefault) -> tuple[Tri, str]:
    """Whether the owner will leave a PMU-off definition as it is, and why."""
    if domain.owner.kind is OwnerKind.LIBVIRT:
        return Tri.YES, "no manager rewrites this definition"
    if domain.owner.kind is not OwnerKind.NOVA or domain.nova is None:
        return Tri.UNKNOWN, f"its owner may rewrite the definition ({domain.owner.name})"
    match asked(domain.nova):
        case Tri.YES:
            return Tri.NO, "its flavor or image says hw_pmu=true: Nova writes that at the next hard reboot"
        case Tri.NO if not is_silent(domain.nova):
            return Tri.YES, "its flavor or image says hw_pmu=false"
        case _ if _written_by_nova(domain, persistent):
            return Tri.YES, "Nova wrote this PMU setting itself when it started the instance"
        case Tri.NO if default.holds is Tri.NO and persistent is PmuSetting.OFF:
            return Tri.NO, "flavor and image are silent and Nova has no such default: the next hard reboot drops the element"
        case Tri.NO if default.holds is Tri.YES and persistent is PmuSetting.OFF:
            return Tri.YES, "flavor and image are silent, and Nova's default here is PMU off"
        case Tri.NO:
            return Tri.UNKNOWN, "flavor and image are silent, and whether Nova defaults to PMU off here is not known"
        case _:
            return Tri.UNKNOWN, "flavor and image properties are not in the XML before Nova 32.0.0: the Nova API would tell"


def _written_by_nova(domain: DomainFacts, persistent: PmuSetting) -> bool:
    """Whether the definition still says what Nova had generated when the run began."""
    generated = domain.started_as_generated
    run = domain.run.value if domain.run is not None else None
    definition = domain.definition.value if domain.definition is not None else None
    return (
        generated is not None
        and generated.value is True
        and run is not None
        and definition is not None
        and run.pmu is definition.pmu
        and persistent in (PmuSetting.OFF, PmuSetting.DEFAULT_OFF)
    )
