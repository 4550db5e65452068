"""``rfpp work``: lists, adopts and removes staged work (``.work/<kind>/<identity>``)."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import artifacts, console
from pipeline.work import evaluation_job, training_job, workdir
from rfpp_core.errors import UserError
from rfpp_core.storage import files

TYPES = {"training": dict, "code": dict, "architecture": dict, "shard": int}  # in an identity
app = typer.Typer(
    no_args_is_help=True,
    help="List, adopt or remove staged work.  It lies in .work/, for runs to resume from.",
)


@app.command("list")
def list_() -> None:
    """Lists staged work: name, size and progress."""
    for path in _staged():
        try:
            state = _state(path, _identity(path))
        except UserError as error:
            console.warn(f"{_name(path)} is skipped: {error}")
            continue
        print(f"{_name(path)}  {_size(path) / 1e6:8.1f} MB  {state}")


@app.command("adopt")
def adopt(
    name: Annotated[str, typer.Argument(help="as `rfpp work list` shows it")],
    why: Annotated[
        str, typer.Option(help="reason, for the provenance")
    ] = "code changed harmlessly",
) -> None:
    """Reuses work although the code changed.  Results made from it record this."""
    path = _find(name)
    try:
        document = _identity(path)
        now = training_job.code_now(document) if "training" in document else {}
    except UserError as error:
        raise UserError(f"{_name(path)}: {error}") from None
    if not {"training", "shard"} & document.keys():
        raise UserError(f"{name}: only trainings and pairs can be adopted; `dvc repro` makes "
                        f"other results again")  # fmt: skip
    note: dict[str, Any] = {"why": why}
    target = path
    if "training" in document:
        then = document["code"]
        note["modules"] = sorted(m for m in now.keys() | then.keys() if now.get(m) != then.get(m))
        if not note["modules"]:
            raise UserError(f"{name} was made by the code as it is; there is nothing to adopt")
        document["code"] = now
        target = path.parent / workdir.name_of(document)
        if target.exists():
            raise UserError(f"there is newer work at {_name(target)}; remove it first: `rfpp work "
                            f"clean {_name(target)}`")  # fmt: skip
    with files.locked(workdir.lock_of(path), name, console.warn):
        _record(path, document, note)
        if target != path:
            path.rename(target)
    print(f"adopted as {_name(target)}; `dvc repro` resumes from it")


def _record(path: Path, document: dict[str, Any], note: dict[str, Any]) -> None:
    """Records the adoption; finished models are removed, to be written again with the record."""
    file = path / "adopted.json"
    notes = json.loads(file.read_text()) if file.exists() else []
    files.write_json(file, [*notes, note])
    files.write_json(path / "identity.json", document)
    for model in path.glob("flow-*.safetensors"):
        model.unlink()


@app.command("clean")
def clean(
    name: Annotated[str | None, typer.Argument(help="one entry; without a name, all")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove all without confirmation")] = False,
) -> None:
    """Removes staged work.  Results that DVC tracks are not touched, nor work in use."""
    found = [_find(name)] if name else _staged()
    if not name and found and not yes:
        size = sum(_size(path) for path in found)
        what = f"all {len(found)} entries of .work ({size / 1e6:,.1f} MB)"
        if not sys.stdin.isatty():
            raise UserError(
                f"this would remove {what}; name one of `rfpp work list`, or add --yes"
            )
        typer.confirm(f"remove {what}?", abort=True)
    busy = []
    for path in found:
        with files.unless_busy(workdir.lock_of(path)) as free:
            if free:
                shutil.rmtree(path)
                print(f"removed {_name(path)}")
            else:
                busy.append(_name(path))
    if busy:
        raise UserError(f"{', '.join(busy)}: in use by a running stage, so not removed; stop it "
                        f"first")  # fmt: skip


def _staged() -> list[Path]:
    return sorted(path.parent for path in artifacts.work().glob("*/*/identity.json"))


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _find(name: str) -> Path:
    found = [path for path in _staged() if name in (_name(path), path.name)]
    if len(found) != 1:
        raise UserError(f"there is no staged work '{name}'; `rfpp work list` shows what there is")
    return found[0]


def _size(path: Path) -> int:
    """Bytes of an entry; files that vanish meanwhile count nothing."""
    size = 0
    for file in _files(path):
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def _identity(path: Path) -> dict[str, Any]:
    """The identity of an entry.

    Raises:
        UserError: if it is none.
    """
    why = "it is no identity of this version"
    try:
        document = json.loads((path / "identity.json").read_text())
        if isinstance(document, dict) and _is_readable(document):
            return document
    except (OSError, ValueError, RecursionError) as error:
        why = console.one_line(error)
    raise UserError(f"its identity.json cannot be read ({why}); `rfpp work clean {_name(path)}` "
                    f"removes it")  # fmt: skip


def _is_readable(document: Mapping[str, Any]) -> bool:
    """Whether what is read of an identity is there and of its type."""
    typed = all(isinstance(document[key], TYPES[key]) for key in TYPES.keys() & document.keys())
    return typed and ("training" not in document or "code" in document)


def _state(path: Path, document: Mapping[str, Any]) -> str:
    """The progress of an entry."""
    if path.parent.name == "features":
        return f"{len(list(path.glob('*/*.safetensors')))} blocks"
    if path.parent.name == evaluation_job.KIND:
        return f"{len(list(path.glob('*.json'))) - 1} measurements"
    if "shard" in document:
        shards = len(list((path / "pairs.zarr" / "commits").glob("[0-9]*.json")))
        return f"{shards} shards ({shards * document['shard']} pairs)"
    done, states = _steps(path, "flow-*.safetensors"), _steps(path, "state-*.json")
    finished = f"finished at {', '.join(map(str, done))} steps; " if done else ""
    stale = " (made by other code)" if "training" in document and not _is_current(document) else ""
    return f"{finished}state at step {states[-1] if states else 0}{stale}"


def _steps(path: Path, pattern: str) -> list[int]:
    """The steps in names of files, ascending."""
    names = (re.fullmatch(r"[a-z]+-([0-9]+)", file.stem) for file in path.glob(pattern))
    return sorted(int(name[1]) for name in names if name)


def _is_current(document: Mapping[str, Any]) -> bool:
    """Whether the code as it is would give this identity."""
    try:
        return bool(training_job.code_now(document) == document["code"])
    except UserError:
        return False
