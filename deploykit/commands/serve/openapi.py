"""The description of the interface, OpenAPI 3.1, made from the structures that read requests."""

from __future__ import annotations

from typing import Any

import msgspec

from deploykit import __version__
from deploykit.bundle.folder import Bundle
from deploykit.commands.predict.tables import row_value
from deploykit.commands.serve import kserve
from deploykit.commands.serve.admission import Limits
from deploykit.commands.serve.uploads import FORM, JSON
from deploykit.specs.prediction import Prediction

_STRUCTS = (
    kserve.InferRequest,
    kserve.InferResponse,
    kserve.ModelMetadata,
    kserve.ServerMetadata,
)
_BINARY = {"type": "string", "format": "binary"}
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
}


def openapi_document(bundle: Bundle, limits: Limits, *, needs_key: bool) -> dict[str, Any]:
    """Describe the interface to a bundle.

    Args:
        bundle: What answers.
        limits: What is let in.
        needs_key: Whether only who has an API key may ask.
    """
    schemas, components = msgspec.json.schema_components(
        (*_STRUCTS, Prediction), ref_template="#/components/schemas/{name}"
    )
    for struct, schema in zip((*_STRUCTS, Prediction), schemas, strict=True):
        components.setdefault(struct.__name__, schema)
    # What is read as it stands: any JSON array.
    components["InferInput"]["properties"]["data"] = {"type": "array"}
    components["Row"] = _row_schema(components.pop("Prediction"), bundle)
    components["Error"] = _ERROR
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"deploykit: {bundle.name}",
            "version": __version__,
            "description": f"{len(bundle.manifest.labels)} classes. A body has "
            f"{limits.body_bytes:,} bytes at most, a request {limits.queue} images, and "
            f"{limits.seconds:g} seconds.",
        },
        "paths": _paths(bundle.name),
        "components": {"schemas": components},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _row_schema(prediction: dict[str, Any], bundle: Bundle) -> dict[str, Any]:
    """The columns that this bundle's rows have."""
    columns = [*row_value(Prediction(path=""), 1, bundle.manifest.labels.head)]
    fields = prediction["properties"]
    for field in fields.values():
        field.pop("default", None)
    fields["expected"] = {"type": "null"}  # nobody tells a server
    return {
        "type": "object",
        "properties": {column: fields[column] for column in columns},
        "required": columns,
        "additionalProperties": False,
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(what: str, schema: dict[str, Any], *, kind: str = JSON) -> dict[str, Any]:
    return {"description": what, "content": {kind: {"schema": schema}}}


def _errors(*statuses: str) -> dict[str, Any]:
    words = {
        "400": "It is no request that this model answers",
        "401": "An API key is missing",
        "404": "There is no such model or version",
        "408": "The body came too slowly",
        "413": "The body is too large, or has too many images",
        "422": "The image cannot be read; the row says why",
        "500": "The server failed",
        "503": "The server is busy, or ends; try again after Retry-After seconds",
        "504": "There was no answer in time",
    }
    return {status: _answer(words[status], _ref("Error")) for status in statuses}


def _paths(name: str) -> dict[str, Any]:
    row, rows = _ref("Row"), {"type": "array", "items": _ref("Row")}
    base64 = {"type": "string", "contentEncoding": "base64"}
    files = {"type": "object", "additionalProperties": {"type": "array", "items": _BINARY}}
    busy = ("401", "408", "413", "500", "503", "504")
    model, ready = f"/v2/models/{name}", {"type": "object"}
    return {
        "/predict": {
            "post": {
                "summary": "Predict images: a row each, as in a table of predict",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/octet-stream": {"schema": _BINARY},
                        "image/*": {"schema": _BINARY},
                        FORM: {"schema": files},
                        JSON: {"schema": {"type": "array", "items": base64}},
                    },
                },
                "responses": {
                    "200": _answer(
                        "A row of one image; rows of a form or a list", {"oneOf": [row, rows]}
                    ),
                    "422": _answer("The one image cannot be read; the row says why", row),
                    **_errors("400", *busy),
                },
            }
        },
        "/v2": _get("Which server this is", _ref("ServerMetadata")),
        "/v2/health/live": _get("Whether the server runs", ready, is_open=True),
        "/v2/health/ready": _get("Whether it takes requests", ready, "503", is_open=True),
        model: _get("What the model takes and gives", _ref("ModelMetadata"), "404"),
        f"{model}/ready": _get("Whether it takes requests", ready, "404", "503"),
        f"{model}/infer": {
            "post": {
                "summary": "KServe v2: pixels or files to logits and probabilities",
                "parameters": [
                    {
                        "name": "Inference-Header-Content-Length",
                        "in": "header",
                        "description": "How many bytes are JSON, where binary data follows",
                        "schema": {"type": "integer"},
                    }
                ],
                "requestBody": {
                    "required": True,
                    "content": {
                        JSON: {"schema": _ref("InferRequest")},
                        "application/octet-stream": {"schema": _BINARY},
                    },
                },
                "responses": {
                    "200": _answer("The outputs", _ref("InferResponse")),
                    **_errors("400", "404", *busy),
                },
            }
        },
        "/metrics": {
            "get": {
                "summary": "Counters, for Prometheus",
                "responses": {
                    "200": _answer("The counters", {"type": "string"}, kind="text/plain"),
                    **_errors("401"),
                },
            }
        },
    }


def _get(
    summary: str, schema: dict[str, Any], *errors: str, is_open: bool = False
) -> dict[str, Any]:
    responses = {"200": _answer(summary, schema), **_errors(*errors)}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if is_open:
        operation["security"] = []
    else:
        responses |= _errors("401")
    return {"get": operation}
