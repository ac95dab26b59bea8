"""How fast the measured core ran, where the machine shows it: core cycles for each tick of the TSC, and the governor's frequency."""

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from exitguard.facts.tree import HostTree
from exitguard.model.measurement import Check, CheckOutcome

#: <asm/msr-index.h>: counters of core cycles, and of cycles at the TSC's rate, both only while the core is not idle.
_IA32_MPERF, _IA32_APERF = 0xE7, 0xE8
_COUNTER = struct.Struct("=Q")
_WRAP = 1 << 64
_NUMBER = re.compile(r"[0-9]{1,10}")
_CPUINFO = "/proc/cpuinfo"
_CPUINFO_LIMIT_BYTES = 32 << 20
_FLAGS = re.compile(r"^flags\s*:(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class CoreCounters:
    """IA32_APERF and IA32_MPERF at one moment."""

    aperf: int
    mperf: int

    def cycles_per_tick_until(self, later: "CoreCounters") -> float | None:
        """The ratio between two readings; None where the TSC's counter did not move."""
        ticks = (later.mperf - self.mperf) % _WRAP
        return (later.aperf - self.aperf) % _WRAP / ticks if ticks else None


@dataclass(frozen=True)
class CoreClock:
    """The clocks of one CPU, as far as they can be read."""

    tree: HostTree
    cpu: int
    #: /dev/cpu/N/msr, open; None where it is not there, may not be read, or has no such register.
    registers: int | None

    def counters(self) -> CoreCounters | None:
        """Both counters now; None where they cannot be read."""
        if self.registers is None:
            return None
        try:
            aperf, mperf = (os.pread(self.registers, _COUNTER.size, place) for place in (_IA32_APERF, _IA32_MPERF))
        except OSError:
            return None
        if len(aperf) < _COUNTER.size or len(mperf) < _COUNTER.size:
            return None
        return CoreCounters(aperf=_COUNTER.unpack(aperf)[0], mperf=_COUNTER.unpack(mperf)[0])

    def kilohertz(self) -> int | None:
        """What the governor says that the CPU runs at; None where there is none."""
        text = self.tree.read_text(f"/sys/devices/system/cpu/cpu{self.cpu}/cpufreq/scaling_cur_freq").value
        return int(text) if text is not None and _NUMBER.fullmatch(text) and int(text) > 0 else None


@contextmanager
def core_clock(tree: HostTree, cpu: int, *, registers_path: str | None = None) -> Iterator[CoreClock]:
    """The clocks of `cpu`. The msr module is used where it is loaded, and never loaded for this."""
    path = registers_path or f"/dev/cpu/{cpu}/msr"
    try:
        # Only where its class is registered: to open the node otherwise would load the module.
        registers = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if registers_path or tree.exists("/sys/class/msr") else None
    except OSError:
        registers = None
    try:
        clock = CoreClock(tree=tree, cpu=cpu, registers=registers)
        yield clock if clock.counters() is not None else CoreClock(tree=tree, cpu=cpu, registers=None)
    finally:
        if registers is not None:
            os.close(registers)


def check_tsc(tree: HostTree) -> Check:
    """Whether the processor says that its TSC counts at one rate in every state (flags of arch/x86/include/asm/cpufeatures.h)."""
    text = tree.read_text(_CPUINFO, limit_bytes=_CPUINFO_LIMIT_BYTES)
    return parse_tsc(text.value) if text.value is not None else _tsc(CheckOutcome.NOT_VISIBLE, f"{_CPUINFO}: {text.reason}")


def parse_tsc(cpuinfo: str) -> Check:
    """The check out of /proc/cpuinfo. A machine that is itself a guest is often not told; then the observed rate has to do."""
    match = _FLAGS.search(cpuinfo)
    flags = set(match[1].split()) if match is not None else set()
    missing = [flag for flag in ("constant_tsc", "nonstop_tsc") if flag not in flags]
    if not missing:
        return _tsc(CheckOutcome.HELD, "the processor says constant_tsc and nonstop_tsc")
    if "hypervisor" in flags:
        return _tsc(CheckOutcome.NOT_VISIBLE, f"this machine is itself a guest, and is not told {' and '.join(missing)}")
    return _tsc(CheckOutcome.FAILED, f"the processor does not say {' and '.join(missing)}: its TSC may change its rate")


def _tsc(outcome: CheckOutcome, detail: str) -> Check:
    return Check(name="constant TSC", outcome=outcome, detail=detail)
