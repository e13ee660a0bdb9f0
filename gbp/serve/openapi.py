"""The OpenAPI document, which `GET /openapi.json` gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from .. import Panel, __version__
from ..methods import METHODS
from ..rules import RULE_NAMES
from .limits import Limits
from .requests import EXTRAS, FORMATS, MAX_TEXT, STYLES

#: Schemas of small things.
_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}
_TEXTS = {"type": "array", "items": _TEXT}

_ERRORS = {
    400: "The query, the form or the body is not as described here.",
    404: "There is no such path or model.",
    405: "The path has no such method.",
    406: "No accepted format can be written.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "Content-Encoding says that the body is compressed.",
    422: "gbp refuses the picture, the array or the target.",
    503: "The server is busy or not ready yet; Retry-After says for how many seconds.",
}


def document(names: Sequence[str], limits: Limits) -> dict[str, Any]:
    """The document for models of these names."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gbp",
            "version": __version__,
            "summary": "Explains the decisions of CNNs.",
            "description": f"Limits: {limits}.",
        },
        "paths": {
            "/v1/models": {
                "get": {
                    "operationId": "models",
                    "summary": "The models, their rules and styles.",
                    "responses": {"200": _json("The models.", {"$ref": "#/components/schemas/Models"})},
                }
            },
            "/v1/models/{name}/explain": {"post": _explain(names, limits)},
            "/healthz": {"get": _plain("healthz", "Whether the process lives.")},
            "/readyz": {"get": _plain("readyz", "Whether the models are ready.", 503)},
            "/metrics": {"get": _plain("metrics", "Figures for Prometheus.")},
            "/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "This document.",
                    "responses": {"200": _json("This document.", {"type": "object"})},
                }
            },
            "/": {
                "get": {
                    "operationId": "page",
                    "summary": "The page for people.",
                    "responses": {"200": {"description": "HTML.", "content": {"text/html": {}}}},
                }
            },
        },
        "components": {"schemas": _schemas()},
    }


def _explain(names: Sequence[str], limits: Limits) -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"file": file}, "required": ["file"]}
    answers = {
        "application/json": {"schema": {"$ref": "#/components/schemas/Explanation"}},
        **{media: {"schema": file} for media in FORMATS.values() if media != "application/json"},
    }
    return {
        "operationId": "explain",
        "summary": "Explains one picture, or one array.",
        "description": "The header Accept chooses the format of the answer, unless the query does.",
        "parameters": [
            {"name": "name", "in": "path", "required": True, "schema": _enum(names)},
            *_queries(limits),
        ],
        "requestBody": {
            "required": True,
            "description": "A picture or an .npy file, recognised by its content; alone or in a form.",
            "content": {
                **{media: {"schema": file} for media in ("image/*", "application/octet-stream")},
                "multipart/form-data": {"schema": form},
            },
        },
        "responses": {
            "200": {"description": "The explanation.", "content": answers},
            **{
                str(status): _json(text, {"$ref": "#/components/schemas/Error"})
                for status, text in _ERRORS.items()
            },
        },
    }


def _queries(limits: Limits) -> list[dict[str, Any]]:
    """The parameters of the query of `explain`."""
    text = {"type": "string", "maxLength": MAX_TEXT}
    return [
        _query("rule", {**_enum(RULE_NAMES), "default": "guided"}, "Which gradient."),
        _query(
            "method", _enum(tuple(METHODS)), "What is built of gradients; by default the rule's map alone."
        ),
        _query("layer", text, "The tensor that the method looks at, where it looks at one."),
        _query(
            "target",
            text,
            "A class index, a label, an index for each axis of the scores (5763:1), or top1 to "
            f"top{limits.targets}.  By default what the picture is taken for.",
        ),
        _query("at", text, "A hidden tensor: its strongest unit."),
        _query("channel", {"type": "integer"}, "With at: the strongest unit of this channel."),
        _query("unit", {"type": "string"}, "With at: this unit, an index for each axis, as 17,5,7."),
        _query("style", _enum(STYLES), "How a picture is drawn."),
        _query("format", _enum(tuple(FORMATS)), "The format of the answer, whatever Accept says."),
        {
            **_query(
                "include",
                {"type": "array", "items": _enum(EXTRAS)},
                "What an answer in JSON holds besides: the map as an .npz file, and what the network "
                "sees of the picture as a PNG, both in base64.",
            ),
            "style": "form",
            "explode": False,
        },
    ]


def _schemas() -> dict[str, Any]:
    chosen = {
        "class": {"type": ["integer", "null"], "description": "Null for a hidden unit."},
        "position": _TEXT,
        "label": _TEXT,
        "score": _NUMBER,
        "probability": {"type": ["number", "null"]},
    }
    error = {name: {"type": ["string", "null"]} for name in ("found", "supported", "hint", "node", "op")}
    return {
        "Models": _object(
            {
                "models": {"type": "array", "items": _model()},
                "limits": {"type": "object", "additionalProperties": _NUMBER},
                "version": _TEXT,
                "ready": {"type": "boolean", "description": "Whether explanations are answered."},
                "compiled": {"type": "integer", "description": "Kernels that the process had to compile."},
            }
        ),
        "Score": {**_object(chosen), "required": ["class", "label", "score", "probability"]},
        "Explanation": _explanation(),
        "Error": _object({"error": _object({"type": _TEXT, "message": _TEXT} | error)}),
    }


def _model() -> dict[str, Any]:
    """The schema of a model, as `GET /v1/models` lists it."""
    model = {
        "name": _TEXT,
        "input_shape": {"type": "array", "items": {"type": ["integer", "null"]}},
        "pictures": {"type": "boolean", "description": "Whether it takes pictures, or arrays alone."},
        "channels": {"type": ["string", "null"], "description": "The order of colours in the map."},
        "labels": {"type": ["integer", "null"], "description": "How many labels there are."},
        "rules": {
            "type": "array",
            "items": _object({"name": _TEXT, "source": _TEXT, "caution": _TEXT, "gate": {"type": "boolean"}}),
        },
        "tensors": {
            "type": "array",
            "items": _object(
                {"name": _TEXT, "op": _TEXT, "shape": {"type": "array", "items": {"type": "integer"}}}
            ),
        },
        "methods": {
            "type": "array",
            "items": _object(
                {
                    "name": _TEXT,
                    "source": _TEXT,
                    "rule": {
                        "type": ["string", "null"],
                        "description": "Its default; null where it has a rule of its own.",
                    },
                    "layer": {"type": "boolean", "description": "Whether it looks at a layer."},
                }
            ),
        },
        "styles": _TEXTS,
    }
    return _object(model)


def _explanation() -> dict[str, Any]:
    """The schema of an explanation in JSON."""
    timing = {"waited_ms": _NUMBER, "explained_ms": _NUMBER, "together": {"type": "integer"}}
    base64 = {"type": "string", "contentEncoding": "base64"}
    scores = {"type": "array", "items": {"$ref": "#/components/schemas/Score"}}
    setting = {"type": ["object", "array", "string", "number", "boolean", "null"], "items": _NUMBER}
    settings = {"type": ["object", "null"], "additionalProperties": setting}
    explanation = {
        "model": _TEXT,
        "rule": _TEXT,
        "method": _TEXT,
        "details": {"type": "object", "additionalProperties": True},
        "explained": scores,
        "top": scores,
        "notes": _TEXTS,
        "caution": _TEXT,
        "timing": _object(timing),
        "provenance": _object(
            {"gbp": _TEXT, "model": _TEXT, "sha256": _TEXT, "preprocess": settings, "options": settings}
        ),
    }
    extras = {
        "map": {**base64, "description": "An .npz file: map, scores, target, rule, notes, layout."},
        "means": {**_object(dict.fromkeys(get_args(Panel), _TEXT)), "description": "How to read each style."},
        "input": {"type": ["string", "null"], "contentEncoding": "base64", "contentMediaType": "image/png"},
    }
    return {
        "type": "object",
        "properties": explanation | extras,
        "required": [name for name in explanation if name not in ("method", "details")],
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _enum(values: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _plain(name: str, summary: str, *others: int) -> dict[str, Any]:
    text = {"description": "Text.", "content": {"text/plain": {}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {str(status): text for status in (200, *others)},
    }
