"""Builds decided by `exitguard kernel inspect`, written down for the hosts of a fleet: `--save`."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from exitguard import __version__
from exitguard.cli.output import write_result
from exitguard.cli.refusal import Refusal
from exitguard.model.documents import InspectedKernel, KernelInspection
from exitguard.model.finding import EXIT_ERROR
from exitguard.model.kernel import KernelState
from exitguard.policy.build_list import new_builds_text, with_builds
from exitguard.policy.load import read_kernels
from exitguard.policy.schema import BuildVerdict, Kernels, Provenance
from exitguard.policy.yaml_source import parse_yaml
from exitguard.report.page import counted
from exitguard.report.text import visible

_LONGEST_RELEASE, _LONGEST_NOTE = 200, 2000


def expect_builds_file(file: Path) -> None:
    """Nothing where builds could be saved in `file`. Raises the ProblemsError of a file there that is no good kernels file."""
    _read(file)


def save_builds(inspection: KernelInspection, file: Path) -> tuple[str, ...]:
    """Add every decided build to the kernels file, or begin one; sentences that say what was saved and what was not.

    Raises Refusal where a build is decided otherwise already: then nothing is saved.
    """
    decided, unsaved = _decided(inspection)
    with _alone(file):
        text, known = _read(file)
        there = {build.build_id: (index, build) for index, build in enumerate(known.builds if known is not None else ())}
        source = parse_yaml(text, str(file))
        contradictions = [
            f"{source.problem(('builds', there[build.build_id][0]), '').where}: {_contradiction(there[build.build_id][1], build, kernel)}"
            for build, kernel in decided.values()
            if build.build_id in there and there[build.build_id][1].verdict != build.verdict
        ]
        if contradictions:
            nothing = "exitguard: nothing was saved. Find out which of the two is right; take the build out of the file to decide it anew."
            raise Refusal(*contradictions, nothing, code=EXIT_ERROR)
        new = [build for build, _ in decided.values() if build.build_id not in there]
        if new:
            write_result(new_builds_text(new) if known is None else with_builds(text, str(file), new), file)
    return (_outcome(file, len(new), len(decided) - len(new)), *unsaved)


def _outcome(file: Path, new: int, old: int) -> str:
    if new:
        already = f"; {counted(old, 'other')} {'was' if old == 1 else 'were'} there already" if old else ""
        return f"Saved in {file}: {counted(new, 'build')}{already}."
    return f"Nothing new for {file}: {counted(old, 'build')} there already." if old else f"Nothing to save: {file} was left as it is."


def _decided(inspection: KernelInspection) -> tuple[dict[str, tuple[BuildVerdict, InspectedKernel]], list[str]]:
    """The builds by build-id, and a sentence for each kernel that is none. Raises Refusal where two say otherwise of one build."""
    decided: dict[str, tuple[BuildVerdict, InspectedKernel]] = {}
    unsaved: list[str] = []
    for kernel in inspection.kernels:
        if kernel.state is KernelState.UNKNOWN:
            unsaved.append(f"Not saved: {kernel.path}: its state is unknown.")
            continue
        if kernel.build_id is None:
            unsaved.append(f"Not saved: {kernel.path}: it has no build-id of its own that a host could recognise it by.")
            continue
        try:
            build = _verdict(kernel, kernel.build_id)
        except ValidationError:
            unsaved.append(f"Not saved: {kernel.path}: its build-id is not one of 16 to 64 hexadecimal digits.")
            continue
        first, of = decided.setdefault(build.build_id, (build, kernel))
        if first.verdict != build.verdict:
            both = f"{first.verdict_in_words} by {of.path}, {build.verdict_in_words} by {kernel.path}"
            raise Refusal(
                f"exitguard: nothing was saved: build-id {build.build_id} is {both}. One is not the file it seems.", code=EXIT_ERROR
            )
    return decided, unsaved


def _verdict(kernel: InspectedKernel, build_id: str) -> BuildVerdict:
    return BuildVerdict(
        build_id=build_id,
        release=visible(kernel.release or "not known", limit_characters=_LONGEST_RELEASE, ascii_only=True),
        state=kernel.state,
        body=kernel.body,
        provenance=Provenance.LAB,
        note=visible(f"By machine code, exitguard {__version__}: {kernel.reason}.", limit_characters=_LONGEST_NOTE, ascii_only=True),
    )


def _contradiction(known: BuildVerdict, build: BuildVerdict, kernel: InspectedKernel) -> str:
    there = f"{known.verdict_in_words} (by {known.provenance.value}: {known.note})"
    here = f"{build.verdict_in_words}, by the machine code of {kernel.path} ({kernel.reason})"
    return f"expected {here}, found build-id {build.build_id} as {there}"


def _read(file: Path) -> tuple[str, Kernels | None]:
    """The text and content of a kernels file; no content where there is none yet."""
    if not os.path.exists(file):  # noqa: PTH110 - what may not be looked at cannot be written to either, which the writing says
        return "", None
    return read_kernels(file)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Two that save at once do it one after the other: each would else write what it read before the other wrote."""
    with ExitStack() as stack:
        with suppress(OSError):  # no such folder, which the writing will say; or a file system without locks
            descriptor = os.open(file.resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
