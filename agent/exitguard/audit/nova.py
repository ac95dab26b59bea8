"""Nova as an owner: what an instance was asked for, and whether this compute node's Nova turns the PMU off by default. Pure.

There is no upstream option for such a default; vendors patch one in under names of their own. So it is told by behaviour, of runs
whose XML Nova itself had just generated on this host:

- with <pmu state='off'/>, of an instance whose stored flavor and image are known to be silent: nothing but a default wrote it;
- without the element, of any instance: flavor, image and default would each have made Nova write one, so none of them says anything
  (nova/virt/hardware.py, get_pmu_constraint). This holds for every Nova, whether or not its metadata has properties.

Everything else (a restored or migrated run, a definition that somebody touched, an element that may be the flavor's) is no witness.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

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


class Witness(NamedTuple):
    """What one instance shows of Nova's default. `wrote` is what `written_by_nova` gives; `silent`: flavor and image are known to be."""

    uuid: str
    wrote: PmuElement | None
    silent: bool


@dataclass(frozen=True)
class NovaDefault:
    """Whether Nova defaults to PMU off on this host, by its witnesses."""

    holds: Tri
    instances: int
    proofs: tuple[str, ...]  # uuids of witnesses with <pmu state='off'/>
    disproofs: tuple[str, ...]  # uuids of witnesses without the element


def judge_nova_default(domains: Iterable[DomainFacts], silent: Callable[[DomainFacts], bool] | None = None) -> NovaDefault:
    """Proof, disproof, or unknown: no witness, or witnesses that contradict each other.

    `silent` says of a Nova instance whether its flavor and image are known to say nothing, where more is known than its XML tells.
    """
    known_silent = silent or _silent_by_its_metadata
    return weigh(Witness(domain.uuid, written_by_nova(domain), known_silent(domain)) for domain in domains if domain.nova is not None)


def weigh(instances: Iterable[Witness]) -> NovaDefault:
    """What all the Nova instances of one host show together; those that show nothing are only counted."""
    count, proofs, disproofs = 0, [], []
    for instance in instances:
        count += 1
        if instance.wrote is PmuElement.ABSENT:
            disproofs.append(instance.uuid)
        elif instance.wrote is PmuElement.OFF and instance.silent:
            proofs.append(instance.uuid)
    holds = Tri.UNKNOWN if bool(proofs) == bool(disproofs) else Tri.YES if proofs else Tri.NO
    return NovaDefault(holds, count, tuple(proofs), tuple(disproofs))


def written_by_nova(domain: DomainFacts) -> PmuElement | None:
    """The element that Nova itself wrote when it began this run here; None where the XML may be somebody else's, or nothing runs."""
    generated = domain.started_as_generated
    run = domain.run.value if domain.run is not None else None
    if domain.nova is None or generated is None or generated.value is not True or run is None:
        return None
    return run.pmu


def _silent_by_its_metadata(domain: DomainFacts) -> bool:
    return domain.nova is not None and is_silent(domain.nova)


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
        case _ if _still_as_nova_wrote_it(domain, persistent):
            return Tri.YES, "Nova wrote this PMU setting itself when it started the instance"
        case Tri.NO if default.holds is Tri.NO and persistent is PmuSetting.OFF:
            return Tri.NO, "flavor and image are silent and Nova has no such default: the next hard reboot drops the element"
        case Tri.NO if default.holds is Tri.YES and persistent is PmuSetting.OFF:
            return Tri.YES, "flavor and image are silent, and Nova's default here is PMU off"
        case Tri.NO:
            return Tri.UNKNOWN, "flavor and image are silent, and whether Nova defaults to PMU off here is not known"
        case _:
            return Tri.UNKNOWN, "flavor and image properties are not in the XML before Nova 32.0.0: the Nova API would tell"


def _still_as_nova_wrote_it(domain: DomainFacts, persistent: PmuSetting) -> bool:
    """Whether the definition still says what Nova had generated when the run began."""
    wrote = written_by_nova(domain)
    definition = domain.definition.value if domain.definition is not None else None
    return (
        wrote is not None and definition is not None and wrote is definition.pmu and persistent in (PmuSetting.OFF, PmuSetting.DEFAULT_OFF)
    )
