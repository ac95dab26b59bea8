"""The host's part of the audit page: what runs there, and what could not be seen of it."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.documents import AuditReport, HostReport, KernelReport
from exitguard.model.host import QemuBinary, UnmanagedGuest
from exitguard.model.kernel import KernelState
from exitguard.model.rates import HostSavings
from exitguard.model.record import Observed
from exitguard.report.amounts import ANSWERS, amount
from exitguard.report.observed import Missing, missing
from exitguard.report.page import BAD, CALM, DOUBT, FAINT, GOOD, Look, counted, hanging, heading, indented, labelled
from exitguard.report.words import label

_MOST_PROGRAMS = 6
_MOST_GUESTS = 4
_MOST_MISSING = 20
KERNEL_STYLES = {
    KernelState.GUARDED: GOOD,
    KernelState.EQUIVALENT: GOOD,
    KernelState.NOT_AFFECTED: GOOD,
    KernelState.AFFECTED: BAD,
    KernelState.UNKNOWN: DOUBT,
}
#: Where the names of the model's fields alone would say too little.
_TOPICS = {"host.unmanaged": "guests outside libvirt"}


def host_section(host: HostReport, savings: HostSavings | None, look: Look) -> Iterator[RenderableType]:
    """Kernel, QEMU, KVM, libvirt, guests outside of it, CPU, and what is saved where that is known, one label each."""
    yield heading(look, "Host", label(host.target.kind))
    others = _unmanaged(host.unmanaged, look)
    yield labelled(
        look,
        [
            ("kernel", _kernel(host.kernel, look)),
            ("QEMU", _programs(host.qemu, look)),
            ("enable_pmu", _enable_pmu(host, look)),
            ("libvirt", _libvirt(host, look)),
            *([("others", others)] if others is not None else []),
            ("CPU", _cpu(host, look)),
            *([("savings", _savings(savings, look))] if savings is not None else []),
            ("id", _identity(host, look)),
        ],
    )


def unseen_section(report: AuditReport, look: Look) -> Iterator[RenderableType]:
    """What could not be observed, why, and what would show it."""
    gaps = missing(report)
    if not gaps:
        return
    yield heading(look, "Not seen", "not knowing is not passing")
    for gap in islice(gaps, _MOST_MISSING):
        yield hanging(look, "?", missing_text(gap, look), style=DOUBT)
    if len(gaps) > _MOST_MISSING:
        yield indented(look.own(f"… and {len(gaps) - _MOST_MISSING:,} more, see --format json", FAINT))


def missing_text(gap: Missing, look: Look) -> Text:
    """`kernel.symbols: permission denied (/proc/kallsyms). Unlock: run as root`."""
    many = f" ({counted(len(gap.within), 'time')})" if len(gap.within) > 1 else ""
    text = Text.assemble(
        look.own(f"{topics_in_words(gap)}{many}: ", DOUBT),
        look.foreign(gap.reason),
        look.own(" (", FAINT),
        look.foreign(gap.source, FAINT),
        look.own(")", FAINT),
    )
    if gap.unlock is not None:
        text.append_text(look.own(" To see it: ", FAINT)).append_text(look.foreign(gap.unlock))
    return text


def topics_in_words(gap: Missing) -> str:
    """All topics of a gap, by commas."""
    return ", ".join(topic_in_words(topic) for topic in gap.topics)


def topic_in_words(topic: str) -> str:
    """A path such as `host.kernel.boots_next` as `kernel boots next`; names that people type keep their underscores."""
    if topic in _TOPICS:
        return _TOPICS[topic]
    words = [part for part in topic.split(".") if part != "host"]
    return " ".join(word if word.startswith("enable_") else word.replace("_", " ") for word in words)


def unseen_mark(look: Look, observed: Observed[Any]) -> Text:
    """`not seen: reason`, in the colour of doubt."""
    return Text.assemble(look.own("not seen: ", DOUBT), look.foreign(observed.reason or "", DOUBT))


def _kernel(kernel: KernelReport, look: Look) -> Text:
    style = KERNEL_STYLES[kernel.state]
    text = look.own(label(kernel.state), f"bold {style}")
    if kernel.body is not None:
        text.append_text(look.own(f", {label(kernel.body)}", style))
    text.append("  ")
    text.append_text(look.foreign(kernel.release) if kernel.release is not None else look.own("release not known", DOUBT))
    text.append("\n").append_text(look.foreign(kernel.reason, limit_characters=400))
    if kernel.pending_reboot:
        release = look.foreign(kernel.pending_release) if kernel.pending_release else look.own("a better one")
        text.append_text(look.own("\npending reboot: ", DOUBT)).append_text(release).append_text(
            look.own(" is installed, and does not run yet")
        )
    for disagreement in kernel.disagreements:
        text.append_text(look.own("\nevidence disagrees: ", DOUBT)).append_text(look.foreign(disagreement, limit_characters=400))
    return text


def _savings(savings: HostSavings, look: Look) -> Text:
    word, style = ANSWERS[savings.worthwhile]
    saved, available = savings.now.saved_cycles_per_second, savings.now.available_cycles_per_second
    text = Text.assemble(look.own(word.lower(), style), look.own(f"  saved {amount(saved, None)}, available {amount(available, None)}"))
    return text.append_text(look.own("\n`exitguard savings` tells how that is known", FAINT))


def _programs(programs: Observed[tuple[QemuBinary, ...]], look: Look) -> Text:
    if programs.value is None:
        return unseen_mark(look, programs)
    if not programs.value:
        return look.own("no program found", DOUBT)
    lines = [_program(program, look) for program in programs.value[:_MOST_PROGRAMS]]
    if len(programs.value) > _MOST_PROGRAMS:
        lines.append(look.own(f"… and {len(programs.value) - _MOST_PROGRAMS:,} more", FAINT))
    return Text("\n").join(lines)


def _program(program: QemuBinary, look: Look) -> Text:
    version = program.version.value
    text = look.foreign(version.version) if version is not None else look.own("version not seen", DOUBT)
    text.append("  ").append_text(look.foreign(program.path, FAINT, limit_characters=100))
    match program.capability_string.value:
        case True:
            text.append_text(look.own("\nclears kvm->arch.enable_pmu for pmu=off", GOOD))
        case False:
            text.append_text(look.own("\nno KVM_PMU_CAP_DISABLE string: pmu=off alone may not reach KVM", DOUBT))
        case _:
            text.append("\n").append_text(unseen_mark(look, program.capability_string))
    if program.deleted:
        text.append_text(look.own("\nstill runs, though the file has been replaced", DOUBT))
    return text


def _enable_pmu(host: HostReport, look: Look) -> Text:
    match host.kvm.enable_pmu.value:
        case True:
            return look.own("Y: each guest's own setting decides")
        case False:
            return look.own("N: cleared for every guest of this host", CALM)
        case _:
            return unseen_mark(look, host.kvm.enable_pmu)


def _libvirt(host: HostReport, look: Look) -> Text:
    version = host.libvirt.daemon_version
    text = look.foreign(version.value) if version.value is not None else unseen_mark(look, version)
    if host.libvirt.driver.value is not None:
        text.append("  ").append_text(look.foreign(host.libvirt.driver.value))
    where = host.target.uri or host.target.sysroot
    if where is not None:
        text.append("  ").append_text(look.foreign(where, FAINT))
    return text


def _unmanaged(guests: Observed[tuple[UnmanagedGuest, ...]], look: Look) -> Text | None:
    """Guests that no definition speaks for; None where there are none, and where that is not known: unseen_section() says so."""
    if not guests.value:
        return None
    kinds = Counter((guest.command, guest.executable) for guest in guests.value).most_common()
    text = look.own(f"{counted(len(guests.value), 'guest')} outside libvirt: ", DOUBT)
    for place, ((command, executable), count) in enumerate(kinds[:_MOST_GUESTS]):
        text.append_text(look.own(f"{', ' if place else ''}{f'{count:,} ' if count > 1 else ''}", DOUBT))
        text.append_text(look.foreign(command, limit_characters=40))
        if executable is not None:
            text.append(" (").append_text(look.foreign(executable, FAINT, limit_characters=100)).append(")")
    if len(kinds) > _MOST_GUESTS:
        text.append_text(look.own(f" and {len(kinds) - _MOST_GUESTS:,} more kinds", FAINT))
    return text.append_text(look.own(f": nothing is known of {'its' if len(guests.value) == 1 else 'their'} PMU", DOUBT))


def _identity(host: HostReport, look: Look) -> Text:
    text = look.foreign(host.id, FAINT)
    return text.append_text(look.own(" (provisional: this audit is not stored)", FAINT)) if host.id_provisional else text


def _cpu(host: HostReport, look: Look) -> Text:
    cpu = host.cpu.value
    if cpu is None:
        return unseen_mark(look, host.cpu)
    text = look.foreign(cpu.model_name).append_text(look.own(f"  {counted(cpu.logical_cpus, 'logical CPU')}", FAINT))
    if host.mitigations.value is not None:
        text.append_text(look.own("\nmitigations: " + ", ".join(label(kind) for kind in host.mitigations.value.classes), FAINT))
    else:
        text.append_text(look.own("\nmitigations ", FAINT)).append_text(unseen_mark(look, host.mitigations))
    return text
