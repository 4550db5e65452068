"""The references of environment variables and of stages, made at every build."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from pipeline import settings
from pipeline.settings import SETTINGS, Number
from rfpp_core.config import yaml_file

ROOT = Path(__file__).parents[1]
# what holds where a variable is not set: in words, or as the program itself says
DEFAULTS: dict[str, str | Callable[[], Any]] = {
    "RFPP_CHECKPOINT_SECONDS": "15 or more, so that saving takes under 2 % of the time",
    "RFPP_DASK": "no cluster",
    "RFPP_DEVICE": "the first CUDA device, else `cpu`",
    "RFPP_DEVICES": "every CUDA device, else `cpu`",
    "RFPP_MEMORY": "half of the machine's (or its container's)",
    "RFPP_PROCESSES": settings.processes,
    "RFPP_RETRIES": settings.retries,
    "RFPP_RETRY_SECONDS": settings.retry_seconds,
    "RFPP_SHARD_TIMEOUT": "any",
    "RFPP_THREADS": "one a core",
    "RFPP_WORKERS": settings.workers,
}
ENVIRONMENT = """# Environment variables

What cannot change a result is no param: it comes from the environment. This page is made from
`pipeline/settings.py` whenever the site is built. Every stage checks all of them at its start.

| variable | default | allowed | |
|---|---|---|---|
"""
OTHERS = """
Variables of other programs that matter here:

| variable | default | |
|---|---|---|
| `PREFECT_API_URL` | a private server, which ends with the run | a Prefect server to report to |
| `TORCH_HOME` | `.work/torch` | where weights of Inception and VGG16 are downloaded to |
| `MPLCONFIGDIR` | `.work/matplotlib` | cache of matplotlib |
| `OMP_WAIT_POLICY` | `passive` | threads that wait sleep, which helps on shared cores |
| `GOMP_SPINCOUNT` | 5000 | for how many rounds they spin before, which helps on idle cores |
| `MALLOC_*` | none | glibc's; without any, up to 256 MB of freed memory are kept |
| `CUDA_VISIBLE_DEVICES` | all | which GPUs there are; Dask workers need one each |

Past runs of the private server: `PREFECT_HOME=.work/prefect prefect server start`.
"""
STAGES = """# Stages

This page is made from `dvc.yaml` whenever the site is built. A stage *per row* runs once for each
row of that section of `params.yaml`: `train@flow2`, `evaluate@flow2`. `dvc repro train@flow2` runs
what one row needs, and `python -m pipeline.stages.train flow2` one stage alone, without DVC.

"""


class Stage(NamedTuple):
    """A stage of ``dvc.yaml``."""

    name: str
    rows: str  # the section it runs per row of, if any
    desc: str
    command: str
    makes: list[str]
    reads: list[str]  # data and models, not code
    params: list[str]


def environment() -> str:
    """The page of environment variables, in Markdown."""
    lines = [f"| `{name}` | {default(name)} | {_allowed(setting)} | {setting.meaning} |"
             for name, setting in SETTINGS.items()]  # fmt: skip
    return ENVIRONMENT + "\n".join(lines) + "\n" + OTHERS


def default(name: str) -> str:
    """What holds where a variable is not set."""
    found = DEFAULTS[name]
    if isinstance(found, str):
        return found
    with mock.patch.dict(os.environ):
        os.environ.pop(name, None)
        return f"`{found():g}`"


def _allowed(setting: Any) -> str:
    if not isinstance(setting, Number):
        return str(setting.allowed).replace("<", "&lt;")
    return (
        f"{'integer' if setting.whole else 'number'}, {setting.least:.0f} to {setting.most:,.0f}"
    )


def stages() -> str:
    """The page of stages, in Markdown."""
    lines = ["| stage | per row of | what | makes |", "|---|---|---|---|"]
    found = list(read())
    for stage in found:
        rows = f"`{stage.rows}`" if stage.rows else ""
        name = f"`{stage.name}{'@NAME' if stage.rows else ''}`"
        lines.append(f"| {name} | {rows} | {stage.desc} | {_codes(stage.makes)} |")
    for stage in found:
        lines += ["", f"## {stage.name}", "", "```text", stage.command, "```", "",
                  f"- reads {_codes(stage.reads) or 'nothing'}",
                  f"- makes {_codes(stage.makes)}",
                  f"- params {_codes(stage.params)}"]  # fmt: skip
    return STAGES + "\n".join(lines) + "\n"


def read() -> Iterator[Stage]:
    """The stages of ``dvc.yaml``, in its order."""
    document = yaml_file.read(ROOT / "dvc.yaml")
    for name, entry in document["stages"].items():
        body = entry.get("do", entry)
        outs = [o for kind in ("outs", "metrics", "plots") for o in body.get(kind, [])]
        data = [d for d in body.get("deps", []) if not d.startswith(("pipeline", "rfpp_core"))]
        rows = entry.get("foreach", "").strip("${}")
        texts = (_plain(body["cmd"]), *map(_plain, (*outs, *data, *body["params"])))
        command, *rest = texts
        a, b = len(outs), len(outs) + len(data)
        yield Stage(name, rows, body["desc"], command, rest[:a], rest[a:b], rest[b:])


def _plain(text: str) -> str:
    """An entry of a template as people write it: NAME for the row's own."""
    upper = re.sub(r"\$\{(?:item\.)?(\w+)\}", lambda found: found[1].upper(), text)
    return upper.replace("KEY", "NAME")


def _codes(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
