"""``rfpp work``: staged work (``.work/<kind>/<identity>``), listed, adopted, removed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import artifacts, console
from pipeline.work import training_job, workdir
from rfpp_core.errors import UserError
from rfpp_core.storage import files

app = typer.Typer(no_args_is_help=True, help="List, adopt and remove staged work (.work/).")


@app.command("list")
def list_() -> None:
    """Shows staged work: name, size, state, and what it was made from."""
    for path in _staged():
        size = sum(file.stat().st_size for file in _files(path))
        document = json.loads((path / "identity.json").read_text())
        print(f"{path.parent.name}/{path.name}  {size / 1e6:8.1f} MB  {_state(path, document)}")


@app.command("adopt")
def adopt(
    name: Annotated[str, typer.Argument(help="as `rfpp work list` shows it")],
    why: Annotated[str, typer.Option(help="goes into the provenance")] = "code changed harmlessly",
) -> None:
    """Reuses work although the code changed; recorded in the provenance of what comes of it."""
    path = _find(name)
    document = json.loads((path / "identity.json").read_text())
    note: dict[str, Any] = {"why": why}
    target = path
    if not {"training", "shard"} & document.keys():
        raise UserError(f"{name}: only trainings and pairs can be adopted; `dvc repro` makes the "
                        f"rest again")  # fmt: skip
    if "code" in document:
        then = document["code"]
        now = training_job.code_now(document)
        note["modules"] = sorted(m for m in now.keys() | then.keys() if now.get(m) != then.get(m))
        if not note["modules"]:
            raise UserError(f"{name} was made by the code as it is; there is nothing to adopt")
        document["code"] = now
        target = path.parent / workdir.name_of(document)
        if target.exists():
            raise UserError(f"there is newer work at {target.parent.name}/{target.name}; "
                            f"`rfpp work clean` it first")  # fmt: skip
    with files.locked(workdir.lock_of(path), name, console.warn):
        _record(path, document, note)
        if target != path:
            path.rename(target)
    print(f"adopted as {target.parent.name}/{target.name}; `dvc repro` goes on from it")


def _record(path: Path, document: dict[str, Any], note: dict[str, Any]) -> None:
    """Records the adoption; finished models are dropped, to be written with the record."""
    file = path / "adopted.json"
    notes = json.loads(file.read_text()) if file.exists() else []
    files.write_json(file, [*notes, note])
    files.write_json(path / "identity.json", document)
    for model in path.glob("flow-*.safetensors"):
        model.unlink()


@app.command("clean")
def clean(
    name: Annotated[str | None, typer.Argument(help="one entry; all without a name")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove all without asking")] = False,
) -> None:
    """Removes staged work; results that DVC tracks are not touched, nor work in use."""
    found = [_find(name)] if name else _staged()
    if not name and found and not yes:
        size = sum(file.stat().st_size for path in found for file in _files(path))
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
                print(f"removed {path.parent.name}/{path.name}")
            else:
                busy.append(f"{path.parent.name}/{path.name}")
    if busy:
        raise UserError(f"{', '.join(busy)}: in use by a running stage, and kept; stop it first")


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def _staged() -> list[Path]:
    return sorted(path.parent for path in artifacts.work().glob("*/*/identity.json"))


def _find(name: str) -> Path:
    found = [path for path in _staged() if name in (f"{path.parent.name}/{path.name}", path.name)]
    if len(found) != 1:
        raise UserError(f"there is no staged work '{name}'; `rfpp work list` shows what there is")
    return found[0]


def _state(path: Path, document: dict[str, Any]) -> str:
    if path.parent.name == "features":
        return f"{len(list(path.glob('*/*.safetensors')))} blocks"
    if "shard" in document:
        shards = len(list((path / "pairs.zarr" / "commits").glob("[0-9]*.json")))
        return f"{shards} shards ({shards * document['shard']} pairs)"
    done = sorted(int(file.stem.partition("-")[2]) for file in path.glob("flow-*.safetensors"))
    states = sorted(int(file.stem.partition("-")[2]) for file in path.glob("state-*.json"))
    finished = f"finished at {', '.join(map(str, done))} steps; " if done else ""
    stale = " (made by other code)" if "training" in document and not _is_current(document) else ""
    return f"{finished}state at step {states[-1] if states else 0}{stale}"


def _is_current(document: Mapping[str, Any]) -> bool:
    """Whether the code as it is would give this identity."""
    try:
        return bool(training_job.code_now(document) == document["code"])
    except UserError:
        return False
