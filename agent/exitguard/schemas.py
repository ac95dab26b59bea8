"""The JSON Schemas of every document that exitguard writes or reads, by name. Published, so they only grow."""

from typing import Any

from exitguard.model.cloud import CloudFacts
from exitguard.model.documents import AuditReport, FactsDocument, KernelInspection
from exitguard.model.instance import CloudReport
from exitguard.model.measurement import Measurement
from exitguard.model.plan import Plan
from exitguard.model.record import Record
from exitguard.model.samples import Samples
from exitguard.model.savings import Savings
from exitguard.policy.json_schema import policy_schemas
from exitguard.report.changes import Changes
from exitguard.report.cloud_groups import CloudGroups
from exitguard.report.cloud_tenant import TenantReport
from exitguard.report.fleet_savings_page import FleetSavings
from exitguard.report.formats.as_json import Reports
from exitguard.report.run_table import RunStatus

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DOCUMENTS: dict[str, type[Record]] = {
    "audit": AuditReport,
    "changes": Changes,
    "cloud-facts": CloudFacts,
    "cloud-groups": CloudGroups,
    "cloud-report": CloudReport,
    "cloud-tenant": TenantReport,
    "facts": FactsDocument,
    "kernel-inspection": KernelInspection,
    "measurement": Measurement,
    "plan": Plan,
    "reports": Reports,
    "run": RunStatus,
    "samples": Samples,
    "savings": Savings,
    "savings-fleet": FleetSavings,
}


def schema_names() -> tuple[str, ...]:
    """The names of all published schemas, sorted."""
    return tuple(sorted({*_DOCUMENTS, *policy_schemas()}))


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of that name. Raises KeyError for a name that is not in `schema_names`."""
    if name in _DOCUMENTS:
        # As it is written, not as it may be read: what has a default is always there.
        return {"$schema": _DIALECT, **_DOCUMENTS[name].model_json_schema(mode="serialization")}
    return policy_schemas()[name]
