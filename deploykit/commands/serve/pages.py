"""The pages of a server: one to drop a photo on, and one that shows the interface."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from deploykit.html.document import render
from deploykit.proof.text import status_text
from deploykit.specs.preprocessing import format_size

if TYPE_CHECKING:
    from deploykit.commands.serve.served import ServedModel

_PACKAGE = "deploykit.commands.serve"


def home_page(model: ServedModel, *, needs_key: bool) -> str:
    """The page to drop a photo on.

    Args:
        model: What answers.
        needs_key: Whether to ask for an API key; the page forgets it when it is closed.
    """
    manifest, spec = model.bundle.manifest, model.session.spec
    context = {
        "name": model.bundle.name,
        "about": f"{spec.title}, {spec.device}",
        "status": status_text(model.status).split("\n")[0],
        "classes": len(manifest.labels),
        "input": format_size(spec.input_size),
        "needs_key": needs_key,
    }
    # To the server that it comes from, and pictures of what was dropped on it.
    allowed = {"connect-src": "'self'", "img-src": "blob:"}
    return "".join(render(_PACKAGE, "home.html.j2", ["home.css"], ["home.js"], context, allowed))


def docs_page(document: dict[str, Any]) -> str:
    """The page that shows the interface.

    Args:
        document: See :func:`deploykit.commands.serve.openapi.openapi_document`.
    """
    operations = [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation["summary"],
            "takes": [*operation.get("requestBody", {}).get("content", {})],
            "responses": [
                (status, answer["description"])
                for status, answer in sorted(operation["responses"].items())
            ],
        }
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    schemas = [
        (name, json.dumps(schema, indent=2))
        for name, schema in sorted(document["components"]["schemas"].items())
    ]
    context = {
        "title": document["info"]["title"],
        "description": document["info"]["description"],
        "operations": operations,
        "schemas": schemas,
        "needs_key": "security" in document,
    }
    return "".join(render(_PACKAGE, "docs.html.j2", ["tables.css", "home.css"], [], context))
