"""The reference of params, made from the schema at every build of the site."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from rfpp_core.config.params import Params
from rfpp_core.config.section import Section, SolverName
from rfpp_core.sampling.solver_table import SOLVERS

NO_LIMIT = 10**12  # bounds from here on are there for safety and say nothing to a reader
PATTERNS = {
    r"^[^\x00]*$": "path",
    r"^[0-9a-f]{64}$": "64 hex digits",
    r"^[a-z][a-z0-9_]{0,63}$": "name of a row",
}
TABLES = {"networks": "NETWORK", "recipes": "RECIPE", "pairs": "PAIRS", "flows": "FLOW"}
INTRODUCTION = """# Params

Every option of `params.yaml`, with its type, range and default. This page is made from the schema,
`rfpp_core/config`, whenever the site is built.

- A param that is left out has its default. Unknown params, NaN and infinities are refused.
- `networks`, `recipes`, `pairs` and `flows` are tables: you name their rows. A name is made of
  a-z, 0-9 and _, a letter first.
- An option that the chosen distribution, loss or network does not use has no effect.
- `dvc exp run -S recipes.reflow.steps=3000` changes a param that the file has, and
  `-S +recipes.reflow.dropout=0.1` one that it lacks.
- `rfpp preset digits --set recipes.reflow.steps=3000` writes a file that has it.
"""
SOLVER_NOTE = """## Solvers

`rk2:<delta>`, 0 < delta ≤ 1, is the two-stage rule with its second stage at delta of the step:
`heun` is `rk2:1`, `midpoint` is `rk2:0.5`, also named `rf-solver`. `taylor:<delta>` is RF-Solver's
with its difference taken over delta of time instead. A two-stage solver spends an odd NFE with the
last step cut to one evaluation; `fireflow` takes one more in its first step, so N + 1 for N steps.

"""


class Param(NamedTuple):
    """A row of the reference."""

    name: str
    kind: str
    default: str
    meaning: str


class Group(NamedTuple):
    """A table of the reference: its path in params.yaml, what it is, its params."""

    path: str
    about: str
    params: list[Param]


def page() -> str:
    """The page, in Markdown."""
    parts = [INTRODUCTION]
    for group in groups():
        level = "###" if group.path.count(".") > 1 else "##"
        parts.append(f"{level} {group.path}\n\n{group.about}\n\n{table(group.params)}")
    return "\n".join([*parts, solvers()])


def groups() -> Iterator[Group]:
    """Every section of the schema, nested ones after the one that holds them."""
    single = [(n, f) for n, f in Params.model_fields.items() if _section(f) is None]
    schema = Params.model_json_schema()["properties"]
    yield Group("Top level", "", [_param(name, field, schema[name]) for name, field in single])
    for name, field in Params.model_fields.items():
        if (section := _section(field)) is not None:
            row = f".{TABLES[name]}" if _is_table(field) else ""
            yield from _groups(f"{name}{row}", section)


def _groups(path: str, section: type[Section]) -> Iterator[Group]:
    schema, inner = section.model_json_schema()["properties"], []
    params = []
    for name, field in section.model_fields.items():
        if (nested := _section(field)) is not None:
            inner.append((name, nested))
        else:
            params.append(_param(name, field, schema[name]))
    yield Group(path, _markdown(section.__doc__ or ""), params)
    for name, nested in inner:
        yield from _groups(f"{path}.{name}", nested)


def _is_table(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is dict and _section(field) is not None


def _section(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, or a map of which it holds; None for a plain param."""
    kind: Any = field.annotation
    if get_origin(kind) is dict:
        kind = get_args(kind)[1]
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _param(name: str, field: FieldInfo, schema: dict[str, Any]) -> Param:
    solver = any(check in field.metadata for check in SolverName.__metadata__)
    kind = "a [solver](#solvers)" if solver else kind_of(schema)
    default = "required" if field.is_required() else f"`{json.dumps(schema['default'])}`"
    return Param(name, kind, default, field.description or "")


def kind_of(schema: dict[str, Any]) -> str:
    """Type and range of a param in words, of its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(kind_of(option) for option in schema["anyOf"])
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in values)
    match schema["type"]:
        case "array":
            least = f", at least {n}" if (n := schema.get("minItems")) else ""
            most = f", at most {n}" if (n := schema.get("maxItems")) else ""
            return f"list of ({kind_of(schema['items'])}){least}{most}"
        case "object":
            return f"map to {kind_of(schema['additionalProperties'])}"
        case "boolean":
            return "`true`, `false`"
        case "null":
            return "`null`"
        case "string":
            return PATTERNS.get(schema.get("pattern", ""), "text")
        case number:
            return f"{number}{_range(schema)}"


def _range(schema: dict[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in signs.items()
              if key in schema and abs(schema[key]) < NO_LIMIT]  # fmt: skip
    if step := schema.get("multipleOf"):
        limits.append(f"a multiple of {step:g}")
    return f" {', '.join(limits)}" if limits else ""


def table(params: list[Param]) -> str:
    """Params as a table in Markdown."""
    lines = ["| param | type and range | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{p.name}` | {p.kind} | {p.default} | {_cell(p.meaning)} |" for p in params]
    return "\n".join(lines) + "\n"


def solvers() -> str:
    """The table of solvers."""
    yes = {True: "yes", False: "no"}
    lines = ["| solver | evaluations a step | has an inverse | starts at t = 1 | odd NFE only |",
             "|---|---|---|---|---|"]  # fmt: skip
    lines += [f"| `{name}` | {p.stages} | {yes[p.invertible]} | {yes[p.starts_at_1]} | "
              f"{yes[p.drops_last]} |" for name, p in SOLVERS.items()]  # fmt: skip
    return SOLVER_NOTE + "\n".join(lines) + "\n"


def _markdown(docstring: str) -> str:
    """A docstring's paragraphs, with Markdown's code marks."""
    return re.sub(r"``(.+?)``", r"`\1`", re.sub(r"\n +", "\n", docstring.strip()))


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
