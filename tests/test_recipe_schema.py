"""What is generated from the recipe's types is current, and the types are those of the engine."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cachedit_cli.recipe import Recipe, json_schema
from cachedit_cli.recipe_model import KINDS
from cachedit_cli.terms.config import (
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    Settings,
    TaylorSeerCalibratorConfig,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS: list[type[Settings]] = [DBCacheConfig, DBPruneConfig, CalibratorConfig, TaylorSeerCalibratorConfig]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_reference", ROOT / "tools/recipe_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current(tool: ModuleType) -> None:
    """If not: python tools/recipe_reference.py."""
    assert (ROOT / "docs/recipe-reference.md").read_text(encoding="utf-8") == tool.reference()


def test_the_saved_schema_is_current(tool: ModuleType) -> None:
    """If not: python tools/recipe_reference.py."""
    assert (ROOT / "recipes/schema.json").read_text(encoding="utf-8") == tool.schema_text()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_section_has_the_fields_and_defaults_of_its_dataclass(config: type[Settings]) -> None:
    kind = str(vars(config).get("kind", "DBCache"))
    section = KINDS[f"<{kind}>"]
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    assert list(section.model_fields) == ["type", *fields]
    made: Any = section.model_validate({"type": kind})
    assert {
        name: tuple(value) if isinstance(value := getattr(made, name), list) else value for name in fields
    } == fields


def test_every_field_has_a_meaning() -> None:
    schema = json_schema()
    sections = {"recipe": schema, **schema["$defs"]}
    without = [
        f"{title}.{name}"
        for title, section in sections.items()
        for name, field in section["properties"].items()
        if not field.get("description", field.get("$ref"))
    ]
    assert without == []


def test_the_reference_lists_every_field(tool: ModuleType) -> None:
    listed = re.findall(r"^\| `(\w+)` \|", tool.reference(), re.MULTILINE)
    schema = json_schema()
    fields = {name for section in (schema, *schema["$defs"].values()) for name in section["properties"]}
    assert fields == set(listed)


def test_the_schema_knows_what_the_types_know() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == {"extends", *Recipe.model_fields}
    assert schema["then"]["required"] == ["version", "model", "generate"]
    assert all(section["additionalProperties"] is False for section in schema["$defs"].values())
    kinds = [reference["$ref"].rsplit("/", 1)[-1] for reference in schema["properties"]["cache"]["anyOf"]]
    assert [schema["$defs"][kind]["properties"]["type"]["const"] for kind in kinds] == ["DBCache", "DBPrune", "none"]
    assert json.loads(json.dumps(schema)) == schema
