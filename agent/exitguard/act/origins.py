"""The hashes of what a plan is carried out with: playbooks, roles and modules, and the inventory."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from exitguard.model.canonical import record_hash

#: Left out: what Python and editors leave beside the files.
_NO_PART = ("__pycache__",)
#: Beside an inventory file Ansible reads these as well.
_BESIDE_INVENTORY = ("group_vars", "host_vars")
_LIMIT_FILES = 20_000
_LIMIT_BYTES = 256 * 1024 * 1024


class OriginsError(Exception):
    """What a plan would be carried out with cannot be read; the message says what, and what to do."""


def playbooks_hash(directory: Path) -> str:
    """Of every file below `directory` by its path there and its content: playbooks, roles, library, module_utils. Raises OriginsError."""
    return _hash(directory, [directory])


def inventory_hash(inventory: Path) -> str:
    """Of an inventory file or directory, and of the group_vars and host_vars beside it. Raises OriginsError."""
    if not inventory.exists():
        raise OriginsError(f"{inventory}: there is no such file. Expected an Ansible inventory: give the path of one with --inventory.")
    top = inventory if inventory.is_dir() else inventory.parent
    beside = [top / name for name in _BESIDE_INVENTORY if (top / name).is_dir() and inventory.is_file()]
    return _hash(top, [inventory, *beside])


def _hash(top: Path, roots: list[Path]) -> str:
    contents: dict[str, str] = {}
    left = _LIMIT_BYTES
    try:
        for path in (file for root in roots for file in _files(root)):
            with path.open("rb") as file:
                content = file.read(left + 1)
            left -= len(content)
            contents[str(path.relative_to(top))] = hashlib.sha256(content).hexdigest()
            if left < 0 or len(contents) > _LIMIT_FILES:
                raise OriginsError(f"{top}: expected at most {_LIMIT_FILES} files of {_LIMIT_BYTES} bytes together, found more.")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OriginsError(f"{error.filename}: {reason}. Expected a file that this user may read.") from error
    return record_hash(contents)


def _files(root: Path) -> Iterator[Path]:
    """The files of a tree in any order, symbolic links to files followed as Ansible would."""
    if root.is_file():
        yield root
        return
    for directory, names, files in os.walk(root, onerror=_raise):
        names[:] = [name for name in names if name not in _NO_PART]
        yield from (Path(directory, name) for name in files if not name.endswith((".pyc", "~", ".swp")))


def _raise(error: OSError) -> None:
    raise error
