# SPDX-License-Identifier: Apache-2.0
"""What is set for a kernel module: modprobe's configuration, the kernel command line, and the module as it is loaded now."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

#: In the order of precedence: a file hides those of the same name in later folders (modprobe.d(5); kmod 30 knows these).
FOLDERS = ("etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
#: What kstrtobool() takes (lib/kstrtox.c): the first letter decides, and the second of `on` and `off`.
_TRUE, _FALSE = ("y", "t", "1", "on"), ("n", "f", "0", "of")


class ConfigurationError(Exception):
    """The configuration cannot be read, or cannot be understood; the message says where."""


@dataclass(frozen=True)
class Setting:
    """A parameter that is set somewhere. `value` is None where it is no boolean, `line` 0 for the kernel command line."""

    file: str
    line: int
    value: bool | None
    text: str

    @property
    def where(self) -> str:
        """`/etc/modprobe.d/kvm.conf:3`."""
        return f"{self.file}:{self.line}" if self.line else self.file


def read_settings(sysroot: Path, module: str, parameter: str) -> tuple[Setting, ...]:
    """Every place that sets the parameter of a loadable module. Raises ConfigurationError."""
    found = []
    for shown, path in _files(sysroot):
        found += parse_configuration(shown, _read(path), module, parameter)
    return (*found, *read_command_line(sysroot, module, parameter))


def read_command_line(sysroot: Path, module: str, parameter: str) -> tuple[Setting, ...]:
    """What the running kernel was told; modprobe hands it to loadable modules as well."""
    return parse_command_line(_read(sysroot / "proc/cmdline"), module, parameter)


def _files(sysroot: Path) -> list[tuple[str, Path]]:
    """The name that the host has for each file, and where it is; in the order in which modprobe reads them."""
    by_name: dict[str, tuple[str, Path]] = {}
    for folder in FOLDERS:
        try:
            paths = list((sysroot / folder).iterdir())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigurationError(f"/{folder} cannot be read: {error.strerror}") from None
        for path in paths:
            if path.name.endswith(".conf"):
                by_name.setdefault(path.name, (f"/{folder}/{path.name}", path))
    return [by_name[name] for name in sorted(by_name)]


def parse_configuration(file: str, text: str, module: str, parameter: str) -> list[Setting]:
    """The settings in one file. Raises ConfigurationError for a command that loads the module in modprobe's place."""
    found = []
    for number, line in _lines(text):
        words = line.split()
        if [_plain(word) for word in words[1:2]] != [_plain(module)]:
            continue
        if words[0] == "install":
            raise ConfigurationError(
                f"{file}:{number}: a command loads {module}, and whether it hands over options cannot be told: {line[:120]!r}"
            )
        if words[0] == "options":
            for word in words[2:]:
                name, equals, value = word.partition("=")
                if _plain(name) == _plain(parameter):
                    found.append(Setting(file, number, as_bool(value) if equals else True, word[:80]))
    return found


def _lines(text: str) -> list[tuple[int, str]]:
    """Lines with their numbers; one that ends in a backslash goes on in the next (modprobe.d(5))."""
    found: list[tuple[int, str]] = []
    begun, parts = 0, []
    for number, raw in enumerate(text.split("\n"), start=1):
        begun = begun or number
        if raw.endswith("\\"):
            parts.append(raw[:-1])
            continue
        line = " ".join([*parts, raw]).strip()
        if line and not line.startswith("#"):
            found.append((begun, line))
        begun, parts = 0, []
    return found


def parse_command_line(text: str, module: str, parameter: str) -> tuple[Setting, ...]:
    """The settings on a kernel command line; what stands after `--` is for the first process."""
    found = []
    for word in re.findall(r'(?:"[^"]*"|[^\s"])+', text):
        if word == "--":
            break
        name, equals, value = word.replace('"', "").partition("=")
        if _plain(name) == _plain(f"{module}.{parameter}"):
            found.append(Setting("/proc/cmdline", 0, as_bool(value) if equals else True, word[:80]))
    return tuple(found)


def as_bool(text: str) -> bool | None:
    """A module parameter of type bool, as the kernel reads it; None where it would refuse it."""
    lowered = text.strip('"').lower()
    if lowered.startswith(_TRUE):
        return True
    return False if lowered.startswith(_FALSE) else None


def _plain(name: str) -> str:
    return name.replace("-", "_")  # the kernel makes no difference (kernel/params.c, parameq)


@dataclass(frozen=True)
class LoadedModule:
    """How the module is there: `module`, `built_in` or `missing`; and its parameter as it is now, None where that is not known."""

    form: str
    value: bool | None
    #: Whether the module is loaded, and has no such parameter.
    lacks_parameter: bool = False


def read_module(sysroot: Path, module: str, parameter: str, release: str) -> LoadedModule:
    """The module as it is loaded, or as the kernel that runs has it on disk."""
    folder = sysroot / "sys/module" / module
    if not folder.is_dir():
        return LoadedModule(_form_on_disk(sysroot, module, release), None)
    # Only a module that was loaded has a state (kernel/module/sysfs.c).
    form = "module" if (folder / "initstate").exists() else "built_in"
    parameters = folder / "parameters"
    lacks = parameters.is_dir() and not (parameters / parameter).exists()
    return LoadedModule(form, as_bool(_read(parameters / parameter)), lacks)


def _form_on_disk(sysroot: Path, module: str, release: str) -> str:
    line = re.compile(rf"^(?:[^:\s]*/)?{re.escape(module)}\.ko(?:\.\w+)?(?::|$)", re.MULTILINE)
    for index, form in (("modules.builtin", "built_in"), ("modules.dep", "module")):
        for folder in ("lib/modules", "usr/lib/modules"):
            if line.search(_read(sysroot / folder / release / index)):
                return form
    return "missing"


def _read(path: Path) -> str:
    """The text of a file, "" where there is none. Raises ConfigurationError where it is closed."""
    try:
        with path.open("rb") as file:
            return file.read(16 << 20).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
