"""Kernels decided by machine code, for a person: the answer, what decides it, and the instructions to check it by."""

from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.documents import InspectedKernel, KernelInspection
from exitguard.model.kernel import Body, KernelState
from exitguard.report.listing import deciding_sentence, listing_lines
from exitguard.report.page import DOUBT, FAINT, STRONG, Look, columns, counted, hanging, heading, indented, labelled, render
from exitguard.report.table_host import KERNEL_STYLES
from exitguard.report.words import label

#: More kernels than this are told in a table, one line each.
MOST_IN_FULL = 3
#: What is enough of a build-id to tell two apart by eye; the whole one is in the block of a kernel, and in the JSON form.
_SHOWN_DIGITS = 12
_LIMIT_CHARACTERS = 600
#: What asks for something goes first.
_ORDER = (KernelState.AFFECTED, KernelState.UNKNOWN, KernelState.GUARDED, KernelState.EQUIVALENT, KernelState.NOT_AFFECTED)
_PMU_OFF = {
    Body.A: "on AMD the call walks every counter for a PMU-off guest too; on Intel there is none to walk then, and it returns",
    Body.B: "the call finds no counter to walk for a PMU-off guest, and returns: what it costs until then is left",
}


def kernel_table(inspection: KernelInspection, look: Look, *, exit_code: int, listing: bool | None = None) -> str:
    """The kernels one after another; where there are many, in a table.

    `listing`: whether the instructions are shown. True shows those of many kernels too, each in a block of its own; None does not.
    """
    return render(look, _parts(inspection, look, exit_code, listing=listing))


def _parts(inspection: KernelInspection, look: Look, exit_code: int, *, listing: bool | None) -> Iterator[RenderableType]:
    kernels = inspection.kernels
    if len(kernels) > 1:
        yield _sum(inspection, look, exit_code)
    if len(kernels) > MOST_IN_FULL and listing is not True:
        yield Text()
        yield _summary(inspection, look)
        yield from _doubts(inspection, look)
        return
    for kernel in kernels:
        if len(kernels) > 1:
            yield Text()
        yield from _block(kernel, look, listing=listing is not False)


def _sum(inspection: KernelInspection, look: Look, exit_code: int) -> Text:
    builds = _builds(inspection)
    count = Counter(kernel.state for kernel, *_ in builds)
    states = " · ".join(f"{count[state]} {label(state)}" for state in _ORDER if count[state])
    return Text.assemble(look.own(counted(len(builds), "kernel"), STRONG), look.own(f"  {states}"), look.own(f"\nexit {exit_code}", FAINT))


def _builds(inspection: KernelInspection) -> list[list[InspectedKernel]]:
    """The kernels, those together that are the same build in several files."""
    builds: dict[object, list[InspectedKernel]] = {}
    for kernel in inspection.kernels:
        only = kernel.path if kernel.build_id is None or kernel.release is None else None
        builds.setdefault((kernel.release, kernel.build_id, kernel.state, kernel.body, only), []).append(kernel)
    return list(builds.values())


def _block(kernel: InspectedKernel, look: Look, *, listing: bool) -> Iterator[RenderableType]:
    yield Text.assemble(_state(kernel, look, bold=True), "  ", _release(kernel, look))
    rows = [("why", look.foreign(kernel.reason, DOUBT if kernel.state is KernelState.UNKNOWN else "", limit_characters=_LIMIT_CHARACTERS))]
    if kernel.unlock is not None:
        rows.append(("to see it", look.foreign(kernel.unlock, limit_characters=_LIMIT_CHARACTERS)))
    if kernel.state is KernelState.AFFECTED and kernel.body is not None:
        rows.append(("PMU off", look.own(_PMU_OFF[kernel.body])))
    rows.append(("build-id", _build_id(kernel, look)))
    rows.append(("read", look.foreign(kernel.path, limit_characters=_LIMIT_CHARACTERS)))
    yield labelled(look, rows)
    if not listing or kernel.reading is None or not kernel.reading.listing:
        return
    yield Text()
    yield from listing_lines(kernel.reading, look)
    if kernel.state is not KernelState.UNKNOWN:  # else it would only say once more why
        yield Text()
        yield indented(look.own(deciding_sentence(kernel.reading)))


def _state(kernel: InspectedKernel, look: Look, *, bold: bool) -> Text:
    style = KERNEL_STYLES[kernel.state]
    text = look.own(label(kernel.state), f"bold {style}" if bold else style)
    return text if kernel.body is None else text.append_text(look.own(f", {label(kernel.body)}", style))


def _release(kernel: InspectedKernel, look: Look) -> Text:
    return look.foreign(kernel.release) if kernel.release is not None else look.own("release not known", DOUBT)


def _build_id(kernel: InspectedKernel, look: Look, *, digits: int | None = None) -> Text:
    if kernel.build_id is not None:
        return look.foreign(kernel.build_id[:digits])
    return look.own("none" if kernel.reading is not None else "not known", DOUBT)


def _summary(inspection: KernelInspection, look: Look) -> RenderableType:
    """One line a build."""
    builds = _builds(inspection)
    namesakes = Counter(kernel.release for kernel, *_ in builds)
    rows = []
    for kernel, *more in builds:
        name = _release(kernel, look)
        if more:
            name.append_text(look.own(f"  {counted(len(more) + 1, 'file')}", FAINT))
        if kernel.release is None or namesakes[kernel.release] > 1:
            name.append_text(Text.assemble("\n", look.foreign(kernel.path, FAINT, limit_characters=_LIMIT_CHARACTERS)))
        rows.append((name, _state(kernel, look, bold=False), _build_id(kernel, look, digits=_SHOWN_DIGITS)))
    return columns(look, ("kernel", "state", "build-id"), rows)


def _doubts(inspection: KernelInspection, look: Look) -> Iterator[RenderableType]:
    """Why a state is not known: the one thing that a table of states leaves open."""
    unknown = [kernel for kernel in inspection.kernels if kernel.state is KernelState.UNKNOWN]
    if not unknown:
        return
    yield heading(look, "Unknown")
    for kernel in unknown:
        text = Text()
        if not kernel.reason.startswith(kernel.path):
            text = Text.assemble(look.foreign(kernel.path, limit_characters=_LIMIT_CHARACTERS), look.own(": ", FAINT))
        text.append_text(look.foreign(kernel.reason, DOUBT, limit_characters=_LIMIT_CHARACTERS))
        if kernel.unlock is not None:
            text.append_text(look.own(" To see it: ", FAINT)).append_text(look.foreign(kernel.unlock, limit_characters=_LIMIT_CHARACTERS))
        yield hanging(look, "?", text, style=DOUBT)
