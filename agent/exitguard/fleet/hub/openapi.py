"""/openapi.json: the routes as OpenAPI 3.1, made of routes.py and the records that go in and out."""

from typing import Any

from pydantic.json_schema import models_json_schema

from exitguard import __version__
from exitguard.fleet.hub.call import JSON
from exitguard.fleet.hub.routes import ROUTES, Route
from exitguard.model.hub import Refused
from exitguard.model.record import Record

_REFS = "#/components/schemas/{model}"
_REFUSALS = {
    "400": "Malformed.",
    "401": "No token that counts.",
    "403": "A token that may not do this.",
    "404": "There is no such thing.",
    "405": "Another method.",
    "409": "Not as things are.",
    "413": "Too large, as it is or unpacked.",
    "415": "An encoding that is not known.",
    "429": "Too often: again after `Retry-After` seconds.",
    "503": "The database does not answer now: again after `Retry-After` seconds.",
}


def openapi() -> dict[str, Any]:
    """The whole document."""
    records: list[type[Record]] = [Refused]
    for route in ROUTES:
        records += [each for each in (route.body, route.answer) if each is not None and each not in records]
    names, definitions = models_json_schema([(record, "validation") for record in records], ref_template=_REFS)
    refs = {record: schema for (record, _), schema in names.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "exitguard hub", "version": __version__, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "A host's key, or an operator's token."}},
        },
    }


def _operation(route: Route, refs: dict[Any, Any]) -> dict[str, Any]:
    wants = "anybody" if route.access is None else "a host" if isinstance(route.access, type) else f"the role {route.access}"
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "description": f"For {wants}.",
        "responses": {
            str(route.status): {"description": "Done.", "content": {route.media_type: {"schema": refs[route.answer]}}},
            **{status: {"description": why, "content": {JSON: {"schema": refs[Refused]}}} for status, why in _REFUSALS.items()},
        },
    }
    if route.access is not None:
        operation["security"] = [{"token": []}]
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": refs[route.body]}}}
    parameters = [
        {"name": name, "in": "query", "required": False, "description": what, "schema": {"type": "string"}}
        for name, what in route.query.items()
    ]
    if "{host_id}" in route.path:
        parameters.append({"name": "host_id", "in": "path", "required": True, "description": "A host's id.", "schema": {"type": "string"}})
    if parameters:
        operation["parameters"] = parameters
    return operation
