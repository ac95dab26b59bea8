"""What this host's mitigations make an indirect call and a return cost, by class.

From /sys/devices/system/cpu/vulnerabilities (arch/x86/kernel/cpu/bugs.c). The lines carry suffixes ("...; SMT vulnerable"), so
their beginnings decide; stable kernels differ in case ("Mitigation: safe RET" in Debian's 6.1). Classes rank hosts; cycles are
never computed from them.
"""

import re
from collections.abc import Mapping

from exitguard.facts.tree import HostTree, one_line, unseen_like
from exitguard.model.host import MitigationClass, Mitigations
from exitguard.model.record import Observed, seen, unseen

_FOLDER = "/sys/devices/system/cpu/vulnerabilities"
_MAX_FILES = 256
_NAME = re.compile(r"[a-z0-9_]{1,64}")

#: File name, beginning of its line, class.
_MARKS: tuple[tuple[str, str, MitigationClass], ...] = (
    ("spec_rstack_overflow", "Mitigation: Safe RET", MitigationClass.HEAVY_RETURN_TAX),
    # Up to 6.5, and in its stable kernels, the same state reads "Mitigation: safe RET, no microcode".
    ("spec_rstack_overflow", "Vulnerable: Safe RET, no microcode", MitigationClass.HEAVY_RETURN_TAX),
    ("retbleed", "Mitigation: untrained return thunk", MitigationClass.HEAVY_RETURN_TAX),
    ("retbleed", "Mitigation: Stuffing", MitigationClass.INTEL_RETURN_TAX),
    ("indirect_target_selection", "Mitigation: Aligned branch/return thunks", MitigationClass.INTEL_RETURN_TAX),
    ("spectre_v2", "Mitigation: Retpolines", MitigationClass.INDIRECT_CALL_TAX),
)
#: Hardware that guards its own indirect branches. Before Linux 6.3 the text named Intel's alone.
_HARDWARE_IBRS = re.compile(r"Mitigation: (?:Enhanced / Automatic|Enhanced|Automatic) IBRS(?P<with_retpolines> \+ Retpolines)?")


def read_mitigations(tree: HostTree) -> Observed[Mitigations]:
    """Every vulnerability's line, and the classes that follow."""
    names = tree.names(_FOLDER)
    if names.value is None:
        return unseen_like(names)
    files = [name for name in names.value if _NAME.fullmatch(name)]
    if len(files) > _MAX_FILES:
        return unseen(_FOLDER, f"holds {len(files)} files, expected at most {_MAX_FILES}")
    lines: dict[str, str] = {}
    for name in files:
        text = tree.read_text(f"{_FOLDER}/{name}")
        if text.value is None:
            return unseen_like(text)  # a class derived from some of the lines could be too low
        lines[name] = one_line(text.value)
    if "spectre_v2" not in lines:
        return unseen(_FOLDER, "holds no spectre_v2: the kernel does not tell its mitigations")
    return seen(_FOLDER, Mitigations(lines=lines, classes=parse_classes(lines)))


def parse_classes(lines: Mapping[str, str]) -> tuple[MitigationClass, ...]:
    """The classes of a host, most costly first; none where the lines name no mitigation that is known here."""
    classes = {mark for name, start, mark in _MARKS if lines.get(name, "").casefold().startswith(start.casefold())}
    hardware = _HARDWARE_IBRS.match(lines.get("spectre_v2", ""))
    if hardware is not None and hardware["with_retpolines"]:
        classes.add(MitigationClass.INDIRECT_CALL_TAX)
    if hardware is not None and not classes:
        classes.add(MitigationClass.LOW)
    return tuple(mitigation_class for mitigation_class in MitigationClass if mitigation_class in classes)
