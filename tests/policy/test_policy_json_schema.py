"""The committed JSON Schemas are those of the code, and say what the loader says."""

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from exitguard.policy.json_schema import policy_schemas, schema_files
from exitguard.resources import policies_dir

SCHEMAS = policy_schemas()


def test_committed_schemas_are_the_generated_ones() -> None:
    generated = schema_files()
    folder = policies_dir() / "schemas"
    assert {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()} == generated, "run `make generate`"


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_a_schema_of_its_dialect(name: str) -> None:
    assert SCHEMAS[name]["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize(("name", "file"), [("policy", "pmu-off"), ("kernels", "kernels"), ("qemu", "qemu"), ("costs", "costs")])
def test_shipped_file_is_valid_to_an_editor_too(name: str, file: str) -> None:
    # As an editor reads it, by the rules of common YAML libraries: an unquoted version would be a number there.
    data = yaml.safe_load((policies_dir() / f"{file}.yaml").read_text(encoding="utf-8"))
    assert list(Draft202012Validator(SCHEMAS[name]).iter_errors(data)) == []


WAIVERS: dict[str, Any] = {
    "kind": "waivers",
    "schema_version": 1,
    "waivers": [
        {
            "id": "CHG-1",
            "rules": ["HOST-KERNEL-GUARD"],
            "scope": {"hosts": ["*"]},
            "justification": "the reboot is planned",
            "approver": "Ada",
            "created": "2026-01-01T00:00:00Z",
            "expires": "2026-12-31T00:00:00Z",
        }
    ],
}


def test_good_waiver_file_is_valid() -> None:
    assert Draft202012Validator(SCHEMAS["waivers"]).is_valid(WAIVERS)


@pytest.mark.parametrize("change", [{"kind": "policy"}, {"schema_version": 2}, {"extra": 1}, {"waivers": [{"id": "CHG-1"}]}])
def test_bad_waiver_file_is_invalid(change: dict[str, Any]) -> None:
    assert not Draft202012Validator(SCHEMAS["waivers"]).is_valid({**WAIVERS, **change})


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_file_has_to_name_its_kind(name: str) -> None:
    assert SCHEMAS[name]["required"][:2] == ["kind", "schema_version"]
    assert SCHEMAS[name]["properties"]["kind"]["const"] == name


def test_written_schema_is_json_that_ends_in_a_newline() -> None:
    for name, text in schema_files().items():
        assert text.endswith("}\n")
        assert json.loads(text) == SCHEMAS[name.removesuffix(".schema.json")]
