"""The process that reads kernel images: `python -m exitguard.facts.machine_code`, which facts/machine_code/child.py starts.

What it reads may be hostile, so it does nothing else: it has little memory, writes no file, and ends with the process that started it.
Its standard input is a socket on which requests and open files come, its standard output one line of JSON a request.
"""

import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import BinaryIO

from exitguard.facts.machine_code.container import read_elf
from exitguard.facts.machine_code.image import load_image, section_of
from exitguard.facts.machine_code.messages import PACKAGES, REQUEST_LIMIT_BYTES, Answer, FileRole, Request
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.machine_code.skip import read_skip
from exitguard.model.machine_code import MachineCode

_OK = 0
_EXHAUSTED = 1
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_NICE = 10
_MOST_LIKELY_TO_BE_KILLED = "1000"  # proc_pid_oom_score_adj(5)
_FILES_AT_MOST = 3
#: System.map of a kernel with every symbol has some 10 MB, the BTF of one some 8 MB.
_SYSTEM_MAP_LIMIT_BYTES = 64 << 20
_RAW_BTF_LIMIT_BYTES = 64 << 20
_RAW_BTF = b"\x9f\xeb"  # BTF_MAGIC (include/uapi/linux/btf.h), little endian
#: Written when there may be no memory left to make it.
_EXHAUSTED_LINE = Answer(exhausted=True).model_dump_json().encode() + b"\n"


def main() -> int:
    """Answer requests until there are no more."""
    confine(memory_bytes=int(sys.argv[1]))
    requests = socket.socket(fileno=os.dup(0))
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed is no answer
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, REQUEST_LIMIT_BYTES, _FILES_AT_MOST)
        if not message:
            return _OK
        request = Request.model_validate_json(message)
        limit_processor_time(request.seconds)
        files = {role: os.fdopen(descriptor, "rb") for role, descriptor in zip(request.roles, descriptors, strict=True)}
        try:
            line = answer(request, files).model_dump_json().encode() + b"\n"
        except MemoryError:
            line = _EXHAUSTED_LINE
        finally:
            for file in files.values():
                file.close()
        _write(answers, line)
        if line is _EXHAUSTED_LINE:
            return _EXHAUSTED


def confine(*, memory_bytes: int) -> None:
    """Take from this process what it does not need. Where the host forbids one of it, the host confines it already."""
    with suppress(OSError, ImportError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (0, 0))
    with suppress(OSError):
        os.nice(_NICE)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123 - no path to build
        file.write(_MOST_LIKELY_TO_BE_KILLED)


def limit_processor_time(seconds: int) -> None:
    """So many seconds of processor time from now on. Who asked waits no longer than that; this is for when nobody waits any more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, most))


def answer(request: Request, files: Mapping[FileRole, BinaryIO]) -> Answer:
    """What the files of one request show. Raises MemoryError alone."""
    try:
        return Answer(reading=_read(request, files))
    except Obstacle as obstacle:
        return Answer(obstacle=str(obstacle))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the outermost edge: whatever a hostile file brings about, the answer says so
        module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        return Answer(missing=PACKAGES[module]) if module in PACKAGES else Answer(fault=f"{type(error).__name__}: {error}")


def _read(request: Request, files: Mapping[FileRole, BinaryIO]) -> MachineCode:
    system_map = files["system_map"].read(_SYSTEM_MAP_LIMIT_BYTES) if "system_map" in files else None
    image = load_image(read_elf(files["code"], name="the file"), path=request.path, system_map=system_map)
    base = None
    # A vmlinux has the whole of its BTF itself.
    if "btf_base" in files and image.btf is not None and request.base_of_build in (None, image.build_id):
        try:
            base = _base(files["btf_base"])
        except Obstacle as obstacle:
            if request.base_was_named:
                raise Obstacle(f"the kernel that was named for its BTF: {obstacle}") from None
    return read_skip(image, btf_base=base)


def _base(file: BinaryIO) -> bytes:
    """The BTF that the module's continues: raw, or out of the kernel that has it."""
    head = file.read(len(_RAW_BTF))
    if head == _RAW_BTF:
        return head + file.read(_RAW_BTF_LIMIT_BYTES)
    file.seek(0)
    section = section_of(read_elf(file, name="it"), ".BTF")
    if section is None:
        raise Obstacle("it has no section .BTF")
    return section


def _write(descriptor: int, line: bytes) -> None:
    view = memoryview(line)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    # Nothing here has to be put away, and what a hostile file left behind might take its time.
    os._exit(main())
