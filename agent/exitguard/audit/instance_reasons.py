"""Why an instance is judged as it is, in sentences. Pure; equal causes give equal sentences, so that many instances share them."""

from collections.abc import Iterator

from exitguard.audit.instance import Conclusion, Known, Said, Source, written_for
from exitguard.audit.instance_known import Texts
from exitguard.model.instance import PmuOrigin
from exitguard.model.pmu import PmuElement, PmuSetting, Tri

#: nova-manage cannot unset a property, so the way out of a conflict is to say what the flavor says (seen on Nova 26.2.2 and 31.0.0).
_RECOVERY = (
    "its next start destroys and undefines its domain, and leaves it SHUTOFF without a fault. Ask its owner which of the two "
    "counts. While it is SHUTOFF, before or after such a start, set hw_pmu={says} by `nova-manage image_property set`, so that "
    "both say the same, and have it started; in ERROR, set its state to active (`openstack server set --state active`) and stop it "
    "first"
)
_TEXT = {Said.ON: "true", Said.OFF: "false", Said.SILENT: ""}
_HOW = {
    Source.SHOWN: "as Nova shows",
    Source.WRITTEN: "as what Nova wrote proves",
    Source.RECORD: "as this agent set them",
    Source.DEFAULT: "as what Nova wrote proves, for it has no default here",
    Source.COPY: "as they were copied, unless nova-manage has changed them since",
    Source.NOTHING: "",
}
_ELEMENT = {PmuElement.ON: "<pmu state='on'/>", PmuElement.OFF: "<pmu state='off'/>", PmuElement.ABSENT: "no <pmu> element"}
_SETTING = {
    PmuSetting.ON: "on",
    PmuSetting.OFF: "off",
    PmuSetting.DEFAULT_ON: "on, which is QEMU's default for its CPU mode",
    PmuSetting.DEFAULT_OFF: "off, which is QEMU's default for its CPU mode",
}
NO_CPU_MODE = "what QEMU does without an element follows the CPU mode, which is not known without its host's facts"
NO_DEFAULT = "whether Nova on its compute host defaults to PMU off is not known: a canary there would show it"


def flavor_text(conclusion: Conclusion, texts: Texts) -> str | None:
    """What its embedded flavor says: as it was shown, or as it follows; None where neither."""
    flavors = {each.flavor for each in conclusion.possible}
    return _TEXT[flavors.pop()] if texts.flavor is None and len(flavors) == 1 else texts.flavor


def image_text(conclusion: Conclusion, texts: Texts) -> str | None:
    """What its stored image properties say: as it was shown, or as it follows; None where neither."""
    return texts.image if texts.image is not None or conclusion.image is Said.UNKNOWN else _TEXT[conclusion.image]


def why_origin(conclusion: Conclusion, known: Known, texts: Texts) -> str:
    """Where the setting comes from, in a sentence."""
    says = "true" if conclusion.next_element is PmuElement.ON else "false"
    how = _HOW[conclusion.image_by]
    match conclusion.origin:
        case PmuOrigin.FLAVOR:
            reason = f"its embedded flavor says hw:pmu={says}, and its stored image properties are silent, {how}"
        case PmuOrigin.IMAGE:
            reason = f"its stored image properties say hw_pmu={says}, {how}, and its embedded flavor is silent"
        case PmuOrigin.FLAVOR_AND_IMAGE:
            reason = f"its embedded flavor and its stored image properties both say {says}"
        case PmuOrigin.REMEDY:
            reason = f"nova_instance_pmu_off set hw_pmu={says} among its stored image properties"
        case PmuOrigin.CLOUD_DEFAULT:
            reason = "flavor and image are silent, and Nova on its compute host writes off by itself"
        case PmuOrigin.QEMU_DEFAULT:
            reason = "flavor and image are silent, Nova writes no element, and QEMU decides by the CPU mode"
        case PmuOrigin.BEHIND_NOVA:
            reason = _behind(conclusion, known)
        case PmuOrigin.CONFLICT:
            reason = why_conflict(conclusion)
        case _:
            reason = "; ".join(not_known(conclusion, texts)) or "what its definition says fits no single cause"
    if known.defined is None or conclusion.next_element in (None, known.defined) or conclusion.origin is PmuOrigin.BEHIND_NOVA:
        return reason
    return f"{reason}; its definition still has {_ELEMENT[known.defined]}, until its next start by Nova"


def _behind(conclusion: Conclusion, known: Known) -> str:
    told = _ELEMENT[known.defined] if known.defined is not None else "?"
    if conclusion.next_element is None:
        return f"its definition has {told}, which Nova does not write for it: it was edited, or came from a host whose Nova differs"
    wrote = "wrote" if known.wrote is conclusion.next_element else "writes"
    return f"its definition has {told}, and Nova {wrote} {_ELEMENT[conclusion.next_element]}: it was edited, or came from another Nova"


def why_conflict(conclusion: Conclusion) -> str:
    """What contradicts what; meant for one whose next start is refused."""
    if any(each.flavor is Said.ON for each in conclusion.possible):
        return "its embedded flavor says hw:pmu=true and its stored image properties hw_pmu=false"
    return "its embedded flavor says hw:pmu=false and its stored image properties hw_pmu=true"


def recovery(conclusion: Conclusion) -> str:
    """What becomes of an instance whose flavor and image contradict each other, and the way out."""
    return _RECOVERY.format(says="true" if any(each.flavor is Said.ON for each in conclusion.possible) else "false")


def not_known(conclusion: Conclusion, texts: Texts) -> Iterator[str]:
    """What would have to be known to tell more, one sentence each."""
    if len({each.flavor for each in conclusion.possible}) > 1:
        yield texts.why_flavor
    if len({each.image for each in conclusion.possible}) > 1:
        yield texts.why_image
    silent = [each for each in conclusion.possible if each.flavor is each.image is Said.SILENT]
    if len({each.default for each in silent}) > 1:
        yield NO_DEFAULT


def why_unsettled(conclusion: Conclusion, texts: Texts, absent_means: PmuSetting) -> str:
    """Why it cannot be told what the next start will have."""
    reasons = list(not_known(conclusion, texts))
    if absent_means is PmuSetting.UNKNOWN and any(written_for(each) is PmuElement.ABSENT for each in conclusion.possible):
        reasons.append(NO_CPU_MODE)
    return "; ".join(reasons)


def why_survives(answer: Tri, conclusion: Conclusion, settings: tuple[PmuSetting, PmuSetting], *, note: str, open_reason: str) -> str:
    """Whether what the definition says now survives, in a sentence. `settings` are the definition's and the next start's."""
    persistent, after = settings
    if conclusion.conflict is Tri.YES:
        return "its next start is refused: flavor and image contradict each other"
    if persistent in (PmuSetting.UNKNOWN, PmuSetting.NONE):
        return f"what is defined is not known: {note or 'its definition cannot be read, or does not say enough'}"
    now = _SETTING[persistent]
    match answer:
        case Tri.YES:
            return f"Nova writes the same again: {now}"
        case Tri.NO:
            return f"now {now}; after its next start by Nova {_SETTING.get(after, 'something else')}"
        case _:
            return f"now {now}; what Nova writes next is not known: {open_reason}"
