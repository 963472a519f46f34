"""JSON Schema of a recipe file, for editors; what pydantic makes of the types, as a file with `extends` reads it."""

from __future__ import annotations

from typing import Any

from .recipe_model import Recipe

__all__ = ["json_schema"]

_EXTENDS = {
    "description": "Recipe that this one changes: a bundled name, or a path relative to this file. Mappings are "
    "merged, lists and values replaced; `name` and `description` are not inherited.",
    "type": "string",
}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file."""
    schema = Recipe.model_json_schema()
    required = [key for key in schema.pop("required") if key != "name"]  # which the name of the file stands in for
    for title, section in schema["$defs"].items():
        if title != "Blocks":  # what any other section lacks may come from the recipe below
            section.pop("required", None)
    _simplify(schema)
    first = {key: schema["properties"].pop(key) for key in ("version", "name")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "cachedit recipe",
        "description": schema["description"],
        "type": "object",
        "properties": {**first, "extends": _EXTENDS, **schema["properties"]},
        "additionalProperties": False,
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": required},
        "$defs": schema["$defs"],
    }


def _simplify(schema: Any) -> None:
    """Take out what speaks of our types and not of recipes."""
    if isinstance(schema, list):
        for each in schema:
            _simplify(each)
    elif isinstance(schema, dict):
        if "oneOf" in schema:
            # A mapping that inherits its type says nothing of it, and may be of several kinds.
            kinds = schema.pop("oneOf")
            schema.update({"anyOf": kinds} if len(kinds) > 1 else kinds[0])
        if "default" in schema and schema["default"] is None:
            del schema["default"]
        properties = schema.get("properties", {})
        for each in properties.values():
            each.pop("title", None)
        for each in schema.values():
            _simplify(each)
