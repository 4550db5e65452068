"""``rfpp preset``: a complete params file, with values set by hand, its comments kept."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from rfpp_core.errors import UserError, quoted

PRESETS = Path(__file__).parents[2] / "presets"
PARAMS = Path("params.yaml")


def preset(
    name: Annotated[str, typer.Argument(help="one of presets/, without .yaml")],
    out: Annotated[Path | None, typer.Option(help="where to put it [params.yaml]")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="reflow.steps=100, as often as you like")
    ] = None,
) -> None:
    """Puts a complete params file in place; an edited one is kept as params.yaml.bak1, ..."""
    from rfpp_core.config import params

    there = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in there:
        raise UserError(f"there is no preset '{quoted(name)}' (presets: {', '.join(there)})")
    if out is None and not Path("dvc.yaml").is_file():
        raise UserError(f"here is no dvc.yaml, so no project that would use {PARAMS}; go to one, "
                        f"or name a file by --out")  # fmt: skip
    out = out or PARAMS
    text = (PRESETS / f"{name}.yaml").read_text()
    for value in values or []:
        text = with_value(text, value)
    params.parse(yaml.safe_load(text), f"preset {name}")
    known = {path.read_bytes() for path in PRESETS.glob("*.yaml")}
    if out.exists() and out.read_bytes() not in {*known, text.encode()}:
        kept = next(p for i in count(1) if not (p := Path(f"{out}.bak{i}")).exists())
        shutil.copy(out, kept)
        print(f"your {out} is kept as {kept}")
    out.write_text(text)
    more = f" with {', '.join(values)}" if values else ""
    print(f"{out} is now preset {name}{more}; `dvc repro` runs it")


def with_value(text: str, assignment: str) -> str:
    """A YAML document with one value set, ``reflow.steps=100``; all else stays as it is.

    Raises:
        UserError: if the assignment is none, or leads through something that is no mapping.
    """
    key, equals, value = assignment.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        raise UserError(f"--set is '{quoted(assignment)}'; it must be like reflow.steps=100")
    try:
        parsed = yaml.safe_load(value)
        made = _place(text, yaml.compose(text, Loader=yaml.SafeLoader), path, value.strip())
        same = yaml.safe_load(made) == _merged(yaml.safe_load(text), path, parsed)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        same, made = False, ""
    if not same:
        raise UserError(f"--set is '{quoted(assignment)}'; that is no value in YAML, or no place "
                        f"in a params file")  # fmt: skip
    return made


def _place(text: str, node: Any, path: list[str], value: str) -> str:
    """Puts a value where it was, or as the first entry of the mapping that lacks it."""
    for i, key in enumerate(path):
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("not a mapping")
        found = next((v for k, v in node.value if k.value == key), None)
        if found is None:
            entry = f"{_name(key)}: " + "".join(f"{{{_name(k)}: " for k in path[i + 1 :])
            entry += (value or "null") + "}" * (len(path) - i - 1)
            at = node.start_mark.index
            if node.flow_style:
                rest = ", " if node.value else ""
                return f"{text[: at + 1]}{entry}{rest}{text[at + 1 :]}"
            return f"{text[:at]}{entry}\n{' ' * node.start_mark.column}{text[at:]}"
        node = found
    start, end = node.start_mark.index, node.end_mark.index
    kept = text[start:end]
    gap = kept[len(kept.rstrip()) :] if isinstance(node, yaml.MappingNode) else ""
    return text[:start] + (value or "null") + gap + text[end:]


def _name(key: str) -> str:
    """A key as YAML, in quotes if it would be a number."""
    return key if isinstance(yaml.safe_load(key), str) else f'"{key}"'


def _merged(document: Any, path: list[str], value: Any) -> Any:
    """The document that is meant."""
    if not path:
        return value
    inner = document.get(path[0], {}) if document else {}
    return {**(document or {}), path[0]: _merged(inner, path[1:], value)}
