"""Kernels decided by their machine code alone: observe, judge. What `exitguard kernel inspect` does.

Files are read by a process apart, from the moment on that an `Inspection` is entered; so what is needed only later is imported only
then, while that process is at work. The memory of the running kernel is read only where that is asked for by name.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from exitguard.facts.boot import RELEASE
from exitguard.facts.machine_code.child import Readings
from exitguard.facts.machine_code.files import ImageFiles, files_of_paths, files_of_release
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.tree import HostTree
from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed, unseen

if TYPE_CHECKING:
    from exitguard.facts.kernel_code import KernelCode
    from exitguard.model.documents import InspectedKernel, KernelInspection
    from exitguard.model.host import KernelFacts

_MODULE_FOLDERS = ("/lib/modules", "/usr/lib/modules")
_IMAGES = ("/boot/vmlinuz-", "/boot/vmlinux-")
_MODULE_ENDINGS = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
_MOST_RELEASES_NAMED = 6
T = TypeVar("T")


class NothingInspected(Exception):  # noqa: N818 - what was named is not there, or is no kernel
    """Nothing was read, since what was asked for is not there; `sentences` say what, each of it."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = tuple(sentences)


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class InspectionRequest:
    """Which kernels to inspect."""

    #: Each a file, a folder with unpacked packages, or, where there is nothing of that name, the release of an installed kernel.
    arguments: tuple[str, ...] = ()
    #: What runs as KVM on this machine: its file, tied to it by build-id.
    running: bool = False
    #: What runs as it is in the kernel's memory instead. Takes root.
    live: bool = False
    #: The kernel that has the beginning of the modules' BTF, where it does not lie beside them.
    btf_base: Path | None = None


@dataclass
class Inspection:
    """Readings under way, to be left with `with`. Raises NothingInspected at its beginning.

    `pulse` is called at least twice a second while `finish` waits; it may raise to end it.
    """

    request: InspectionRequest
    tree: HostTree = field(default_factory=HostTree)
    pulse: Callable[[], None] = _nothing
    _images: list[ImageFiles] = field(default_factory=list)
    #: Installed releases that show nothing of KVM.
    _empty: list[str] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _readings: Readings | None = None
    _running: "KernelCode | None" = None

    def __enter__(self) -> Self:
        self._find()
        with ExitStack() as stack:
            self._readings = stack.enter_context(Readings(self.tree, self._images, use_base=True, pulse=self.pulse))
            if self.request.running and not self.request.live:
                self._running = stack.enter_context(self._code_of_running())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()

    @property
    def count(self) -> int:
        """How many kernels there are to tell of."""
        return len(self._images) + len(self._empty) + (1 if self.request.running else 0)

    def finish(self, *, observed_at: datetime) -> "KernelInspection":
        """What each kernel's code settles: files first, then releases, then what runs."""
        from exitguard.audit.inspection import judge_code
        from exitguard.model.documents import KernelInspection

        readings = self._readings.finish() if self._readings is not None else ()
        kernels = [judge_code(reading, image.release, observed_at) for image, reading in zip(self._images, readings, strict=True)]
        kernels += [judge_code(_without_kvm(release), release, observed_at) for release in self._empty]
        if self.request.live:
            kernels.append(self._live(observed_at))
        elif self._running is not None:
            kernels.append(self._file_of_running(self._running, observed_at))
        return KernelInspection(kernels=tuple(kernels))

    def _find(self) -> None:
        """The files of everything that was asked for. Raises NothingInspected."""
        paths, releases, wrong = self._told_apart()
        if wrong:
            raise NothingInspected(wrong)
        try:
            self._images += files_of_paths(paths, with_base=self.request.btf_base)
        except Obstacle as obstacle:
            raise NothingInspected([str(obstacle)]) from None
        for release in releases:
            files = files_of_release(self.tree, release)
            self._images += files
            if not files:
                self._empty.append(release)
        base = self.request.btf_base
        if base is not None:
            self._images = [_with_base(image, base) for image in self._images]
            if not any(image.base_was_named for image in self._images):
                raise NothingInspected([f"{base}: is of no use here: a base of BTF is for modules (kvm.ko), and none was named"])

    def _told_apart(self) -> tuple[list[Path], list[str], list[str]]:
        """The arguments that are paths, those that are releases, and what is wrong with the others."""
        paths: list[Path] = []
        releases: list[str] = []
        wrong: list[str] = []
        for argument in dict.fromkeys(self.request.arguments):
            if _is_path(argument):
                paths.append(Path(argument))
            elif self._is_installed(argument):
                releases.append(argument)
            else:
                wrong.append(self._absent(argument))
        return paths, releases, wrong

    def _is_installed(self, release: str) -> bool:
        if not RELEASE.fullmatch(release):
            return False
        places = (*(f"{folder}/{release}" for folder in _MODULE_FOLDERS), *(f"{image}{release}" for image in _IMAGES))
        return any(self.tree.exists(place) for place in places)

    def _absent(self, argument: str) -> str:
        names = self.tree.names(_MODULE_FOLDERS[0]).value or ()
        installed = [name for name in names if RELEASE.fullmatch(name)]
        shown = ", ".join(installed[:_MOST_RELEASES_NAMED]) + (", …" if len(installed) > _MOST_RELEASES_NAMED else "")
        there = f"installed are {shown}" if installed else "none is installed here"
        return (
            f"{argument}: there is no such file or folder, and no kernel of that release ({there}). Expected a kernel module, a vmlinux "
            "or a vmlinuz, a folder with unpacked packages, or a release"
        )

    def _code_of_running(self) -> "KernelCode":
        from exitguard.facts.kernel import read_architecture, read_release
        from exitguard.facts.kernel_code import KernelCode
        from exitguard.facts.kvm import read_kvm

        return KernelCode(self.tree, read_release(self.tree), read_architecture(self.tree), read_kvm(self.tree), (), self.pulse)

    def _file_of_running(self, running: "KernelCode", observed_at: datetime) -> "InspectedKernel":
        from exitguard.audit.inspection import judge_code, judge_patched
        from exitguard.audit.kernel import replaced_by_live_patch

        code, _ = running.finish()
        kernel = judge_code(code, running.release.value, observed_at)
        # What runs has this build-id even where its file cannot be found.
        kernel = kernel.model_copy(update={"build_id": kernel.build_id or running.kvm.build_id.value})
        patched = replaced_by_live_patch(_facts_of(running, code, self.tree)) if code.known else None
        return kernel if patched is None else judge_patched(kernel, patched, observed_at)

    def _live(self, observed_at: datetime) -> "InspectedKernel":
        from exitguard.audit.inspection import judge_code
        from exitguard.facts.kernel import read_release
        from exitguard.facts.machine_code.kernel_memory import read_live

        return judge_code(read_live(self.tree), read_release(self.tree).value, observed_at)


def _is_path(argument: str) -> bool:
    """Whether there is something of that name; what may not be looked at counts, and is told of when it is read."""
    try:
        os.lstat(argument)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _with_base(image: ImageFiles, base: Path) -> ImageFiles:
    if not image.code.endswith(_MODULE_ENDINGS):
        return image
    return replace(image, btf_base=str(base.absolute()), base_of_build=None, base_was_named=True)


def _without_kvm(release: str) -> Observed[MachineCode]:
    reason = "holds no kvm.ko, and no kernel that KVM is built into was found: expected one, or a package that brings it"
    return unseen(f"{_MODULE_FOLDERS[0]}/{release}", reason)


def _unasked() -> Observed[T]:
    return unseen("exitguard kernel inspect", "not asked for")


def _facts_of(running: "KernelCode", code: Observed[MachineCode], tree: HostTree) -> "KernelFacts":
    """The facts that tell whether a live patch runs instead of the file: nothing else of the host is looked at."""
    from exitguard.facts.livepatch import read_live_patches
    from exitguard.model.host import KernelFacts

    return KernelFacts(
        release=running.release,
        architecture=running.architecture,
        distribution=_unasked(),
        build_id=_unasked(),
        boot_id=_unasked(),
        installed=_unasked(),
        boots_next=_unasked(),
        live_patches=read_live_patches(tree),
        symbols=_unasked(),
        changelog=_unasked(),
        machine_code=code,
    )
