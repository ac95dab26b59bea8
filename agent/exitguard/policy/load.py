"""The rulebook that a host is judged by, from files: the only I/O of this package, but for the writing of its JSON Schemas.

Nothing runs on a bad policy: every problem of every file is collected and raised at once. Waivers are different: a bad one is
left out, which fails closed, and the audit reports it.
"""

import difflib
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from exitguard.model.time import format_rfc3339
from exitguard.policy.problem import Problem, ProblemsError, bounded_problems
from exitguard.policy.schema import Costs, Kernels, Policy, Qemus, Rulebook, Waiver, Waivers
from exitguard.policy.validation import shown, validate
from exitguard.policy.yaml_source import LIMIT_BYTES, SourceError, YamlPath, YamlSource, YamlValue, parse_yaml
from exitguard.resources import ResourcesError, policies_dir

Content = Policy | Kernels | Qemus | Costs
C = TypeVar("C", Kernels, Qemus, Costs)

#: The `kind` that a policy file names, and what it then holds.
_CONTENT_OF_KIND: dict[str, type[Content]] = {"policy": Policy, "kernels": Kernels, "qemu": Qemus, "costs": Costs}
_WAIVERS = "waivers"
_SHIPPED = ("pmu-off.yaml", "kernels.yaml", "qemu.yaml", "costs.yaml")


class PolicyError(ProblemsError):
    """A policy that nothing may run on."""


@dataclass(frozen=True)
class _Part:
    """One loaded file."""

    source: YamlSource
    content: Content


def load_rulebook(policy_files: tuple[Path, ...] = (), waiver_files: tuple[Path, ...] = ()) -> Rulebook:
    """The shipped policy, kernels, qemu and costs, each replaced by the given files of its kind; and the waivers.

    Several given policies are judged together, under their ids joined by '+'; builds of files that bring nothing else are added to those
    of the kernels. Raises PolicyError with all problems of the policy files; those of the waiver files come with the rulebook.
    """
    try:
        directory = policies_dir()
    except ResourcesError as error:
        raise PolicyError((Problem(file="policies", line=None, path="", message=str(error)),)) from None
    problems: list[Problem] = []
    given = _load_parts(policy_files, problems)
    shipped = _load_parts((directory / name for name in _SHIPPED), problems)
    if problems:
        raise PolicyError(bounded_problems(problems))

    policy = _combined_policy(given if any(isinstance(part.content, Policy) for part in given) else shipped, problems)
    kernels = _combined_kernels(given, shipped, problems)
    qemus = _only(Qemus, given, shipped, problems)
    costs = _only(Costs, given, shipped, problems)
    if problems:
        raise PolicyError(bounded_problems(problems))
    waivers, waiver_problems = load_waivers(waiver_files, rule_ids=[rule.id for rule in policy.rules])
    return Rulebook(policy=policy, kernels=kernels, qemus=qemus, costs=costs, waivers=waivers, waiver_problems=waiver_problems)


def load_waivers(
    files: tuple[Path, ...], *, rule_ids: Collection[str], now: datetime | None = None
) -> tuple[tuple[Waiver, ...], tuple[Problem, ...]]:
    """The well-formed waivers of the files, and what is wrong with the others.

    A malformed entry, or one for a rule that is not in `rule_ids`, is left out alone; where the file itself is not a waiver
    file of a known schema, all of it is. Of two waivers with the same id the first stands. With `now`, one that has expired
    by then is a problem too; an audit goes without, since it tells expired waivers as what they are.
    """
    waivers: list[Waiver] = []
    problems: list[Problem] = []
    stands_in: dict[str, str] = {}
    for file in files:
        try:
            source = read_source(file)
            entries = _waiver_entries(source)
        except SourceError as error:
            problems.extend(error.problems)
            continue
        for index, entry in enumerate(entries):
            path = (_WAIVERS, index)
            try:
                waiver = validate(Waiver, source, entry, at=path)
            except SourceError as error:
                problems.extend(error.problems)
                continue
            if waiver.id in stands_in:
                taken = f"expected a waiver id of its own, found {waiver.id!r}, which is taken in {stands_in[waiver.id]}"
                problems.append(source.problem((*path, "id"), taken))
                continue
            stands_in[waiver.id] = source.problem((*path, "id"), "").where
            useless = _useless(waiver, source, path, rule_ids, now)
            if useless:
                problems.extend(useless)
                continue
            waivers.append(waiver)
    return tuple(waivers), tuple(problems)


def _useless(waiver: Waiver, source: YamlSource, at: YamlPath, rule_ids: Collection[str], now: datetime | None) -> list[Problem]:
    """Why a well-formed waiver, which stands in `source` at the path `at`, can cover nothing (any more)."""
    problems = [
        source.problem((*at, "rules", index), f"expected a rule of the policy, found {rule!r}: {_rule_hint(rule, rule_ids)}")
        for index, rule in enumerate(waiver.rules)
        if rule not in rule_ids
    ]
    if now is not None and waiver.expires <= now:
        expired = f"expired on {format_rfc3339(waiver.expires)}: renew it with a later date, or remove it"
        problems.append(source.problem((*at, "expires"), expired))
    return problems


def _rule_hint(rule: str, rule_ids: Collection[str]) -> str:
    near = difflib.get_close_matches(rule, rule_ids, n=1)
    return f"did you mean {near[0]!r}?" if near else "`exitguard policy show` lists them"


def read_source(path: Path) -> YamlSource:
    """The data of one YAML file. Raises SourceError where it is no regular file, is too large, may not be read, or is not YAML."""
    return parse_yaml(_read_text(path), str(path))


def read_kernels(path: Path) -> tuple[str, Kernels]:
    """A file of kind `kernels`, with its text as it is. Raises SourceError with every problem."""
    text = _read_text(path)
    part = _part(text, str(path))
    if not isinstance(part.content, Kernels):
        raise SourceError((part.source.problem(("kind",), f"expected 'kernels', which has builds, found {part.content.kind!r}"),))
    return text, part.content


def _read_text(path: Path) -> str:
    line = None
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"expected text in UTF-8, found the byte 0x{error.object[error.start]:02x}"
    except FileNotFoundError:
        message = "expected a file, found none"
    except PermissionError:
        message = f"permission denied: let user id {os.geteuid()} read it, or run as root"
    except OSError as error:
        message = f"cannot be read: {(error.strerror or str(error)).lower()}"
    except ValueError as error:
        message = str(error)
    raise SourceError((Problem(file=str(path), line=line, path="", message=message),))


def _read(path: Path) -> bytes:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer; without O_NOCTTY, a terminal could become ours.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"expected a regular file, found {'a directory' if stat.S_ISDIR(mode) else 'a device, a pipe or a socket'}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(LIMIT_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > LIMIT_BYTES:
        raise ValueError(f"expected at most {LIMIT_BYTES} bytes, found more")
    return content


def _mapping(source: YamlSource) -> dict[str, YamlValue]:
    if isinstance(source.data, dict):
        return source.data
    raise SourceError((source.problem((), f"expected a mapping with the keys kind and schema_version, found {shown(source.data)}"),))


def _load_parts(files: Iterable[Path], problems: list[Problem]) -> list[_Part]:
    """What the files hold; the problems of those that hold nothing usable are added to `problems`."""
    parts: list[_Part] = []
    for file in files:
        try:
            parts.append(_part(_read_text(file), str(file)))
        except SourceError as error:
            problems.extend(error.problems)
    return parts


@lru_cache(maxsize=16)
def _part(text: str, file: str) -> _Part:
    """What a text holds; a process that audits again and again nearly always loads the same text."""
    source = parse_yaml(text, file)
    data = _mapping(source)
    return _Part(source, validate(_content_type(source, data), source, data))


def _content_type(source: YamlSource, data: dict[str, YamlValue]) -> type[Content]:
    kind = data.get("kind")
    if isinstance(kind, str) and kind in _CONTENT_OF_KIND:
        return _CONTENT_OF_KIND[kind]
    hint = ": this is a waiver file, give it as one" if kind == _WAIVERS else ""
    expected = f"expected one of {', '.join(_CONTENT_OF_KIND)}, found {shown(kind)}{hint}"
    raise SourceError((source.problem(("kind",), expected),))


def _only(content: type[C], given: list[_Part], shipped: list[_Part], problems: list[Problem]) -> C:
    """The one given content of its type, else the shipped one."""
    found = [(part.source, part.content) for part in given if isinstance(part.content, content)]
    for source, extra in found[1:]:
        message = f"expected one file of kind {extra.kind} at most, found a second: the first is {found[0][0].file}"
        problems.append(source.problem(("kind",), message))
    return found[0][1] if found else _only(content, shipped, [], problems)


def _combined_kernels(given: list[_Part], shipped: list[_Part], problems: list[Problem]) -> Kernels:
    """The one given or shipped file with all that is known of kernels, and the builds of every file that adds to it."""
    added = [(part.source, part.content) for part in given if isinstance(part.content, Kernels) and part.content.brings_builds_alone]
    whole = [part for part in given if not (isinstance(part.content, Kernels) and part.content.brings_builds_alone)]
    kernels = _only(Kernels, whole, shipped, problems)
    base = next(part.source.file for part in (*whole, *shipped) if part.content is kernels)
    builds = {build.build_id: (build, base) for build in kernels.builds}
    for source, extra in added:
        for index, build in enumerate(extra.builds):
            known, file = builds.setdefault(build.build_id, (build, source.file))
            if known.verdict != build.verdict:
                message = f"expected {known.verdict_in_words}, which is what {file} says of this build, found {build.verdict_in_words}"
                problems.append(source.problem(("builds", index, "state"), message))
    return kernels.model_copy(update={"builds": tuple(build for build, _ in builds.values())}) if added else kernels


def _combined_policy(parts: list[_Part], problems: list[Problem]) -> Policy:
    """The policies of `parts` as one: all their rules, under all their ids. At least one of the parts is a policy."""
    policies = [(part.source, part.content) for part in parts if isinstance(part.content, Policy)]
    first_source, first = policies[0]
    ids = {first.id: first_source.file}
    rules = {rule.id: first_source.file for rule in first.rules}
    for source, policy in policies[1:]:
        if policy.id in ids:
            problems.append(
                source.problem(("id",), f"expected a policy id of its own, found {policy.id!r}, which is that of {ids[policy.id]}")
            )
        if policy.scope != first.scope:
            problems.append(
                source.problem(("scope",), f"expected the scope of {first_source.file}, beside which it is given, found another")
            )
        if policy.remedies != first.remedies:
            problems.append(
                source.problem(("remedies",), f"expected the remedies of {first_source.file}, beside which it is given, found others")
            )
        for index, rule in enumerate(policy.rules):
            if rule.id in rules:
                message = f"expected a rule id of its own, found {rule.id!r}, which is taken in {rules[rule.id]}"
                problems.append(source.problem(("rules", index, "id"), message))
        ids[policy.id] = source.file
        rules |= {rule.id: source.file for rule in policy.rules}
    contents = [policy for _, policy in policies]
    return first.model_copy(
        update={
            "id": "+".join(policy.id for policy in contents),
            "version": "+".join(policy.version for policy in contents),
            "title": " + ".join(policy.title for policy in contents),
            "rules": tuple(rule for policy in contents for rule in policy.rules),
        }
    )


def _waiver_entries(source: YamlSource) -> list[YamlValue]:
    """The entries of a waiver file, unread, once the file says that it is one."""
    data = _mapping(source)
    if data.get("kind") != _WAIVERS:
        raise SourceError((source.problem(("kind",), f"expected {_WAIVERS!r}, found {shown(data.get('kind'))}"),))
    entries = data.get(_WAIVERS, [])
    validate(Waivers, source, {**data, _WAIVERS: [] if isinstance(entries, list) else entries})
    return entries if isinstance(entries, list) else []
