"""The frequency by which cycles become cores: what the processor is rated at, not what it runs at in this moment.

An assumption, and told as one: cores change their frequency, and the TSC counts at another one still.
"""

import re

from exitguard.facts.tree import HostTree
from exitguard.model.record import Observed, seen, unseen

_CPU = "/sys/devices/system/cpu/cpu0"
#: intel_pstate's base frequency in kHz (Documentation/admin-guide/pm/intel_pstate.rst), ACPI CPPC's nominal one in MHz.
_RATED = ((f"{_CPU}/cpufreq/base_frequency", 1_000), (f"{_CPU}/acpi_cppc/nominal_freq", 1_000_000))
_CPUINFO = "/proc/cpuinfo"
_LIMIT_BYTES = 32 << 20
_NUMBER = re.compile(r"[0-9]{1,10}")
_IN_NAME = re.compile(r"^model name\s*:.*@ ([0-9]{1,2}\.[0-9]{1,3})GHz", re.MULTILINE)
_MHZ = re.compile(r"^cpu MHz\s*:\s*([0-9]{1,5})\.([0-9]{3})", re.MULTILINE)
_LEAST, _MOST = 100_000_000, 10_000_000_000


def read_frequency(tree: HostTree) -> Observed[int]:
    """Hertz, with where they are from: what the kernel says that the processor is rated at, its name, or what it ran at."""
    for path, unit in _RATED:
        text = tree.read_text(path)
        if text.value is not None and _NUMBER.fullmatch(text.value.strip()):
            found = _within(path, int(text.value) * unit)
            if found.value is not None:  # some firmware says 0
                return found
    text = tree.read_text(_CPUINFO, limit_bytes=_LIMIT_BYTES)
    if text.value is None:
        return unseen(_CPUINFO, text.reason or "cannot be read")
    return parse_cpuinfo_frequency(text.value)


def parse_cpuinfo_frequency(text: str) -> Observed[int]:
    """The frequency in the first processor's name, else what it ran at when the file was read."""
    named = _IN_NAME.search(text)
    if named is not None:
        return _within(f"{_CPUINFO}: model name", round(float(named[1]) * 1000) * 1_000_000)
    running = _MHZ.search(text)
    if running is not None:
        return _within(f"{_CPUINFO}: cpu MHz, which changes", int(running[1]) * 1_000_000 + int(running[2]) * 1_000)
    return unseen(_CPUINFO, "names no frequency")


def _within(source: str, hertz: int) -> Observed[int]:
    if not _LEAST <= hertz <= _MOST:
        return unseen(source, f"says {hertz} Hz, which no processor runs at")
    return seen(source, hertz)
