"""How long stages take: ``.work/stage-times.jsonl``, a line a run, which the report reads.

It is no result: no identity and no out of DVC depends on it, and a missing file costs nothing but
a table of the report.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import artifacts
from rfpp_core import runtime

FILE, STAGES = "stage-times.jsonl", "pipeline.stages."
READ = 1 << 20  # bytes of the end of the file that are read

_work: list[str] = []  # staged work of this process
_earlier: list[str] = []  # what of it was there before


class Run(NamedTuple):
    """A run of a stage.  ``work`` names the staged work it filled, which several runs may share:
    one that was interrupted, one that resumed, one that found all done."""

    stage: str
    row: str
    seconds: float
    finished: bool
    resumed: bool
    work: tuple[str, ...]
    machine: str


@contextmanager
def timed(*row: str) -> Iterator[None]:
    """Appends a line when the stage of this process ends, however it ends short of a kill.

    Of a training's processes the first writes it; their launcher, which leaves by SystemExit,
    does not.
    """
    began, finished, launcher = time.monotonic(), False, False
    try:
        yield
        finished = True
    except SystemExit:
        launcher = True
        raise
    finally:
        if not launcher and (stage := _stage()) and runtime.process_rank().first:
            took = round(time.monotonic() - began, 2)
            _append(Run(stage, " ".join(row), took, finished, bool(_earlier), tuple(_work),
                        machine()))  # fmt: skip


def staged(name: str, earlier: bool) -> None:
    """Tells of work that this process opens, and whether some was there before."""
    _work.append(name)
    if earlier:
        _earlier.append(name)


def runs() -> list[Run]:
    """The recorded runs, oldest first; lines that are not such are left out."""
    try:
        with (artifacts.root() / ".work" / FILE).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - READ))
            lines = file.read().splitlines()
    except OSError:
        return []
    return [run for line in lines if (run := _parsed(line)) is not None]


def machine() -> str:
    """This machine in words: GPU, if torch uses one, or CPU; cores; torch's version."""
    torch = sys.modules.get("torch")
    parts = [_cpu(), f"{(n := runtime.cores())} core{'s' * (n > 1)}"]
    if torch is not None and torch.cuda.is_initialized():
        parts.insert(0, torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__}"] if torch else parts)


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _stage() -> str:
    """The stage that this process runs; nothing if it is none."""
    name = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", "")
    return name.removeprefix(STAGES) if name.startswith(STAGES) else ""


def _append(run: Run) -> None:
    """One write, so that stages which end together do not mix their lines."""
    with suppress(OSError), (artifacts.work() / FILE).open("a") as file:
        file.write(json.dumps(run._asdict()) + "\n")


def _parsed(line: bytes) -> Run | None:
    try:
        found: dict[str, Any] = json.loads(line)
        return Run(str(found["stage"]), str(found["row"]), float(found["seconds"]),
                   bool(found["finished"]), bool(found["resumed"]),
                   tuple(map(str, found["work"])), str(found["machine"]))  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return None
