"""The published schemas: every document fits its own."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from exitguard.cycle import AuditRequest, run_audit
from exitguard.model.time import EPOCH
from exitguard.report.changes import Changes
from exitguard.report.json_document import json_text
from exitguard.schemas import schema, schema_names

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_names_are_listed_one_a_line(exitguard: Run) -> None:
    result = exitguard("schema")
    assert result.returncode == 0
    assert tuple(result.stdout.split()) == schema_names()
    assert {"audit", "facts", "samples", "changes", "policy", "waivers"} <= set(schema_names())


@pytest.mark.parametrize("name", schema_names())
def test_every_schema_is_one(exitguard: Run, name: str) -> None:
    result = exitguard("schema", name)
    assert result.returncode == 0
    printed = json.loads(result.stdout)
    assert printed == schema(name)
    Draft202012Validator.check_schema(printed)
    assert printed["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize("uri", ["test:///default", None])
def test_real_documents_fit_their_schemas(uri: str | None, tmp_path: Path) -> None:
    outcome = run_audit(AuditRequest(uri=uri, sysroot=None if uri else tmp_path))
    documents = {
        "audit": outcome.report,
        "facts": outcome.observation.facts,
        "samples": outcome.observation.samples,
        "changes": Changes(since=EPOCH, transitions=(), gaps=()),
    }
    for name, document in documents.items():
        Draft202012Validator(schema(name)).validate(json.loads(json_text(document)))


@pytest.mark.parametrize("name", ["audit", "facts"])
def test_document_without_its_observations_does_not_fit(name: str, tmp_path: Path) -> None:
    outcome = run_audit(AuditRequest(sysroot=tmp_path))
    document = json.loads(json_text(outcome.report if name == "audit" else outcome.observation.facts))
    del document["host"]
    assert not Draft202012Validator(schema(name)).is_valid(document)


def test_documents_may_grow(tmp_path: Path) -> None:
    document = json.loads(json_text(run_audit(AuditRequest(sysroot=tmp_path)).report))
    document["a_field_of_tomorrow"] = 1
    Draft202012Validator(schema("audit")).validate(document)
