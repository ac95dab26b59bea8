# SPDX-License-Identifier: Apache-2.0
"""A QEMU program that is not installed yet: whether it switches KVM's PMU off, and which machine types it has."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.exitguard_host_step import last_words

#: Where Debian and EL have the QEMU that libvirt starts on x86.
PROGRAMS = ("usr/bin/qemu-system-x86_64", "usr/libexec/qemu-kvm", "usr/bin/qemu-kvm")
#: What QEMU says where setting KVM_PMU_CAP_DISABLE fails (383374465155, QEMU 11.0): a build that holds it makes the attempt.
CAPABILITY_STRING = b"Failed to set KVM_PMU_CAP_DISABLE"
_CHUNK_BYTES = 1 << 20
_RUN_SECONDS = 60
_HEADING = "Supported machines are:"
#: Guests of these architectures run on the programs above.
_ARCHITECTURES = ("x86_64", "i686", "")


class ProgramError(Exception):
    """Nothing can be told of the program; the message says why and what to do."""


@dataclass(frozen=True)
class MachineTypes:
    """What `-machine help` lists."""

    names: frozenset[str]
    deprecated: frozenset[str]


def find_programs(tree: Path) -> tuple[str, ...]:
    """The paths below `tree` of the QEMU programs in it; links count only where they lead to a file of the tree."""
    inside = str(tree.resolve()) + os.sep
    return tuple(path for path in PROGRAMS if (tree / path).is_file() and str((tree / path).resolve()).startswith(inside))


def has_capability_string(path: Path) -> bool:
    """Whether the file holds the message of the capability; it is read in pieces."""
    kept = b""
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK_BYTES)
            if not chunk:
                return False
            if CAPABILITY_STRING in kept + chunk:
                return True
            kept = chunk[-len(CAPABILITY_STRING) :]


def read_machine_types(tree: Path, program: str, uid: int, gid: int) -> MachineTypes:
    """What the program in `tree` lists, run by a user without privileges with the libraries of the tree before the host's.

    Raises ProgramError where it does not run.
    """
    limits = ["prlimit", "--core=0", "--fsize=0", f"--cpu={_RUN_SECONDS}"]
    user = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
    command = [*limits, *user, str(tree / program), "-machine", "help"]
    libraries = ":".join(_library_folders(tree))
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/nonexistent", "LD_LIBRARY_PATH": libraries}
    try:
        with subprocess.Popen(  # noqa: S603 - by argument list
            command,
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=_RUN_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise ProgramError(f"/{program} of the pinned packages did not end within {_RUN_SECONDS} seconds") from None
    except OSError as error:
        raise ProgramError(f"{command[0]} cannot be started: {error.strerror}") from None
    said = err.decode("utf-8", "replace")
    if process.returncode != 0:
        raise ProgramError(f"/{program} of the pinned packages does not run: {why_not_running(said, process.returncode)}")
    return parse_machine_help(out.decode("utf-8", "replace"))


def _library_folders(tree: Path) -> list[str]:
    """The folders of the tree that the loader would look into after an installation (ld.so(8)), as far as they are there."""
    patterns = ("lib/*-linux-gnu", "usr/lib/*-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib")
    return [str(path) for pattern in patterns for path in sorted(tree.glob(pattern)) if path.is_dir()]


def why_not_running(said: str, exit_code: int) -> str:
    """The reason in what the loader or the program said."""
    library = re.search(r"error while loading shared libraries: ([^:\s]+)", said)
    version = re.search(r"([^/\s]+): version `([^']+)' not found", said)
    if library:
        return f"it needs {library.group(1)}, which neither this host nor the pinned packages have. Pin the package that holds it, too"
    if version:
        return (
            f"it needs {version.group(1)} with {version.group(2)}, which neither this host nor the pinned packages have. Pin the package "
            "that holds it, too"
        )
    return f"exit code {exit_code}: {last_words(said)}"


def parse_machine_help(text: str) -> MachineTypes:
    """The names in the output of `-machine help`, aliases among them, since they are listed like any other. Raises ProgramError."""
    _, heading, listed = text.partition(_HEADING)
    lines = [line.split(None, 1) for line in listed.splitlines() if line.strip()]
    if not heading or not lines:
        raise ProgramError(f"the program listed no machine types; expected {_HEADING!r}")
    deprecated = frozenset(words[0] for words in lines if re.search(r"\(deprecated\b", words[-1]))
    return MachineTypes(frozenset(words[0] for words in lines), deprecated)


def machines_in_use(guests: Iterable[tuple[str, Iterable[tuple[str, str]]]], planned: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Each machine type with the names of the guests that use it; those of the plan that no guest has are of `the plan`.

    `guests` are names, each with (architecture, machine type).
    """
    users: dict[str, set[str]] = {}
    for name, machines in guests:
        for architecture, machine in machines:
            if architecture in _ARCHITECTURES:
                users.setdefault(machine, set()).add(name)
    for machine in planned:
        users.setdefault(machine, {"the plan"})
    return {machine: tuple(sorted(names)) for machine, names in sorted(users.items())}


def missing_machines(in_use: Mapping[str, tuple[str, ...]], offered: MachineTypes) -> dict[str, tuple[str, ...]]:
    """Those in use that the program has not."""
    return {machine: names for machine, names in in_use.items() if machine not in offered.names}
