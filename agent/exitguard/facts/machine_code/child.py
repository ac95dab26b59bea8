"""Readings of kernel images, made by a process apart: what is hostile in a file harms nobody but that process.

One process reads all images, one after another. Where it dies, hangs or needs too much over one of them, that image is not seen, for
that reason, and a fresh process goes on with the next. The files are opened here, as everything of a host's tree is.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import TracebackType
from typing import BinaryIO, Self

from exitguard.facts.machine_code.files import ImageFiles
from exitguard.facts.machine_code.memory import Key, identity, recall, remember
from exitguard.facts.machine_code.messages import PACKAGES, Answer, FileRole, Request
from exitguard.facts.machine_code.process import NotStarted, ReaderProcess, Unanswered
from exitguard.facts.tree import HostTree, one_line, unlock_for, why
from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed, unseen

SECONDS_PER_IMAGE = 30.0
MEMORY_BYTES = 512 << 20
_REASON_CHARACTERS = 400
_UNLOCK = "pip install 'exitguard[kernel]'"
_SYSFS = "/sys/"


def _nothing() -> None:
    return None


def read_images(
    tree: HostTree,
    images: Sequence[ImageFiles],
    *,
    use_base: bool,
    seconds_per_image: float = SECONDS_PER_IMAGE,
    memory_bytes: int = MEMORY_BYTES,
    pulse: Callable[[], None] = _nothing,
) -> tuple[Observed[MachineCode], ...]:
    """What each image shows, in the order asked, or why it shows nothing.

    `use_base`: whether BTF is read, a second source for the place of enable_pmu, at the cost of a second file. `pulse` is called at
    least twice a second while this waits; it may raise to end it.
    """
    with Readings(tree, images, use_base=use_base, seconds_per_image=seconds_per_image, memory_bytes=memory_bytes, pulse=pulse) as readings:
        return readings.finish()


@dataclass
class Readings:
    """Readings under way: the first begins at once, and goes on while its caller does something else. To be left with `with`."""

    tree: HostTree
    images: Sequence[ImageFiles]
    use_base: bool = False
    seconds_per_image: float = SECONDS_PER_IMAGE
    memory_bytes: int = MEMORY_BYTES
    pulse: Callable[[], None] = _nothing
    _answers: list[Observed[MachineCode]] = field(default_factory=list)
    _process: ReaderProcess | None = None
    #: The image that the process was asked about, and what to remember the answer under.
    _asked: tuple[ImageFiles, Key] | None = None

    def __enter__(self) -> Self:
        try:
            self._go_on()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end()

    def finish(self) -> tuple[Observed[MachineCode], ...]:
        """Every answer, in the order asked."""
        while self._asked is not None and self._process is not None:
            image, key = self._asked
            answer = self._process.answer(self.pulse)
            if isinstance(answer, Unanswered):
                self._end()
            observed = _observed(image, answer)
            # What a package or a moment's shortage kept from being read may be read in the next audit.
            if answer.lasting if isinstance(answer, Unanswered) else answer.missing is None:
                remember(key, observed)
            self._answers.append(observed)
            self._asked = None
            self._go_on()
        return tuple(self._answers)

    def _go_on(self) -> None:
        """Answer what is known, up to the first image that has to be read; ask for that."""
        while self._asked is None and len(self._answers) < len(self.images):
            image = self.images[len(self._answers)]
            with ExitStack() as stack:
                known = self._known_or_asked(image, stack)
            if known is not None:
                self._answers.append(known)

    def _known_or_asked(self, image: ImageFiles, stack: ExitStack) -> Observed[MachineCode] | None:
        try:
            files = self._open(image, stack)
        except OSError as error:
            return unseen(_shown(error.filename or image.code), why(error), unlock=unlock_for(error))
        key: Key = (
            *(self._identity(image, role, file) for role, file in files.items()),
            image.base_of_build,
            image.base_was_named,
        )
        known = recall(key) or _missing(image)
        if known is not None:
            return known
        request = Request(
            path=_shown(image.code),
            roles=tuple(files),
            base_of_build=image.base_of_build,
            base_was_named=image.base_was_named,
            seconds=math.ceil(self.seconds_per_image),
        )
        try:
            if self._process is None:
                self._process = ReaderProcess(memory_bytes=self.memory_bytes)
        except NotStarted as error:
            return unseen(_shown(image.code), str(error))
        self._process.ask(request, files, seconds=self.seconds_per_image)
        self._asked = (image, key)
        return None

    def _open(self, image: ImageFiles, stack: ExitStack) -> dict[FileRole, BinaryIO]:
        """The files of one image, open. Raises OSError for one that is needed, with its path."""
        paths: dict[FileRole, str | None] = {"code": image.code, "system_map": image.system_map}
        if self.use_base:
            paths["btf_base"] = image.btf_base
        files: dict[FileRole, BinaryIO] = {}
        for role, path in paths.items():
            if path is None:
                continue
            try:
                files[role] = stack.enter_context(self.tree.open(path))
            except OSError as error:
                # A second source less, and names less: the reader says what that costs.
                if role == "code" or (role == "btf_base" and image.base_was_named):
                    error.filename = path
                    raise
        return files

    def _identity(self, image: ImageFiles, role: FileRole, file: BinaryIO) -> tuple[str, int, int, int, int, int]:
        path = {"code": image.code, "btf_base": image.btf_base, "system_map": image.system_map}[role] or ""
        return identity(path, file, timeless=self.tree.is_this_machine and path.startswith(_SYSFS))

    def _end(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


def _observed(image: ImageFiles, answer: Answer | Unanswered) -> Observed[MachineCode]:
    path = _shown(image.code)
    if isinstance(answer, Unanswered):
        return unseen(path, answer.reason)
    if answer.reading is not None:
        # The place is what we asked for, whatever the answer says.
        obstacle = None if answer.reading.obstacle is None else _reason(answer.reading.obstacle)
        return Observed(source=path, value=answer.reading.model_copy(update={"path": path, "obstacle": obstacle}))
    if answer.missing is not None:
        return _needs(path, answer.missing)
    if answer.fault is not None:
        return unseen(path, _reason(f"the reader failed over it: {answer.fault}"))
    return unseen(path, _reason(answer.obstacle or "the reader gave no reason"))


def _missing(image: ImageFiles) -> Observed[MachineCode] | None:
    """That a package is not installed: no process is started to say so."""
    missing = next((package for module, package in PACKAGES.items() if find_spec(module) is None), None)
    return None if missing is None else _needs(_shown(image.code), missing)


def _needs(path: str, package: str) -> Observed[MachineCode]:
    return unseen(path, f"needs the extra exitguard[kernel]: {one_line(package)} is not installed", unlock=_UNLOCK)


def _reason(text: str) -> str:
    return one_line(text, limit_characters=_REASON_CHARACTERS) or "no reason was given"


def _shown(path: str) -> str:
    """A path as text; a name that is not UTF-8 could not be stored."""
    return path.encode("utf-8", "replace").decode()
