"""The `exitguard` of a host of ssh_hosts.py: the product's own program on recorded hardware.

All hosts of the lab share this machine's kernel and processor, which may well leave nothing to save. So their kernel, KVM, processor and
mitigations come from recordings of tests/facts, joined to everything else as the product observes it: this host's identity, its
libvirt, its domains and their processes, its QEMU, its mark of maintenance. Nothing but the hardware is a double: each verb, `facts`
and `--version` included, is the product's.

    python recorded_exitguard.py FILE_WITH_THE_NAME_OF_A_KERNEL VERB [OPTION...]
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import recorded_hosts
from recorded_hosts import on_debian_12, on_linux_6_18, on_unknown_kernel

from exitguard import cycle
from exitguard.__main__ import main
from exitguard.facts.cpu import parse_cpu
from exitguard.facts.mitigations import parse_classes
from exitguard.model.documents import FactsDocument, Observation
from exitguard.model.host import Mitigations
from exitguard.model.record import seen

_RECORDED = Path(recorded_hosts.__file__).resolve().parents[1] / "facts"
_VULNERABILITIES = "/sys/devices/system/cpu/vulnerabilities"


class RecordedKernel(StrEnum):
    """What a host of the lab runs on, by the state that an audit finds."""

    AFFECTED = "affected"
    #: Affected, and a later kernel with the guard is installed.
    AFFECTED_GUARD_INSTALLED = "affected_guard_installed"
    GUARDED = "guarded"
    EQUIVALENT = "equivalent"
    UNKNOWN = "unknown"


def on_recorded_hardware(facts: FactsDocument, kernel: RecordedKernel) -> FactsDocument:
    """These facts as an AMD EPYC with this kernel would give them."""
    host = facts.host.model_copy(
        update={"cpu": parse_cpu(_text("cpuinfo/amd-epyc-svm")), "mitigations": seen(_VULNERABILITIES, _mitigations())}
    )
    on_epyc = facts.model_copy(update={"host": host})
    match kernel:
        case RecordedKernel.AFFECTED:
            return on_debian_12(on_epyc)
        case RecordedKernel.AFFECTED_GUARD_INSTALLED:
            return on_debian_12(on_epyc, helpful_kernel=True)
        case RecordedKernel.GUARDED:
            return on_debian_12(on_epyc, guard=True)
        case RecordedKernel.EQUIVALENT:
            return on_linux_6_18(on_epyc)
        case RecordedKernel.UNKNOWN:
            return on_unknown_kernel(on_epyc)


def _mitigations() -> Mitigations:
    """Written down by `grep .`: one `path:line` a line."""
    found = (line.partition(":") for line in _text("mitigations/amd-safe-ret-no-microcode").splitlines())
    lines = {Path(path).name: text for path, _, text in found}
    return Mitigations(lines=lines, classes=parse_classes(lines))


def _text(case: str) -> str:
    return (_RECORDED / case / "input").read_text()


def _run(kernel_file: Path) -> None:
    """The product's command line; what it collects gets the recorded hardware before anything else sees it."""
    kernel = RecordedKernel(kernel_file.read_text().strip())
    collect = cycle.collect

    def collect_on_recorded_hardware(*target: Any, **options: Any) -> Observation:
        observation = collect(*target, **options)
        return observation.model_copy(update={"facts": on_recorded_hardware(observation.facts, kernel)})

    cycle.collect = collect_on_recorded_hardware
    main()


if __name__ == "__main__":
    _run(Path(sys.argv.pop(1)))
