"""The settings as they apply here, and where each came from: a file, the environment, or the default.

The file is `--config`, else $EXITGUARD_CONFIG, else /etc/exitguard/config.yaml where there is one. The variables of
`settings.VARIABLES` then have the last word; an empty variable counts as none. Paths in a file are absolute: a daemon has no
directory that an operator would expect them to start from. A variable is set in a shell, and its path starts where that is.

The daemon imports this module and calls `load_settings` again on each reload.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from exitguard.policy.load import read_source
from exitguard.policy.problem import Problem, ProblemsError, bounded_problems
from exitguard.policy.validation import shown, validate
from exitguard.policy.yaml_source import SourceError, YamlSource, YamlValue
from exitguard.settings import SYSTEM_CONFIG, SYSTEM_REMEDY_DIR, SYSTEM_STATE_DIR, VARIABLES, Settings, without_password

_ENVIRONMENT = "environment"


class ConfigError(ProblemsError):
    """Settings that nothing may run on."""


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
    path: Path | None,
    environ: Mapping[str, str],
    *,
    user_id: int | None = None,
    system_config: Path = SYSTEM_CONFIG,
    system_state_dir: Path = SYSTEM_STATE_DIR,
) -> LoadedSettings:
    """The settings from the file that applies and from `environ`. Raises ConfigError with all problems.

    `path` is the `--config` that was given, or None; `user_id` is whose state directory is the default, this process's if None.
    """
    problems: list[Problem] = []
    file = _file_that_applies(path, environ, system_config)
    source = _read(file, problems)
    from_file = source.data if isinstance(source.data, dict) else {}
    from_environment = _values_of(environ, problems)
    default_state_dir = _default_state_dir(environ, os.geteuid() if user_id is None else user_id, system_state_dir)
    defaults: dict[str, YamlValue] = {"state_dir": str(default_state_dir or system_state_dir)}
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


def remedy_dir_of(settings: Settings, user_id: int | None = None) -> Path:
    """Where runs, plans and approvals lie: what root does is kept where nobody else writes."""
    if settings.remedy_dir is not None:
        return settings.remedy_dir
    return SYSTEM_REMEDY_DIR if (os.geteuid() if user_id is None else user_id) == 0 else settings.state_dir / "remedy"


def changes_needing_restart(old: Settings, new: Settings) -> tuple[str, ...]:
    """The settings in which `new` differs from `old` and which a running daemon cannot change: its store is opened once."""
    return tuple(setting for setting in ("state_dir",) if getattr(old, setting) != getattr(new, setting))


def _values_of(environ: Mapping[str, str], problems: list[Problem]) -> dict[str, YamlValue]:
    """The settings that the environment overrules."""
    values: dict[str, YamlValue] = {}
    for setting, variable in VARIABLES.items():
        text = environ.get(variable)
        if not text:
            continue
        try:
            text.encode()
        except UnicodeEncodeError:
            problems.append(Problem(file=_ENVIRONMENT, line=None, path=variable, message="expected text in UTF-8, found other bytes"))
            continue
        values[setting] = str(Path(text).absolute()) if setting.endswith(("_dir", "_file")) else text
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
    if file is None or file == Path(os.devnull):  # for who wants none, not even a bad one
        return nothing
    try:
        source = read_source(file)
    except SourceError as error:
        problems.extend(error.problems)
        return nothing
    if isinstance(source.data, dict):
        return source
    if source.data is not None:
        # `connect:URI`, without the space, is text.
        found = shown(without_password(source.data) if isinstance(source.data, str) else source.data)
        problems.append(source.problem((), f"expected a mapping of settings, found {found}"))
    return nothing


def _default_state_dir(environ: Mapping[str, str], user_id: int, system_state_dir: Path) -> Path | None:
    """/var/lib/exitguard for root and its owner, else below $XDG_STATE_HOME or ~/.local/state (XDG Base Directory Specification 0.8).

    The owner is the daemon's user, who has to find the same history from a shell. A relative $XDG_STATE_HOME is ignored, as the
    specification asks. None where there is no home either.
    """
    if user_id == 0 or user_id == _owner(system_state_dir):
        return system_state_dir
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if state_home.is_absolute():
        return state_home / "exitguard"
    home = Path(environ.get("HOME", ""))
    return home / ".local/state/exitguard" if home.is_absolute() else None


def _owner(directory: Path) -> int | None:
    try:
        return directory.stat().st_uid
    except OSError:
        return None


def _in_environment(problem: Problem) -> Problem:
    return problem.model_copy(update={"line": None, "path": VARIABLES.get(problem.path, problem.path)})


def _origin(setting: str, source: YamlSource, from_file: Mapping[str, YamlValue], from_environment: Mapping[str, YamlValue]) -> Origin:
    if setting in from_environment:
        return Origin(setting, OriginKind.ENVIRONMENT, VARIABLES[setting])
    if setting in from_file:
        return Origin(setting, OriginKind.FILE, source.problem((setting,), "").where)
    return Origin(setting, OriginKind.DEFAULT, "")
