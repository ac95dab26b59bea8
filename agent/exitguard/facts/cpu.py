"""The CPU, as /proc/cpuinfo shows it (arch/x86/kernel/cpu/proc.c)."""

import re
from typing import Literal

from exitguard.facts.tree import HostTree, one_line, unseen_like
from exitguard.model.host import Cpu
from exitguard.model.record import Observed, seen, unseen

_CPUINFO = "/proc/cpuinfo"
#: Some 2 kB a logical CPU: room for 16,000 of them.
_LIMIT_BYTES = 32 << 20
_NUMBER = re.compile(r"[0-9]{1,9}")
_PROCESSOR = re.compile(r"^processor\s*:", re.MULTILINE)


def read_cpu(tree: HostTree) -> Observed[Cpu]:
    """Vendor, model and virtualisation of the first logical CPU, and how many there are."""
    text = tree.read_text(_CPUINFO, limit_bytes=_LIMIT_BYTES)
    return parse_cpu(text.value) if text.value is not None else unseen_like(text)


def parse_cpu(text: str) -> Observed[Cpu]:
    """The CPU of an x86 cpuinfo; for another architecture's, or one cut short, the reason why there is none."""
    first, *_ = re.split(r"\n\s*\n", text, maxsplit=1)
    fields: dict[str, str] = {}
    for line in first.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if "vendor_id" not in fields or "cpu family" not in fields:
        return unseen(_CPUINFO, "not an x86 processor: there is no vendor_id and cpu family")
    numbers = {name: fields.get(name, "") for name in ("cpu family", "model", "stepping")}
    missing = [name for name, value in numbers.items() if not _NUMBER.fullmatch(value)]
    # The kernel writes "unknown" for a stepping of 0 on CPUs without CPUID level 1.
    if missing == ["stepping"] and numbers["stepping"] == "unknown":
        numbers["stepping"], missing = "0", []
    if missing:
        return unseen(_CPUINFO, f"expected numbers for {', '.join(missing)}")
    flags = set(fields.get("flags", "").split())
    return seen(
        _CPUINFO,
        Cpu(
            vendor=one_line(fields["vendor_id"]),
            model_name=one_line(fields.get("model name", "")),
            family=int(numbers["cpu family"]),
            model=int(numbers["model"]),
            stepping=int(numbers["stepping"]),
            microcode=one_line(fields.get("microcode", "")),
            logical_cpus=sum(1 for _ in _PROCESSOR.finditer(text)),
            virtualization=_virtualization(flags),
            hypervisor="hypervisor" in flags,
        ),
    )


def _virtualization(flags: set[str]) -> Literal["svm", "vmx", "none"]:
    if "svm" in flags:
        return "svm"
    return "vmx" if "vmx" in flags else "none"
