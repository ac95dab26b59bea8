"""The real domains of this machine, as if they ran on another host: kernel and KVM come from recordings of tests/facts."""

from pathlib import Path

from exitguard.facts.changelog import search_changelog
from exitguard.facts.kernel import parse_symbols
from exitguard.facts.kvm import read_kvm
from exitguard.facts.tree import HostTree
from exitguard.model.documents import FactsDocument
from exitguard.model.host import Changelog, InstalledKernel, KernelFacts, KvmFacts
from exitguard.model.record import Observed, seen, unseen

_RECORDED = Path(__file__).resolve().parents[1] / "facts"
_MARKERS = ("skip PMU event trigger when guest PMU is disabled",)


def on_debian_12(facts: FactsDocument, *, guard: bool = False, enable_pmu: bool = True, helpful_kernel: bool = False) -> FactsDocument:
    """Debian 12's 6.1, body A: affected, or guarded by what its package's changelog says."""
    case = "rpm-with-guard" if guard else "debian12-6.1.192-2"
    entries = search_changelog([(_RECORDED / "changelog" / case / "input").read_bytes()], _MARKERS).entries
    installed = (InstalledKernel(release="6.1.0-56-amd64", guard_entries=()),) + (
        (InstalledKernel(release="7.2.13-amd64", guard_entries=("a later build with the guard",)),) if helpful_kernel else ()
    )
    kernel = facts.host.kernel.model_copy(
        update={
            "release": seen("/proc/sys/kernel/osrelease", "6.1.0-56-amd64"),
            "symbols": _symbols("debian12-6.1-kvm-module"),
            "changelog": seen(
                "changelog", Changelog(package="linux-image-6.1.0-56-amd64", guard_entries=tuple(entry.line for entry in entries))
            ),
            "installed": seen("/lib/modules", installed),
            "live_patches": seen("/sys/kernel/livepatch", ()),
        }
    )
    return _replace(facts, kernel, _kvm("debian12-6.1-module", enable_pmu=enable_pmu))


def on_linux_6_18(facts: FactsDocument) -> FactsDocument:
    """6.18 with KVM built in: equivalent."""
    kernel = facts.host.kernel.model_copy(
        update={
            "release": seen("/proc/sys/kernel/osrelease", "6.18.15"),
            "symbols": _symbols("kvm-built-in-6.18"),
            "changelog": unseen("changelog", "no package owns this kernel"),
            "live_patches": seen("/sys/kernel/livepatch", ()),
        }
    )
    return _replace(facts, kernel, _kvm("built-in-6.18", enable_pmu=True))


def on_unknown_kernel(facts: FactsDocument) -> FactsDocument:
    """Debian 12's 6.1 for somebody who may not read its symbols, nor its package's changelog."""
    hidden = on_debian_12(facts)
    unreadable = {"symbols": unseen("/proc/kallsyms", "permission denied"), "changelog": unseen("changelog", "permission denied")}
    return _replace(hidden, hidden.host.kernel.model_copy(update=unreadable), hidden.host.kvm)


def _symbols(case: str) -> Observed[tuple[str, ...]]:
    return parse_symbols((_RECORDED / "kallsyms" / case / "input").read_bytes())


def _kvm(case: str, *, enable_pmu: bool) -> KvmFacts:
    recorded = read_kvm(HostTree(_RECORDED / "kvm" / case / "tree"))
    return recorded.model_copy(update={"enable_pmu": seen("/sys/module/kvm/parameters/enable_pmu", enable_pmu)})


def _replace(facts: FactsDocument, kernel: KernelFacts, kvm: KvmFacts) -> FactsDocument:
    return facts.model_copy(update={"host": facts.host.model_copy(update={"kernel": kernel, "kvm": kvm})})
