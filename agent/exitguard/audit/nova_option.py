"""A vendor's option of nova.conf for the PMU's default, beside the witnesses: what it adds to their word, and where it contradicts. Pure.

It is evidence and never a verdict: nova-compute reads its settings when it starts, perhaps from other files, and a Nova without the
vendor's patch ignores the option altogether.
"""

from typing import NamedTuple

from exitguard.audit.nova import wish
from exitguard.model.host import NovaOption
from exitguard.model.pmu import Tri
from exitguard.model.record import Observed
from exitguard.policy.parameters import NovaDefaultParameters


class OptionSaid(NamedTuple):
    """The option as one piece of evidence, and as the end of the finding's sentence."""

    source: str
    value: str
    sentence: str


def judge_option(observed: Observed[NovaOption] | None, looked_for: NovaDefaultParameters, holds: Tri) -> OptionSaid:
    """What the option says beside what the witnesses say (`holds`)."""
    setting = f"{looked_for.option} = {looked_for.value}"
    if observed is None or (observed.value is not None and observed.value.name != looked_for.option):
        return OptionSaid(
            "nova.conf", f"{looked_for.option} was not looked at", f"{looked_for.option} was not looked at: gather facts anew"
        )
    if observed.value is None:
        would = f"; would need {observed.unlock}" if observed.unlock else ""
        return OptionSaid(observed.source, f"not seen: {observed.reason}{would}", f"{looked_for.option} is not known ({observed.reason})")
    option = observed.value
    if option.file is None:
        return OptionSaid(observed.source, f"{option.name} is not set", _beside(f"{option.name} is not set", holds, says_off=False))
    if _same(option.value, looked_for.value):
        said = f"{option.file} says {setting}"
        return OptionSaid(option.file, f"{option.name} = {option.value}", _beside(said, holds, says_off=True))
    other = f"{option.name} = {option.value}" if option.value is not None else f"{option.name} is something else than {looked_for.value}"
    return OptionSaid(option.file, other, _beside(f"{option.file} does not say {setting}", holds, says_off=False))


def _beside(said: str, holds: Tri, *, says_off: bool) -> str:
    match holds, says_off:
        case (Tri.YES, True) | (Tri.NO, False):
            return f"{said}, which fits"
        case Tri.YES, False:
            return f"and yet {said}: nova-compute has other settings, or will have another default once it is started anew"
        case Tri.NO, True:
            return f"and yet {said}: nova-compute was not started since it was set, reads another file, or does not know this option"
        case _:
            return f"{said}, which proves nothing by itself: an instance of a silent flavor and image would, once Nova starts it anew"


def _same(value: str | None, expected: str) -> bool:
    if value is None:
        return False
    return value == expected or (wish(value) is not None and wish(value) is wish(expected))
