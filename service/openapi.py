"""The OpenAPI document: FastAPI's own, with the spec's JSON schema as the body of a submission.

Endpoints read a spec's body themselves, so that a wrong one is answered in the same words as on the command line; the
schema that describes it is made from the same classes.

Invariant: the document says no less than the code demands, as far as JSON schema can; a test holds the two together.
"""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter

from curator.spec import CurationSpec
from curator.training.reference.spec import TrainSpec
from service.problems import ProblemModel

Schema = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"
_CREATED = (  # what answers with a new id, and the path parameter that takes it
    ("/v1/jobs", "post", "202", "job_id", "$response.body#/id"),
    ("/v1/uploads", "post", "201", "upload_id", "$response.body#/id"),
    ("/v1/keys", "post", "201", "key_id", "$response.body#/id"),
    ("/v1/jobs/{job_id}/shards", "get", "200", "number", "$response.body#/data/0/number"),
)
_SCORED = {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}}
SPEC_EXAMPLES: dict[str, Schema] = {
    "curate": {
        "summary": "keep 60% of the tokens, scored by the two models that are shipped",
        "value": {
            "name": "first-job",
            "corpus": {"kind": "jsonl", "uri": "/data/corpus.jsonl", "text_field": "text"},
            "models": _SCORED,
            "policy": {"kind": "excess_loss", "keep": 0.6},
        },
    },
    "train_reference": {
        "summary": "with kind=train_reference: train a reference on good data",
        "value": {
            "base": "/models/base",
            "corpus": {"kind": "jsonl", "uri": "/data/good.jsonl", "text_field": "text"},
            "method": "lora",
            "eval_every": 50,
            "patience": 3,
            "max_minutes": 30,
        },
    },
}
_SPECS = [{"$ref": _REFERENCE.format(model=name)} for name in ("SubmittedSpec", "TrainSpec")]
SPEC_BODY: Schema = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"anyOf": _SPECS}, "examples": SPEC_EXAMPLES}},
    }
}
"""Body of the endpoints that take a spec; `kind` says which of the two it is."""


def describe(app: FastAPI) -> None:
    """Give the app its document."""

    def openapi() -> Schema:
        if app.openapi_schema is None:
            app.openapi_schema = _make_document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _make_document(app: FastAPI) -> Schema:
    document = get_openapi(
        title=app.title, version=version("token-curator"), routes=app.routes,
        description="Submit curation jobs, watch them, look at their tokens, download their shards.",
    )  # fmt: skip
    _add_schemas(document["components"]["schemas"])
    _drop_default_errors(document)
    _drop_null_parameters(document)
    _add_links(document["paths"])
    return document


# ------------------------------------------------------------------------------------------------ schemas


def _add_schemas(schemas: Schema) -> None:
    for name, model in (("SubmittedSpec", CurationSpec), ("TrainSpec", TrainSpec)):
        schemas[name] = _with_definitions(model, schemas)
        _leave_open(schemas, schemas[name], "output")
    _leave_open(schemas, schemas["ParquetOutput"], "uri")
    for schema in list(schemas.values()):
        _tighten(schemas, schema)
    schemas["ProblemModel"] = _with_definitions(ProblemModel, schemas)


def _with_definitions(model: type[BaseModel], schemas: Schema) -> Schema:
    schema = TypeAdapter(model).json_schema(ref_template=_REFERENCE)
    for name, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(name, definition)
    return schema


def _leave_open(schemas: Schema, schema: Schema, field: str) -> None:
    """The service fills in an output that is left out or null."""
    described = schema["properties"][field]
    schema["required"] = [name for name in schema["required"] if name != field]
    schema["properties"][field] = {"anyOf": [described, {"type": "null"}], "description": "left out: kept with the job"}


def _tighten(schemas: Schema, schema: Any) -> None:
    """Say what pydantic demands and does not write down: the tag of a union, and names of no other pattern."""
    if isinstance(schema, list):
        for part in schema:
            _tighten(schemas, part)
    if not isinstance(schema, dict):
        return
    if "patternProperties" in schema:
        schema.setdefault("additionalProperties", False)
    if isinstance(tag := schema.get("discriminator"), dict):
        for reference in tag.get("mapping", {}).values():
            member = schemas[reference.rpartition("/")[2]]
            member["required"] = sorted({*member.get("required", []), tag["propertyName"]})
    for part in schema.values():
        _tighten(schemas, part)


# ------------------------------------------------------------------------------------------------ operations


def _operations(paths: Schema) -> list[tuple[str, Schema]]:
    return [(path, operation) for path, methods in paths.items() for operation in methods.values()]


def _drop_default_errors(document: Schema) -> None:
    """FastAPI documents a 422 of its own shape; ours are problem documents."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for _, operation in _operations(document["paths"]):
        default = operation["responses"].get("422", {}).get("content", {}).get("application/json")
        if default and "HTTPValidationError" in str(default):
            del operation["responses"]["422"]


def _drop_null_parameters(document: Schema) -> None:
    """A header or a query has no null: a parameter that may be None is one that may be left out."""
    for _, operation in _operations(document["paths"]):
        for parameter in operation.get("parameters", []):
            schema = parameter["schema"]
            kept = [part for part in schema.get("anyOf", []) if part.get("type") != "null"]
            if len(kept) == 1:
                del schema["anyOf"]
                schema |= kept[0]


def _add_links(paths: Schema) -> None:
    """From an answer with an id to every operation that takes it."""
    for created, method, status, parameter, expression in _CREATED:
        response = paths[created][method]["responses"][status]
        for path, operation in _operations(paths):
            if f"{{{parameter}}}" not in path:
                continue
            found = {parameter: expression}
            if "{job_id}" in created:
                found["job_id"] = "$request.path.job_id"
            name = operation["operationId"]
            response.setdefault("links", {})[name] = {"operationId": name, "parameters": found}
