"""The JSON Schemas of the files that operators write, generated from schema.py: for editors, and for whoever generates such files."""

import json
from typing import Any

from exitguard.policy.part import PolicyPart
from exitguard.policy.schema import Costs, Kernels, Policy, Qemus, Waivers

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_MODELS: dict[str, type[PolicyPart]] = {"policy": Policy, "kernels": Kernels, "qemu": Qemus, "costs": Costs, "waivers": Waivers}


def policy_schemas() -> dict[str, dict[str, Any]]:
    """The schema of each kind of file, by its `kind`: policy, kernels, qemu, costs, waivers."""
    return {name: _schema(model) for name, model in _MODELS.items()}


def schema_files() -> dict[str, str]:
    """The text of each file under policies/schemas, by its name."""
    return {f"{name}.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for name, schema in policy_schemas().items()}


def _schema(model: type[PolicyPart]) -> dict[str, Any]:
    schema = model.model_json_schema()
    # A record made in memory knows its kind; a file has to say it (load.py).
    schema["properties"]["kind"].pop("default")
    schema["required"] = ["kind", *schema["required"]]
    return {"$schema": _DIALECT, **schema}
