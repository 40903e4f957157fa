from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from smarttrim_cli import registry
from smarttrim_cli.recipe import recipe_schema
from tests.recipe import example_plugins


@pytest.fixture
def schema(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(registry, "names", lambda kind: ["example"])
    monkeypatch.setattr(registry, "load", lambda kind, name: example_plugins.Trimmer)
    return recipe_schema()


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def test_every_key_has_a_description(schema: dict[str, Any]) -> None:
    sections = [schema, *(s for name, s in schema["$defs"].items() if name not in registry.KINDS)]
    fields = [field for section in sections for field in section["properties"].values()]
    assert len(fields) > 50
    assert all("description" in field for field in fields)


def test_references_lead_somewhere(schema: dict[str, Any]) -> None:
    references = {node["$ref"] for node in walk(schema) if isinstance(node.get("$ref"), str)}
    assert references
    assert all(reference.removeprefix("#/$defs/") in schema["$defs"] for reference in references)


def test_plugin_sections_offer_plugins_by_name(schema: dict[str, Any]) -> None:
    assert schema["properties"]["backbone"]["anyOf"] == [{"$ref": "#/$defs/backbones"}]
    trimmer = schema["$defs"]["Pruning"]["properties"]["token_trimmer"]
    assert trimmer["anyOf"] == [{"$ref": "#/$defs/trimmers"}, {"type": "null"}]
    own, outside = schema["$defs"]["trimmers"]["anyOf"]
    assert own["properties"]["name"] == {"const": "example"}
    assert own["properties"]["hidden_dim"]["default"] == 96
    assert outside["properties"]["name"]["pattern"] == "[.:]"
