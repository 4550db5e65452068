"""``rfpp preset``: writes a params file, optionally with some values changed.

A preset is a complete params file, or an overlay of another: ``extends: digits`` and the values
that differ, which are put in their places in the other's text, so that its comments stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pipeline import artifacts
from rfpp_core.config import rules, yaml_file
from rfpp_core.errors import UserError, quoted
from rfpp_core.storage import files

PRESETS = Path(__file__).parents[2] / "presets"
# of presets alone: ten times as fast, where there is libyaml
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NOW_ROWS = """its sections are now tables of rows that you name:
  network                 -> a row of networks, such as networks.unet
  pretrain, reflow        -> rows of recipes; times.law is times.distribution now
  loss.name: lpips_huber  -> loss: {name: pseudo_huber, perceptual: lpips}, and lpips_huber_over_t
                             has weighting: over_t besides
  generate, rounds        -> rows of pairs and flows: pairs2: {teacher: flow1, n: ...}, and
                             flow2: {recipe: reflow, data: pairs2, mix: images, start: flow1}
  reflow.init: scratch    -> start: a row of networks
  pretrain.source: import -> checkpoint and sha256 in a row of networks, and a recipe of 0 steps
  generate.source: import -> source: import, path and digest in a row of pairs
  invert                  -> a row of pairs with source: images
  finetune, finetunes     -> a recipe, and a flow on those pairs; mix names the second set
  evaluate.teacher_nfe    -> evaluate.many_nfe; teacher_seeds -> many_seeds of a flow"""


def preset(
    name: Annotated[str, typer.Argument(help="name of a file in presets/, without .yaml")],
    out: Annotated[Path | None, typer.Option(help="file to write [params.yaml]")] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="value to change, such as seed=1; may be repeated"),
    ] = None,
) -> None:
    """Writes a complete params file.  An edited one is saved as params.yaml.bak1, ... before."""
    from rfpp_core.config import params

    if name not in names():
        raise UserError(f"there is no preset '{quoted(name)}' (presets: {', '.join(names())})")
    if out is None and not Path("dvc.yaml").is_file():
        raise UserError(f"there is no dvc.yaml here, so no project that would use "
                        f"{artifacts.PARAMS}; go to one, or name a file by --out")  # fmt: skip
    out = out or artifacts.PARAMS
    text = composed(name)
    for value in values or []:
        text = with_value(text, value)
    params.parse(yaml_file.parse(text, f"preset {name}"), f"preset {name}")
    if out.exists() and out.read_bytes() not in {text.encode(), *_untouched()}:
        saved = next(p for i in count(1) if not (p := Path(f"{out}.bak{i}")).exists())
        shutil.copy(out, saved)
        print(f"your {out} is saved as {saved}")
        if _is_earlier(saved):
            print(NOW_ROWS)
    files.write_atomic(out, lambda part: part.write_text(text, encoding="utf-8"))
    more = f" with {', '.join(values)}" if values else ""
    print(f"{out} is now preset {name}{more}; `dvc repro` runs it")


def names() -> list[str]:
    """The presets there are."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def composed(name: str) -> str:
    """The params file of a preset."""
    text = (PRESETS / f"{name}.yaml").read_text()
    tree: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    nodes = {key.value: node for key, node in tree.value}
    if "extends" not in nodes:
        return text
    base = composed(nodes.pop("extends").value)
    lines = base.splitlines(keepends=True)
    body = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    leaves = _leaves(nodes, yaml_file.parse(base, name))
    values = ((path, text[node.start_mark.index : node.end_mark.index]) for path, node in leaves)
    made = _with("".join(lines[body:]), values, LOADER)
    header = text[: text.index("extends:")]
    return f"{header.rstrip()}\n{made}"


def _leaves(nodes: Mapping[str, Any], base: Any) -> Iterator[tuple[list[str], Any]]:
    """The values that differ, by their path; a row that the base lacks is one value."""
    for key, node in nodes.items():
        inner = base.get(key) if isinstance(base, Mapping) else None
        if isinstance(node, yaml.MappingNode) and isinstance(inner, Mapping):
            within = {name.value: value for name, value in node.value}
            yield from (([key, *path], leaf) for path, leaf in _leaves(within, inner))
        else:
            yield [key], node


def _untouched() -> Iterator[bytes]:
    """Params files that were not edited."""
    for name in names():
        yield composed(name).encode()


def _is_earlier(path: Path) -> bool:
    """Whether a params file is of a version before networks, recipes, pairs and flows."""
    try:
        document = yaml_file.read(path)
    except UserError:
        return False
    return isinstance(document, dict) and bool(rules.earlier_sections(document))


def with_value(text: str, assignment: str) -> str:
    """A YAML document with one value set, ``recipes.reflow.steps=100``; all else stays as it is.

    Raises:
        UserError: if it is not an assignment, or its place is inside something other than a
            mapping.
    """
    key, equals, value = assignment.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        raise UserError(f"--set is '{quoted(assignment)}'; it must be like "
                        f"recipes.reflow.steps=100")  # fmt: skip
    try:
        return _with(text, [(path, value)])
    except (UserError, yaml.YAMLError, ValueError, TypeError, RecursionError):
        raise UserError(f"--set is '{quoted(assignment)}'; that is not a value in YAML, or not a "
                        f"place in a params file") from None  # fmt: skip


def _with(
    text: str, values: Iterable[tuple[list[str], str]], loader: Any = yaml.SafeLoader
) -> str:
    """A YAML document with values at their paths; ValueError if one cannot be placed there."""
    made, wanted = text, yaml_file.parse(text, "it")
    for path, value in values:
        made = _place(made, yaml.compose(made, Loader=loader), path, value.strip())
        wanted = _merged(wanted, path, yaml_file.parse(value.strip(), "it"))
    if yaml_file.parse(made, "it") != wanted:
        raise ValueError("it reads differently there")
    return made


def _place(text: str, node: Any, path: list[str], value: str) -> str:
    """Replaces a value, or adds it as the last entry of the mapping that lacks it."""
    for i, key in enumerate(path):
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("not a mapping")
        found = next((v for k, v in node.value if k.value == key), None)
        if found is None:
            entry = f"{_name(key)}: " + "".join(f"{{{_name(k)}: " for k in path[i + 1 :])
            entry += (value or "null") + "}" * (len(path) - i - 1)
            at = _end_of(node)
            if node.flow_style:
                return f"{text[:at]}{', ' if node.value else ''}{entry}{text[at:]}"
            line = text.find("\n", at)
            at = len(text) if line < 0 else line
            return f"{text[:at]}\n{' ' * node.start_mark.column}{entry}{text[at:]}"
        node = found
    start, end = node.start_mark.index, node.end_mark.index
    old = text[start:end]
    gap = old[len(old.rstrip()) :] if isinstance(node, yaml.MappingNode) else ""
    return text[:start] + (value or "null") + gap + text[end:]


def _end_of(node: Any) -> int:
    """Where the last entry of a mapping ends, without what follows it."""
    if not node.value:
        return int(node.start_mark.index) + 1
    last = node.value[-1][1]
    while isinstance(last, yaml.MappingNode) and not last.flow_style and last.value:
        last = last.value[-1][1]
    return int(last.end_mark.index)


def _name(key: str) -> str:
    """A key as YAML, in quotes if it would not be read as a string."""
    return key if isinstance(yaml_file.parse(key, "key"), str) else f'"{key}"'


def _merged(document: Any, path: list[str], value: Any) -> Any:
    """The document with the value at the path."""
    if not path:
        return value
    inner = document.get(path[0], {}) if document else {}
    return {**(document or {}), path[0]: _merged(inner, path[1:], value)}
