"""What is read of an image is remembered for as long as none of its files changes, and only so much of it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file that hold no tests

from small_modules import ANOTHER_BUILD_ID, BUILD_ID, compile_module, put

from exitguard.facts.machine_code import child, memory
from exitguard.facts.machine_code.child import read_images
from exitguard.facts.machine_code.files import ImageFiles
from exitguard.facts.machine_code.process import ReaderProcess
from exitguard.facts.tree import HostTree
from exitguard.model.machine_code import MachineCode
from exitguard.model.record import Observed, unseen

IMAGE = ImageFiles(code="/kvm.ko")


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered yet, and files count as left alone as soon as they are written."""
    memory.forget()
    monkeypatch.setattr(memory, "_SETTLED_NANOSECONDS", -1)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Two builds."""
    folder = tmp_path_factory.mktemp("modules")
    return compile_module(folder), compile_module(folder, build_id=ANOTHER_BUILD_ID)


@pytest.fixture
def root(tmp_path: Path, modules: tuple[bytes, bytes]) -> Path:
    put(tmp_path, "/kvm.ko", modules[0])
    put(tmp_path, "/base", "no BTF")
    put(tmp_path, "/map", "no symbols")
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ReaderProcess]:
    processes: list[ReaderProcess] = []

    def start(*, memory_bytes: int) -> ReaderProcess:
        processes.append(ReaderProcess(memory_bytes=memory_bytes))
        return processes[-1]

    monkeypatch.setattr(child, "ReaderProcess", start)
    return processes


def read(root: Path, image: ImageFiles = IMAGE, *, seconds: float = 60, pulse: Callable[[], None] = lambda: None) -> Observed[MachineCode]:
    return read_images(HostTree(root), [image], use_base=True, seconds_per_image=seconds, pulse=pulse)[0]


def test_file_that_nobody_touched_is_read_once(root: Path, started: list[ReaderProcess]) -> None:
    first = read(root)
    assert first.get().build_id == BUILD_ID
    assert read(root) is first
    assert len(started) == 1


def test_file_in_place_of_another_is_read_anew(root: Path, started: list[ReaderProcess], modules: tuple[bytes, bytes]) -> None:
    read(root)
    put(root, "/new.ko", modules[1]).replace(root / "kvm.ko")
    assert read(root).get().build_id == ANOTHER_BUILD_ID
    assert len(started) == 2


def test_file_that_was_written_over_with_its_time_put_back_is_read_anew(root: Path, modules: tuple[bytes, bytes]) -> None:
    file = root / "kvm.ko"
    before = file.stat()
    read(root)
    file.write_bytes(modules[1])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert read(root).get().build_id == ANOTHER_BUILD_ID


@pytest.mark.parametrize("path", ["/base", "/map"])
def test_change_of_any_file_of_a_reading_counts(root: Path, started: list[ReaderProcess], path: str) -> None:
    image = replace(IMAGE, btf_base="/base", system_map="/map")
    read(root, image)
    read(root, image)
    assert len(started) == 1
    put(root, path, "another")
    read(root, image)
    assert len(started) == 2


def test_same_file_for_another_base_is_another_reading(root: Path, started: list[ReaderProcess]) -> None:
    for image in (IMAGE, replace(IMAGE, btf_base="/base"), replace(IMAGE, btf_base="/base", base_of_build=BUILD_ID)):
        read(root, image)
    assert len(started) == 3


def test_file_that_was_just_written_is_not_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SETTLED_NANOSECONDS", 3600 * 10**9)
    read(root)
    assert memory._remembered == {}


def test_image_that_took_too_long_is_not_tried_again(root: Path, started: list[ReaderProcess]) -> None:
    hung = read(root, seconds=0.2, pulse=lambda: os.kill(started[0].pid, signal.SIGSTOP))
    assert hung.reason == "took longer than 0.2 s"
    assert read(root) is hung
    assert len(started) == 1


def test_image_whose_reader_was_killed_is_tried_again(root: Path, started: list[ReaderProcess]) -> None:
    assert "was killed" in (read(root, pulse=lambda: os.kill(started[0].pid, signal.SIGKILL)).reason or "")
    assert read(root).known


def test_missing_file_is_looked_for_again(root: Path, modules: tuple[bytes, bytes]) -> None:
    image = ImageFiles(code="/later.ko")
    assert not read(root, image).known
    put(root, "/later.ko", modules[1])
    assert read(root, image).get().build_id == ANOTHER_BUILD_ID


def test_few_readings_are_remembered_and_the_oldest_goes_first() -> None:
    for number in range(memory._MOST_REMEMBERED + 5):
        memory.remember(((str(number), 0, 0, 0, 0, 0),), unseen("x", str(number)))
    assert len(memory._remembered) == memory._MOST_REMEMBERED
    assert memory.recall((("4", 0, 0, 0, 0, 0),)) is None
    assert memory.recall((("5", 0, 0, 0, 0, 0),)) == unseen("x", "5")


def test_failure_is_tried_again_after_some_hours_and_a_reading_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was too busy for once must not stay unknown for as long as its daemon lives."""
    failed: memory.Key = (("/a", 1, 1, 1, 1, 1),)
    read: memory.Key = (("/b", 1, 1, 1, 1, 1),)
    memory.remember(failed, unseen("/a", "took longer than 30 s"))
    memory.remember(read, Observed(source="/b", value=MachineCode(path="/b")))
    assert memory.recall(failed) is not None
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 7 * 3600)
    assert memory.recall(failed) is None
    assert memory.recall(read) is not None
