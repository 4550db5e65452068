"""The reference of the command line, made from the commands themselves at every build."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from pipeline.cli.main import app

KINDS = {Path: "path", int: "integer", float: "number", str: "text", bool: ""}
INTRODUCTION = """# Command line

Every command and option of `rfpp`. This page is made from the program whenever the site is built;
`rfpp COMMAND --help` says the same. A user's mistake is one line and exit code 2.
"""


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([INTRODUCTION, *(_section(*command) for command in commands())])


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, groups opened."""
    yield from _below("rfpp", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    for word, inner in getattr(command, "commands", {}).items():
        yield from _below(f"{name} {word}", inner)
    if not hasattr(command, "commands"):
        yield name, command


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([name, *map(_usage, arguments), *(["[OPTIONS]"] if options else [])])
    lines = [f"## {name}", "", command.help or "", "", "```text", usage, "```", ""]
    for title, found in (("argument", arguments), ("option", options)):
        if found:
            rows = [_row(param, _kind(command, param.name)) for param in found]
            lines += [f"| {title} | type | default | |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _usage(argument: Any) -> str:
    name = f"{argument.name.upper()}{'...' if argument.nargs == -1 else ''}"
    return name if argument.required else f"[{name}]"


def _kind(command: Any, name: str) -> str:
    """The type of a parameter in a word, of the function behind the command."""
    hint = get_type_hints(inspect.unwrap(command.callback))[name]
    while args := [arg for arg in get_args(hint) if arg is not type(None)]:
        hint = args[0]
    return KINDS[hint]


def _row(param: Any, kind: str) -> str:
    option = param.param_type_name == "option"
    names = " ".join(f"`{n}`" for n in (*param.opts, *param.secondary_opts) if option)
    names = names or f"`{param.name.upper()}`"
    default = "required" if param.required else _default(param)
    meaning = (param.help or "").replace("|", r"\|")
    return f"| {names} | {kind} | {default} | {meaning} |"


def _default(param: Any) -> str:
    """What stands where an option is not given; nothing where its help says what happens."""
    value = param.default
    if value is None or value is False or value == [] or callable(value):
        return ""
    return f"`{value}`"
