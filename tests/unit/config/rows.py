"""Params for tests: the smoke preset with changes, and the line that refuses them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from pipeline.cli import presets
from rfpp_core.config import params, yaml_file
from rfpp_core.errors import UserError
from tests.helpers import SMOKE


def preset(name: str) -> params.Params:
    return params.parse(yaml_file.parse(presets.composed(name), name))


def changed(*changes: tuple[str, Any], base: str = SMOKE) -> dict[str, Any]:
    """A params file with values put in their places."""
    raw = yaml.safe_load(base)
    for name, value in changes:
        *sections, last = name.split(".")
        at = raw
        for section in sections:
            at = at[section]
        at[last] = value
    return raw


def refused(raw: dict[str, Any]) -> str:
    """The line that params are refused with."""
    with pytest.raises(UserError) as error:
        params.parse(raw, "params.yaml")
    assert "\n" not in str(error.value)
    return str(error.value)


def flow(recipe="reflow", data="pairs2", mix="images", start="flow1") -> dict[str, str]:
    return {"recipe": recipe, "data": data, "mix": mix, "start": start}
