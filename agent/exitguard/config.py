"""The agent's own settings, and where each came from: a file, the environment, or the default.

The file is `--config`, else $EXITGUARD_CONFIG, else /etc/exitguard/config.yaml where there is one. EXITGUARD_STATE_DIR and
EXITGUARD_CONNECT then have the last word; an empty variable counts as none. Paths in a file are absolute: a daemon has no
directory that an operator would expect them to start from. A variable is set in a shell, and its path starts where that is.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from exitguard.policy.load import read_source
from exitguard.policy.problem import Problem, ProblemsError, bounded_problems
from exitguard.policy.validation import shown, validate
from exitguard.policy.yaml_source import SourceError, YamlSource, YamlValue

SYSTEM_CONFIG = Path("/etc/exitguard/config.yaml")
SYSTEM_STATE_DIR = Path("/var/lib/exitguard")
_DECIMAL = re.compile(r"[0-9]{1,6}\.[0-9]{1,6}")
#: The settings that the environment may overrule, and by which variable.
_VARIABLES: Mapping[str, str] = {"state_dir": "EXITGUARD_STATE_DIR", "connect": "EXITGUARD_CONNECT"}
_ENVIRONMENT = "environment"


class ConfigError(ProblemsError):
    """Settings that nothing may run on."""


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError("expected an absolute path")
    return path


def _number(value: object) -> object:
    """policy/yaml_source.py leaves 2.5 as text, so that no version is read as a fraction; here a fraction is meant."""
    return float(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else value


def _libvirt_uri(uri: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s\x00-\x1f\x7f]*", uri):
        raise ValueError("expected a libvirt URI such as qemu:///system")
    return uri


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseModel):
    """config.yaml. An unknown key is an error, since a misspelt setting must not silently do nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: AbsolutePath = Field(description="where the agent keeps its database and its identity")
    connect: Annotated[str, Field(max_length=500), AfterValidator(_libvirt_uri)] | None = Field(
        default=None, description="the libvirt URI to audit; null for libvirt's system daemon on this host"
    )
    policy_files: tuple[AbsolutePath, ...] = Field(default=(), description="policy files instead of the shipped ones")
    waiver_files: tuple[AbsolutePath, ...] = ()
    call_timeout_seconds: Annotated[float, BeforeValidator(_number), Field(ge=0.5, le=60)] = Field(
        default=5.0, description="how long one libvirt call may take before its domain counts as stuck"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class OriginKind(StrEnum):
    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"


@dataclass(frozen=True)
class Origin:
    """Where one setting's value came from; `where` is `file:line`, the variable, or empty for a default."""

    setting: str
    kind: OriginKind
    where: str

    def __str__(self) -> str:
        match self.kind:
            case OriginKind.DEFAULT:
                return "default"
            case OriginKind.FILE:
                return self.where
            case OriginKind.ENVIRONMENT:
                return f"environment {self.where}"


@dataclass(frozen=True)
class LoadedSettings:
    """The settings, and one origin for each, in the order of `Settings`."""

    settings: Settings
    origins: tuple[Origin, ...]
    #: The file that was read; None where there is none.
    file: Path | None

    def origin(self, setting: str) -> Origin:
        """Where `setting` came from. Raises KeyError for a name that is no setting."""
        for origin in self.origins:
            if origin.setting == setting:
                return origin
        raise KeyError(setting)


def load_settings(
    path: Path | None, environ: Mapping[str, str], *, user_id: int | None = None, system_config: Path = SYSTEM_CONFIG
) -> LoadedSettings:
    """The settings from the file that applies and from `environ`. Raises ConfigError with all problems.

    `path` is the `--config` that was given, or None; `user_id` is whose state directory is the default, this process's if None.
    """
    problems: list[Problem] = []
    file = _file_that_applies(path, environ, system_config)
    source = _read(file, problems)
    from_file = source.data if isinstance(source.data, dict) else {}
    from_environment = _values_of(environ, problems)
    default_state_dir = _default_state_dir(environ, os.geteuid() if user_id is None else user_id)
    defaults: dict[str, YamlValue] = {"state_dir": str(default_state_dir or SYSTEM_STATE_DIR)}
    if default_state_dir is None and "state_dir" not in {**from_file, **from_environment}:
        nowhere = "expected state_dir in the configuration, EXITGUARD_STATE_DIR, or a HOME to keep it under, found none of them"
        problems.append(Problem(file=_ENVIRONMENT, line=None, path="HOME", message=nowhere))

    # One by one, so that a bad value of the file is told even where the environment overrules it.
    environment = YamlSource(_ENVIRONMENT, from_environment, {(setting,): 1 for setting in from_environment})
    for origin, values in ((source, from_file), (environment, from_environment)):
        try:
            validate(Settings, origin, {**defaults, **values})
        except SourceError as error:
            problems.extend(_in_environment(problem) if origin is environment else problem for problem in error.problems)
    if problems:
        raise ConfigError(bounded_problems(problems))
    settings = validate(Settings, source, {**defaults, **from_file, **from_environment})
    origins = tuple(_origin(setting, source, from_file, from_environment) for setting in Settings.model_fields)
    return LoadedSettings(settings, origins, file)


def _values_of(environ: Mapping[str, str], problems: list[Problem]) -> dict[str, YamlValue]:
    """The settings that the environment overrules."""
    values: dict[str, YamlValue] = {}
    for setting, variable in _VARIABLES.items():
        text = environ.get(variable)
        if not text:
            continue
        try:
            text.encode()
        except UnicodeEncodeError:
            problems.append(Problem(file=_ENVIRONMENT, line=None, path=variable, message="expected text in UTF-8, found other bytes"))
            continue
        values[setting] = str(Path(text).absolute()) if setting == "state_dir" else text
    return values


def _file_that_applies(path: Path | None, environ: Mapping[str, str], system_config: Path) -> Path | None:
    named = environ.get("EXITGUARD_CONFIG")
    if path is not None or named:
        return path or Path(str(named))
    try:
        system_config.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # it may be there and may not be looked at: reading it will say so
    return system_config


def _read(file: Path | None, problems: list[Problem]) -> YamlSource:
    """The settings of the file; none where there is no file, or where it is empty or unusable."""
    nothing = YamlSource(str(file or ""), {}, {})
    if file is None:
        return nothing
    try:
        source = read_source(file)
    except SourceError as error:
        problems.extend(error.problems)
        return nothing
    if isinstance(source.data, dict):
        return source
    if source.data is not None:
        problems.append(source.problem((), f"expected a mapping of settings, found {shown(source.data)}"))
    return nothing


def _default_state_dir(environ: Mapping[str, str], user_id: int) -> Path | None:
    """/var/lib/exitguard for root, else below $XDG_STATE_HOME or ~/.local/state (XDG Base Directory Specification 0.8).

    A relative $XDG_STATE_HOME is ignored, as the specification asks. None where there is no home either.
    """
    if user_id == 0:
        return SYSTEM_STATE_DIR
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if state_home.is_absolute():
        return state_home / "exitguard"
    home = Path(environ.get("HOME", ""))
    return home / ".local/state/exitguard" if home.is_absolute() else None


def _in_environment(problem: Problem) -> Problem:
    return problem.model_copy(update={"line": None, "path": _VARIABLES.get(problem.path, problem.path)})


def _origin(setting: str, source: YamlSource, from_file: Mapping[str, YamlValue], from_environment: Mapping[str, YamlValue]) -> Origin:
    if setting in from_environment:
        return Origin(setting, OriginKind.ENVIRONMENT, _VARIABLES[setting])
    if setting in from_file:
        return Origin(setting, OriginKind.FILE, source.problem((setting,), "").where)
    return Origin(setting, OriginKind.DEFAULT, "")
