"""The machine code of the host's kernels: of the one that runs, from the file that is tied to it, and of those that are installed.

A file is tied to what runs by the build-id alone: the running kernel shows its own and its modules' to everybody. A file of the same
release may be another build, which was installed over the one that runs; it is told as what a reboot would start.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from exitguard.facts.machine_code.child import Readings
from exitguard.facts.machine_code.files import ImageFiles, files_of_release, is_module
from exitguard.facts.tree import HostTree, unseen_like
from exitguard.model.host import KvmFacts
from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed, unseen

#: Each costs a process some tenths of a second; older ones are there to go back to.
MOST_INSTALLED = 4
_SOURCE = "machine code"
_ARCHITECTURE = "x86_64"
_EXPECTED = "expected kvm.ko, or the image of a kernel that KVM is built into"
#: What is enough of a build-id to tell two apart by eye.
_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class InstalledCode:
    """What the files of one release show, or why nothing; neither where they are what runs."""

    reading: MachineCode | None = None
    reason: str | None = None


@dataclass
class KernelCode:
    """Readings of all kernels of a host. They begin with `with`, and go on while the rest of the host is read."""

    tree: HostTree
    release: Observed[str]
    architecture: Observed[str]
    kvm: KvmFacts
    #: The releases that could be booted, oldest first.
    installed: Sequence[str]
    #: Called while this waits; it may raise to end it.
    pulse: Callable[[], None]
    _files: dict[str, tuple[ImageFiles, ...]] = field(init=False)
    _readings: Readings = field(init=False)

    def __enter__(self) -> Self:
        newest = [each for each in reversed(self.installed) if each != self.release.value][:MOST_INSTALLED]
        running = [self.release.value] if self.release.value is not None and self._why_nothing_runs() is None else []
        wanted = [] if self._is_foreign else [*running, *newest]
        self._files = {release: self._files_of(release) for release in wanted}
        images = [image for files in self._files.values() for image in files]
        self._readings = Readings(self.tree, images, use_base=True, pulse=self.pulse).__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._readings.__exit__(kind, error, traceback)

    def finish(self) -> tuple[Observed[MachineCode], Mapping[str, InstalledCode]]:
        """What runs, and what each installed release has."""
        answers = iter(self._readings.finish())
        readings = {release: tuple(next(answers) for _ in files) for release, files in self._files.items()}
        found = {release: self._installed_code(release, readings.get(release)) for release in self.installed}
        return self._running_code(readings.get(self.release.value or "", ())), found

    @property
    def _is_foreign(self) -> bool:
        # A host's file tree may not say; then the files themselves do.
        return self.architecture.known and self.architecture.value != _ARCHITECTURE

    def _files_of(self, release: str) -> tuple[ImageFiles, ...]:
        files = files_of_release(self.tree, release)
        # The running kernel shows its BTF at little cost; to unpack another one's image for it takes seconds and hundreds of megabytes.
        return files if release == self.release.value else tuple(replace(image, btf_base=None) for image in files)

    def _why_nothing_runs(self) -> Observed[MachineCode] | None:
        """Why no file can be tied to what runs as KVM; None where one may be."""
        if self._is_foreign:
            return unseen(_SOURCE, self._foreign_reason)
        for needed in (self.release, self.kvm.module):
            if not needed.known:
                return unseen_like(needed)
        if self.kvm.build_id.value is None:
            unknown: Observed[MachineCode] = unseen_like(self.kvm.build_id)
            return unknown.model_copy(update={"reason": f"{unknown.reason}: without it no file can be tied to what runs"})
        return None

    @property
    def _foreign_reason(self) -> str:
        return f"the kernel is for {self.architecture.value}: only {_ARCHITECTURE} is read"

    def _running_code(self, readings: Sequence[Observed[MachineCode]]) -> Observed[MachineCode]:
        obstacle = self._why_nothing_runs()
        if obstacle is not None:
            return obstacle
        if not readings:
            return unseen(f"/lib/modules/{self.release.value}", f"holds no file of what runs: {_EXPECTED}")
        tied = [reading for reading in readings if self._runs(reading)]
        # A kernel may lie there with its symbols and without.
        best = next((reading for reading in tied if reading.value is not None and reading.value.obstacle is None), None)
        if best is not None or tied:
            return best or tied[0]
        first = next((reading for reading in readings if reading.value is None), readings[0])
        return first if first.value is None else unseen(first.source, self._another_build(first.value))

    def _another_build(self, reading: MachineCode) -> str:
        runs = (self.kvm.build_id.value or "")[:_SHOWN_DIGITS]
        if reading.build_id is None:
            return f"has no build-id, so it cannot be told whether it is what runs, whose build-id begins with {runs}"
        return (
            f"is another build than what runs (build-id {reading.build_id[:_SHOWN_DIGITS]}…, and {runs}… runs): "
            "the package was installed anew since the host or the module was started"
        )

    def _installed_code(self, release: str, readings: Sequence[Observed[MachineCode]] | None) -> InstalledCode:
        if self._is_foreign:
            return InstalledCode(reason=self._foreign_reason)
        if readings is None and release == self.release.value:
            return InstalledCode(reason=f"which build of it runs is not known: {_reason_of(self._why_nothing_runs())}")
        if readings is None:
            return InstalledCode(reason=f"not read: only the {MOST_INSTALLED} newest kernels are, beside the one that runs")
        if not readings:
            return InstalledCode(reason=f"holds no file to read: {_EXPECTED}")
        if release == self.release.value and any(self._runs(reading) for reading in readings):
            return InstalledCode()
        if len(readings) > 1 and is_module(readings[0].source):
            return InstalledCode(reason=f"has several modules kvm, and which would be loaded is not known: {_sources(readings)}")
        known = [reading.value for reading in readings if reading.value is not None]
        if not known:
            return InstalledCode(reason=f"{readings[0].source}: {_reason_of(readings[0])}")
        best = next((reading for reading in known if reading.obstacle is None), known[0])
        if release == self.release.value and best.build_id is None:
            return InstalledCode(reason=f"{best.path}: {self._another_build(best)}")
        return InstalledCode(reading=best.model_copy(update={"listing": ()}))

    def _runs(self, reading: Observed[MachineCode]) -> bool:
        return reading.value is not None and reading.value.build_id is not None and reading.value.build_id == self.kvm.build_id.value


def _sources(readings: Sequence[Observed[MachineCode]]) -> str:
    return ", ".join(reading.source for reading in readings)


def _reason_of(observed: Observed[MachineCode] | None) -> str:
    if observed is None or observed.reason is None:
        return "no reason"
    return observed.reason if observed.unlock is None else f"{observed.reason} ({observed.unlock})"
