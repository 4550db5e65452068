"""Params in the documentation are params of the schema, and the reference has all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.cli import presets
from pipeline.settings import SETTINGS
from rfpp_core.config import params, yaml_file
from rfpp_core.errors import UserError
from tests.unit.docs.markdown import PAGES, Block, blocks, hooks

SHOWN = [(page, i, block) for page in sorted(PAGES)
         for i, block in enumerate(b for b in blocks(page) if b.language == "yaml")]  # fmt: skip


def merged(base: Any, more: Any, depth: int = 99) -> Any:
    """A mapping with another's values put into it; rows beyond ``depth`` are replaced."""
    if not (isinstance(base, Mapping) and isinstance(more, Mapping)) or not depth:
        return more
    return {**base, **{key: merged(base.get(key), value, depth - 1)
                       for key, value in more.items()}}  # fmt: skip


def read(block: Block) -> params.Params:
    """The preset of the page with the block's params in it."""
    base = yaml_file.parse(presets.composed(block.preset), block.preset)
    depth = 2 if "in the place of" in block.title else 99
    return params.parse(merged(base, yaml_file.parse(block.text, "block"), depth))


@pytest.mark.parametrize(("page", "i", "block"), SHOWN, ids=[f"{p}-{i}" for p, i, _ in SHOWN])
def test_yaml_blocks_are_params(page, i, block):
    read(block)


def test_wrong_params_in_a_block_would_be_noticed():
    assert len(SHOWN) > 10
    with pytest.raises(UserError, match="unknown param"):
        read(Block("yaml", "", "recipes: {reflow: {losses: l2}}\n", "digits"))
    with pytest.raises(UserError, match="there is no such row"):
        read(Block("yaml", "", "flows: {flow2: {data: pairs9}}\n", "digits"))


def test_the_reference_has_every_param_with_its_meaning():
    """Walks JSON schema, which the reference does not."""
    schema = params.Params.model_json_schema()
    found = {group.path: {p.name: p for p in group.params} for group in hooks.gen_params.groups()}

    def walk(node: dict[str, Any], path: str) -> int:
        count = 0
        for name, field in node["properties"].items():
            rows = next(iter(field.get("patternProperties", {}).values()), {})
            if ref := field.get("$ref") or rows.get("$ref"):
                row = f".{hooks.gen_params.TABLES[name]}" if rows else ""
                inner = schema["$defs"][ref.rpartition("/")[2]]
                count += walk(inner, f"{path}.{name}{row}".strip("."))
            else:
                param = found[path or "Top level"][name]
                assert param.meaning, f"{path}.{name} has no description"
                assert param.kind
                assert param.default == "required" or "`" in param.default
                count += 1
        return count

    assert walk(schema, "") == sum(len(group) for group in found.values()) > 60
    page = PAGES["docs/reference/params.md"]
    assert all(f"## {path}\n" in page for path in found)


@pytest.mark.parametrize(
    ("path", "name", "kind", "default"),
    [
        ("dataset", "resolution", "integer ≥ 4, ≤ 1024 or `null`", "`null`"),
        ("dataset", "channels", "`1`, `3`", "`1`"),
        ("networks.NETWORK", "channels", "integer ≥ 4, ≤ 4096, a multiple of 4", "`32`"),
        ("networks.NETWORK", "sha256", "64 hex digits or `null`", "`null`"),
        ("recipes.RECIPE", "ema", "number ≥ 0, < 1", "`0.998`"),
        ("recipes.RECIPE", "coupling", "`independent`, `dansm`, `ot`", '`"independent"`'),
        ("recipes.RECIPE.times", "antithetic", "`true`, `false`", "`false`"),
        ("recipes.RECIPE.loss", "weighting", "`constant`, `over_t`", '`"constant"`'),
        ("pairs.PAIRS", "solver", "a [solver](#solvers)", '`"heun"`'),
        ("flows.FLOW", "start", "name of a row", "required"),
        ("evaluate", "nfe", "list of (integer > 0), at least 1", "`[1, 2, 4, 8]`"),
        ("evaluate", "grids", "map to list of (number)", "`{}`"),
    ],
)
def test_types_ranges_and_defaults_are_in_words(path, name, kind, default):
    group = next(group for group in hooks.gen_params.groups() if group.path == path)
    param = next(param for param in group.params if param.name == name)
    assert (param.kind, param.default) == (kind, default)


def test_every_setting_of_the_environment_has_its_default(monkeypatch):
    assert hooks.gen_pipeline.DEFAULTS.keys() == SETTINGS.keys()
    monkeypatch.setenv("RFPP_RETRIES", "7")  # of whoever builds the site
    page = hooks.gen_pipeline.environment()
    assert "| `RFPP_RETRIES` | `3` | integer, 0 to 1,000 |" in page
    assert all(f"| `{name}` | " in page for name in SETTINGS)


def test_stages_are_those_of_dvc_yaml():
    found = {stage.name: stage for stage in hooks.gen_pipeline.read()}
    assert [*found][:2] == ["source", "preflight"]
    assert found["train"].rows == "flows"
    assert found["train"].makes == ["models/NAME.safetensors", "curves/loss/NAME.csv"]
    assert "data/MIX.zarr" in found["train"].reads
    assert found["evaluate"].makes[:2] == ["samples/NAME", "metrics/NAME.json"]
    assert "$" not in PAGES["docs/reference/stages.md"]
