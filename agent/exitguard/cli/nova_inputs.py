"""From options to a cloud and its hosts: through the API or from a file, the hosts' facts one file at a time."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from exitguard.cli.output import note
from exitguard.cli.refusal import Refusal

if TYPE_CHECKING:
    from exitguard.model.cloud import CloudFacts
    from exitguard.model.instance import CloudReport
    from exitguard.settings import Settings

#: Larger than the facts of any cloud: 100,000 instances make some 100 MB.
_LIMIT_BYTES = 1024 * 1024 * 1024
_MOST_NOTICES = 20
_EXIT_ERROR = 1


@dataclass(frozen=True)
class AskedOfCloud:
    """The options of one command line that say which cloud to look at, and by what to judge it."""

    cloud: str | None = None
    cloud_facts: Path | None = None
    hosts: list[Path] | None = None
    policy: list[Path] | None = None
    waivers: list[Path] | None = None
    config: Path | None = None
    remedy_dir: Path | None = None
    timeout: float | None = None


def observe_cloud(asked: AskedOfCloud) -> "CloudFacts":
    """The cloud as its API shows it now. Raises Refusal where nothing at all could be asked, ConfigError."""
    from exitguard.cycle import without_collector
    from exitguard.facts.openstack import CloudError, CloudRequest, read_cloud

    settings = _settings(asked)
    request = CloudRequest(cloud=asked.cloud, record_dir=_record_dir(asked, settings))
    if asked.timeout is not None:
        from dataclasses import replace

        request = replace(request, timeout_seconds=asked.timeout)
    try:
        with without_collector():
            return read_cloud(request, datetime.now(UTC))
    except CloudError as error:
        raise Refusal(f"exitguard: {error}", code=_EXIT_ERROR) from error


def judged_cloud(asked: AskedOfCloud) -> "tuple[CloudFacts, CloudReport]":
    """The cloud, joined with the facts of its hosts and judged. Raises Refusal, PolicyError, ConfigError, typer.BadParameter."""
    if asked.cloud is not None and asked.cloud_facts is not None:
        raise typer.BadParameter("give either --cloud or --cloud-facts", param_hint="--cloud-facts")
    files = _facts_files(asked.hosts or [])
    settings = _settings(asked)

    from exitguard.act.facts_file import FactsError, read_facts
    from exitguard.audit.cloud import host_side, judge_cloud
    from exitguard.cycle import without_collector
    from exitguard.policy.load import load_rulebook

    rulebook = load_rulebook(
        tuple(asked.policy or ()) or settings.policy_files, tuple(asked.waivers or ()) or settings.waiver_files
    )  # before the cloud is asked
    cloud = observe_cloud(asked) if asked.cloud_facts is None else read_cloud_facts(asked.cloud_facts)
    note(f"exitguard: {notice}." for notice in cloud.notices[:_MOST_NOTICES])
    try:
        with without_collector():
            return cloud, judge_cloud(cloud, (host_side(read_facts(path), rulebook) for path in files), rulebook)
    except FactsError as error:
        raise Refusal(f"exitguard: {error}", code=_EXIT_ERROR) from error


def read_cloud_facts(path: Path) -> "CloudFacts":
    """The facts of a cloud from a file. Raises Refusal."""
    from pydantic import ValidationError

    from exitguard.cycle import without_collector
    from exitguard.model.cloud import CloudFacts

    expected = "Expected the output of `exitguard nova facts --format json`"
    try:
        with path.open("rb") as file:
            # What is too large by its size is not read; a pipe has none.
            content = file.read(_LIMIT_BYTES + 1) if os.fstat(file.fileno()).st_size <= _LIMIT_BYTES else None
    except OSError as error:
        raise Refusal(f"exitguard: {path}: {(error.strerror or str(error)).lower()}. {expected}.", code=_EXIT_ERROR) from error
    if content is None or len(content) > _LIMIT_BYTES:
        raise Refusal(f"exitguard: {path}: expected at most {_LIMIT_BYTES} bytes, found more. {expected}.", code=_EXIT_ERROR)
    try:
        with without_collector():
            return CloudFacts.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise Refusal(
            f"exitguard: {path}: not the facts of a cloud: {where}: {first['msg']}. {expected} of this version or an older one.",
            code=_EXIT_ERROR,
        ) from error


def _facts_files(paths: list[Path]) -> list[Path]:
    """The files that were named, a directory standing for all of its `.json`. Raises Refusal for one without any."""
    return [file for path in paths for file in _below(path)]


def _below(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    found = sorted(path.glob("*.json"))
    if not found:
        expected = "Expected files HOST.json, as playbooks/facts.yml writes them."
        raise Refusal(f"exitguard: {path}: holds no facts. {expected}", code=_EXIT_ERROR)
    yield from found


def _settings(asked: AskedOfCloud) -> "Settings":
    from exitguard.config import load_settings

    return load_settings(asked.config, os.environ).settings


def _record_dir(asked: AskedOfCloud, settings: "Settings") -> Path:
    """Where playbooks note what they set and proved; the cloud's own part of it is found by its id."""
    from exitguard.config import remedy_dir_of

    return (asked.remedy_dir or remedy_dir_of(settings)).absolute() / "nova"
