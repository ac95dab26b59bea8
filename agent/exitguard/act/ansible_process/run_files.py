"""The files of one run: `<directory>/<when>-<random>/`, mode 0700, and what of it outlives the run.

      mark            while processes of the run may be there: their mark, and where their ssh sockets are
      inputs/         while it runs: inventory and variables, mode 0600
      work/           while it runs: what ansible-runner and Ansible write for themselves
      output.txt      what Ansible said, bounded

Variables are never arguments, which every user of the machine can read. A host's go into `host_vars` beside a second inventory source
that names no host: Ansible lets what comes from a later source, and from host_vars, win over what the inventory itself says of a host,
and a host that the inventory does not have is not made up by it. Over them win only the common ones, which are extra variables.
Texts are marked as unsafe: what a host said of itself is never a template that is worked out on this machine.
"""

import json
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from exitguard.act.ansible_process.marked import Mark

#: So many runs are kept, the newest.
KEPT_RUNS = 20
_RUN = re.compile(r"\d{20}-[0-9a-f]{16}")
#: An address of a Unix socket has 108 bytes (unix(7)); ssh appends a hash and, while it makes it, a random name to the directory.
_SOCKETS_LIMIT_CHARACTERS = 60
_NO_SETTINGS = "# exitguard: no settings but those of the environment\n[defaults]\n"
_NO_HOSTS = "all:\n  children: {}\n"


@dataclass(frozen=True)
class RunFiles:
    """The directory of one run."""

    directory: Path
    mark: Mark

    @property
    def inputs(self) -> Path:
        return self.directory / "inputs"

    @property
    def work(self) -> Path:
        return self.directory / "work"

    @property
    def output(self) -> Path:
        return self.directory / "output.txt"

    @property
    def settings(self) -> Path:
        """A configuration of Ansible that says nothing."""
        return self.inputs / "ansible.cfg"

    @property
    def temporary(self) -> Path:
        return self.work / "tmp"

    def forget(self) -> None:
        """Remove all but the output: nothing of the run is left to be ended."""
        for path in (self.inputs, self.work, Path(self.mark.sockets)):
            shutil.rmtree(path, ignore_errors=True)
        _mark_file(self.directory).unlink(missing_ok=True)


def make_run_files(directory: Path) -> RunFiles:
    """A fresh directory for a run; the oldest ones make room. Raises OSError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for old in sorted(_runs(directory))[: -(KEPT_RUNS - 1)]:
        if not _mark_file(old).exists():
            shutil.rmtree(old, ignore_errors=True)
    path = directory / f"{time.time_ns():020d}-{secrets.token_hex(8)}"
    path.mkdir(mode=0o700)
    mark = secrets.token_hex(16)
    sockets = _sockets_directory(mark)
    _write(_mark_file(path), f"{mark}\n{sockets}\n")
    sockets.mkdir(mode=0o700)
    files = RunFiles(path, Mark(mark, str(sockets)))
    for needed in (files.inputs, files.work, files.temporary):
        needed.mkdir(mode=0o700)
    _write(files.settings, _NO_SETTINGS)
    return files


def unfinished_runs(directory: Path) -> Iterator[RunFiles]:
    """The runs whose processes nobody has seen the end of. Raises OSError."""
    for path in _runs(directory):
        with suppress(FileNotFoundError):
            mark, _, sockets = _mark_file(path).read_text(encoding="ascii", errors="replace").rstrip("\n").partition("\n")
            if Path(sockets).name != _sockets_directory(mark).name:
                # Written before anything was started: where it is not whole, nothing was.
                mark = secrets.token_hex(16)
                sockets = str(_sockets_directory(mark))
            yield RunFiles(path, Mark(mark, sockets))


def write_arguments(
    files: RunFiles,
    *,
    hosts: Iterable[str],
    inventory: Path | None,
    interpreter: str,
    variables: Mapping[str, Mapping[str, object]],
    common: Mapping[str, object],
) -> tuple[str, ...]:
    """Write inventory, limit and variables; the arguments of ansible-playbook that name them. Raises OSError, TypeError."""
    sources = [] if inventory is None else [str(inventory)]
    ours = files.inputs / "inventory"
    ours.mkdir(mode=0o700)
    if inventory is None:
        # The modules need what this interpreter has, and a place that does not depend on whose home is there.
        here = {"ansible_connection": "local", "ansible_python_interpreter": interpreter, "ansible_remote_tmp": str(files.temporary)}
        _write(ours / "hosts.yml", as_variables({"all": {"hosts": dict.fromkeys(hosts, here)}}))
    else:
        _write(ours / "hosts.yml", _NO_HOSTS)
    sources.append(str(ours / "hosts.yml"))
    for host, values in variables.items():
        # A directory a host: a file would be taken for the variables of a host with its whole name too.
        of_host = ours / "host_vars" / host
        of_host.parent.mkdir(mode=0o700, exist_ok=True)
        of_host.mkdir(mode=0o700)
        _write(of_host / "vars.json", as_variables(values))
    limit = files.inputs / "limit"
    _write(limit, "".join(f"{host}\n" for host in hosts))
    arguments = [word for source in sources for word in ("-i", source)]
    arguments += ["--limit", f"@{limit}"]
    if common:
        extra = files.inputs / "common.json"
        _write(extra, as_variables(common))
        arguments += ["-e", f"@{extra}"]
    return tuple(arguments)


def as_variables(values: Mapping[str, object]) -> str:
    """A file of variables for Ansible, every text in it marked as no template. Raises TypeError for what it could not hold exactly."""
    return json.dumps({_key(name): _literal(value) for name, value in values.items()}) + "\n"


def _literal(value: object) -> object:
    match value:
        case None | bool() | int():
            return value
        case str():
            # The YAML tag !unsafe would not do: behind it Ansible takes "off" for false and "1.10" for a number, quoted or not.
            return {"__ansible_unsafe": _whole(value)}
        case Mapping():
            return {_key(key): _literal(item) for key, item in value.items()}
        case bytes():
            pass
        case Iterable():
            return [_literal(item) for item in value]
    raise TypeError(f"expected a text, whole number, list or mapping for a variable of Ansible, not {type(value).__name__}")


def _key(key: object) -> str:
    if not isinstance(key, str) or key.startswith("__ansible_"):
        raise TypeError(f"expected a name for a variable of Ansible, not {key!r}")
    return _whole(key)


def _whole(text: str) -> str:
    """Without lone halves of characters, which Ansible could not write anywhere."""
    return text.encode("utf-8", "replace").decode()


def _runs(directory: Path) -> list[Path]:
    if not directory.exists():
        return []
    return [path for path in directory.iterdir() if _RUN.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def _mark_file(path: Path) -> Path:
    return path / "mark"


def _sockets_directory(mark: str) -> Path:
    """A place with a short name: the run's own directory may be too deep for a socket."""
    temporary = tempfile.gettempdir()
    return Path(temporary if len(temporary) <= _SOCKETS_LIMIT_CHARACTERS else "/tmp") / f"exitguard-{mark[:12]}"  # noqa: S108 - made with 0700, under a name nobody knows


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text, encoding="utf-8")
