"""What playbooks noted of a cloud: stored image properties that they set, and what canaries showed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from exitguard.model.cloud import Canary, RemediedInstance
from exitguard.model.record import Record

R = TypeVar("R", bound=Record)
_LIMIT_BYTES = 64 * 1024
_MOST_FILES = 1_000_000
#: How many files that are not as they should be are named.
_MOST_NAMED = 10


def read_remedied(directory: Path, cloud: str) -> tuple[tuple[RemediedInstance, ...], tuple[str, ...]]:
    """What was set on instances of this cloud, and a sentence for each file that does not say so."""
    found, problems = _read(directory / cloud / "instances", RemediedInstance)
    return tuple(each for each in found if each.cloud == cloud), problems


def read_canaries(directory: Path, cloud: str) -> tuple[tuple[Canary, ...], tuple[str, ...]]:
    """What canaries in this cloud showed, and a sentence for each file that does not say so."""
    found, problems = _read(directory / cloud / "canaries", Canary)
    return tuple(each for each in found if each.cloud == cloud), problems


def _read(directory: Path, record: type[R]) -> tuple[tuple[R, ...], tuple[str, ...]]:
    found, problems = [], []
    try:
        for path in _files(directory):
            try:
                with path.open("rb") as file:
                    found.append(record.model_validate_json(file.read(_LIMIT_BYTES)))
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                where = ".".join(str(part) for part in first["loc"]) or "the whole"
                reason = f"{where}: {first['msg']}. Expected what its playbook wrote; remove it if it is damaged"
                problems.append(f"{_shown(path)}: not read: {reason}")
            except OSError as error:
                problems.append(f"{_shown(path)}: not read: {(error.strerror or str(error)).lower()}")
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{_shown(directory)}: not read: {(error.strerror or str(error)).lower()}")
    if len(problems) > _MOST_NAMED:
        more = f"{_shown(directory)}: {len(problems) - _MOST_NAMED} more files not read"
        return tuple(found), (*problems[:_MOST_NAMED], more)
    return tuple(found), tuple(problems)


def _shown(path: Path) -> str:
    """A path as text; bytes that are none become marks."""
    return os.fsencode(path).decode("utf-8", "replace")


def _files(directory: Path) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        names = sorted(entry.name for entry, _ in zip(entries, range(_MOST_FILES), strict=False) if entry.is_file(follow_symlinks=False))
    return (directory / name for name in names if name.endswith(".json"))
