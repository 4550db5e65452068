"""Every command in the documentation is one that exists, with options that exist."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from dvc.cli import DvcParserError
from dvc.cli.parser import get_main_parser
from dvc.exceptions import DvcException
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps

from pipeline import settings
from pipeline.cli import presets
from pipeline.cli.main import USAGE, app
from rfpp_core.config import params, yaml_file
from rfpp_core.errors import UserError
from tests.helpers import ROOT
from tests.unit.docs.markdown import PAGES, Block, blocks, commands, spans

OURS = ("rfpp", "make", "python", "dvc")
PLAIN = ("git", "source", "cd", "pre-commit")  # shell, and tools whose options are not ours
ELSEWHERE = ("pip", "dask", "torchrun", "prefect")  # need more than this machine
WORDS = (*OURS, *PLAIN, *ELSEWHERE)
REMOTE = re.compile(r"^(pip|dask|torchrun|prefect) |^git (clone|push|pull)|^dvc exp (push|pull)")
MARK = re.compile(r"needs? .*(GPU|network|remote|machines)")
ENVIRONMENT = {"PREFECT_API_URL", "PREFECT_HOME", "CUDA_VISIBLE_DEVICES", "FAULTS"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def has_commands(block: Block) -> bool:
    """Whether a block is to be typed: shell, or one of no language that begins with a command."""
    known = any(command.split()[0] in WORDS for command in commands(block))
    return block.language == "sh" or (not block.language and known)


SHOWN = [(page, i, block) for page in sorted(PAGES)
         for i, block in enumerate(blocks(page)) if has_commands(block)]  # fmt: skip
SPANS = sorted({(page, span) for page in PAGES for span in spans(page)
                if page != "CHANGELOG.md"  # which tells of what is gone
                and span.split()[0] in OURS and len(span.split()) > 1})  # fmt: skip


class Wrong(Exception):
    """What is wrong with a command."""


def check(command: str, preset: str, complete: bool = True) -> None:
    """A command line; ``complete`` if it is to be run as it stands, else a mention in a sentence.

    Raises:
        Wrong: saying why it cannot be run.
    """
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        _environment(*words.pop(0).split("=", 1))
    if not words or words[0] not in WORDS:
        raise Wrong(f"{command}: not a known command")
    name, *rest = words
    {"rfpp": _rfpp, "make": _make, "python": _python, "dvc": _dvc, "torchrun": _torchrun}.get(
        name, lambda *_: None
    )(rest, preset, complete)


def _environment(name: str, value: str) -> None:
    if name.startswith("RFPP_"):
        if name not in settings.SETTINGS:
            raise Wrong(f"there is no setting {name}")
        before = os.environ.get(name)
        os.environ[name] = value
        try:
            settings.check()
        except UserError as error:
            raise Wrong(str(error)) from None
        finally:
            os.environ.pop(name) if before is None else os.environ.update({name: before})
    elif name not in ENVIRONMENT:
        raise Wrong(f"{name} is not explained")


def _rfpp(words: list[str], preset: str, complete: bool) -> None:
    command: Any = typer.main.get_command(app)
    name, rest = "rfpp", [word for word in words if word not in ("...", "COMMAND")]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name, command = f"{name} {rest[0]}", command.commands.get(rest.pop(0))
    if command is None:
        raise Wrong(f"there is no command {name}")
    if complete or name == "rfpp preset":
        _parsed(command, name, rest)
    known = {option for param in command.params for option in (*param.opts, "--help")}
    if unknown := [word for word in rest if word.startswith("--") and word not in known]:
        raise Wrong(f"{name} has no {unknown[0]}")


def _parsed(command: Any, name: str, words: list[str]) -> None:
    try:
        given = command.make_context(name, list(words)).params
    except USAGE as error:
        raise Wrong(f"{name}: {error.format_message()}") from None
    if name == "rfpp preset" and given["name"] != "NAME":
        if given["name"] not in presets.names():
            raise Wrong(f"there is no preset {given['name']}")
        text = presets.composed(given["name"])
        for value in given["values"] or []:
            text = presets.with_value(text, value)
        params.parse(yaml_file.parse(text, name), name)


def _make(words: list[str], preset: str, complete: bool) -> None:
    for word in words:
        if "=" not in word and word not in TARGETS:
            raise Wrong(f"there is no target {word}")


def _python(words: list[str], preset: str, complete: bool) -> None:
    if words[0] != "-m":
        raise Wrong(f"python {words[0]} is not checked here; name a module by -m")
    _module(words[1])
    if words[1] == "pytest":
        for word in words[2:]:
            if not word.startswith("-") and not (ROOT / word).exists():
                raise Wrong(f"there is no {word}")


def _torchrun(words: list[str], preset: str, complete: bool) -> None:
    _module(words[words.index("-m") + 1])


def _module(name: str) -> None:
    if name != "pipeline.stages.X" and importlib.util.find_spec(name) is None:
        raise Wrong(f"there is no module {name}")


def _dvc(words: list[str], preset: str, complete: bool) -> None:
    try:
        given = get_main_parser().parse_args(words)
    except (SystemExit, DvcParserError) as error:
        if complete or not _subcommand(words):
            raise Wrong(f"dvc {' '.join(words)}: {error}") from None
        return
    for override in _sweeps(getattr(given, "set_param", None) or [], preset):
        params.parse(override, "-S")
    for target in getattr(given, "targets", None) or []:
        stage, _, row = target.partition("@")
        sections = {"network": "networks", "generate": "pairs", "train": "flows",
                    "evaluate": "flows"}  # fmt: skip
        rows = yaml_file.parse(presets.composed(preset), preset).get(sections.get(stage, ""), {})
        if row and row != "NAME" and row not in rows:
            raise Wrong(f"there is no stage {target} in preset {preset}")


def _subcommand(words: list[str]) -> bool:
    """Whether a mention names a command of DVC, though it leaves out what that needs."""
    name = [word for word in words if re.fullmatch("[a-z]+", word)][:2]
    try:
        get_main_parser().parse_args([*name, "--help"])
    except SystemExit as error:
        return error.code == 0
    except DvcParserError:
        return False
    return True


def _sweeps(overrides: list[str], preset: str) -> Iterator[dict[str, Any]]:
    """The params of every experiment that ``-S`` asks for, as DVC composes them."""
    for sweep in get_hydra_sweeps({"params.yaml": overrides}) if overrides else []:
        path = Path("params.yaml")
        path.write_text(presets.composed(preset))
        try:
            apply_overrides(path, sweep["params.yaml"])
        except DvcException as error:
            raise Wrong(f"-S {sweep['params.yaml']} over preset {preset}: {error}") from None
        yield yaml_file.read(path)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("page", "i", "block"), SHOWN, ids=[f"{p}-{i}" for p, i, _ in SHOWN])
def test_commands_exist_with_their_options(page, i, block):
    for command in commands(block):
        check(command, block.preset)


@pytest.mark.parametrize(("page", "i", "block"), SHOWN, ids=[f"{p}-{i}" for p, i, _ in SHOWN])
def test_blocks_that_need_more_than_this_machine_say_so(page, i, block):
    wanting = [c for c in commands(block) if REMOTE.match(re.sub(r"^([A-Z_]+=\S+ )+", "", c))]
    assert not wanting or MARK.search(block.title + block.text)


@pytest.mark.parametrize(("page", "span"), SPANS)
def test_commands_in_sentences_exist(page, span):
    check(span, "digits", complete=False)


def test_commands_are_found():
    assert len(SHOWN) > 20
    assert len(SPANS) > 20


@pytest.mark.parametrize(
    "command",
    [
        "rfpp draw",
        "rfpp sample --steps 3",
        "rfpp sample --nfe many",
        "rfpp export",  # without its argument
        "rfpp pairs check data/pairs2.zarr",
        "rfpp preset nothing",
        "make study",
        "python -m pipeline.stages.pretrain",
        "python -m pytest tests/nothing",
        "dvc exp runs",
        "dvc exp run --later",
        "dvc exp run -S recipes.reflow.times.law=uniform",
        "dvc exp run -S recipes.reflow.dropout=0.1",  # not in the file: it needs a plus
        "dvc exp run -S +recipes.reflow.dropuot=0.1",
        "dvc exp run -S recipes.reflow.steps=many",
        "dvc repro generate@pairs9",
        "RFPP_WORKER=3 dvc repro",
        "RFPP_WORKERS=all dvc repro",
        "curl something",
    ],
)
def test_wrong_commands_would_be_noticed(command):
    with pytest.raises((Wrong, UserError)):
        check(command, "digits")


@pytest.mark.parametrize(
    "command",
    [
        "dvc exp run -n x -S recipes.reflow.steps=3000 -S +recipes.reflow.dropout=0.1",
        "dvc exp run --queue -S 'seed=range(1,6)'",
        "dvc exp run -S 'recipes.reflow.lr=0.001,0.003'",
        "RFPP_DEVICES=cuda:0,cuda:1 dvc repro",
        "make faults ROUNDS=200 SEED=9",
    ],
)
def test_right_commands_pass(command):
    check(command, "digits")


def test_a_block_without_its_mark_would_be_noticed():
    block = Block("sh", "", "git clone URL\n", "digits")
    assert REMOTE.match(commands(block)[0])
    assert not MARK.search(block.title + block.text)
