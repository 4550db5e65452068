"""``make study``: does it hold over training seeds?  -> docs/study.md

For each training seed one teacher and one set of pairs, and on them every arm: the params as they
are, and one change at a time.  Arms of a seed share teacher, pairs, initial weights, order and
budget, so differences are paired.  Split and feature net are those of the params' own seed for
all.  Every training is staged like any other, so an interrupted study goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from pipeline.work import identity as code
from pipeline.work import workdir
from rfpp_core.config import params
from rfpp_core.evaluation.distances import DISTANCES

SEEDS = range(1, 6)
BASE = "as in params"
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    BASE: {},
    "control: fixed t = 1": {"times": {"law": "fixed", "t": 1.0}},
    "u-shape, l2": {"times": {"law": "u_shape"}, "loss": {"name": "l2"}},
    "uniform t, l2": {"times": {"law": "uniform"}, "loss": {"name": "l2"}},
    "perceptual term (classifier)": {"loss": {"name": "lpips_huber", "perceptual": "classifier"}},
}
SHARED = ("data/images.zarr", "data/reference.npz", "models/features.safetensors")
TEACHER_SEEDS = 5

Result = dict[str, Any]


def run() -> None:
    config = params.load()
    base = config.model_dump(mode="json")
    base["rounds"], base["finetunes"] = {"2": {"teacher": "flow1"}}, {}
    base["evaluate"] |= {"seeds": 1, "teacher_seeds": TEACHER_SEEDS}
    results_of = [("training", "prepare"), ("evaluate", "run"), ("pretrain", "load"),
                  ("reflow", "load")]  # fmt: skip
    roots = [code.Name(f"pipeline.{module}", name) for module, name in results_of]
    roots.append(code.Name("rfpp_core.training.trainer", "train"))
    identity = {"params": base, "code": code.digests(roots, _strings([base, ARMS, "seeded"]))}
    shared = workdir.work() / "study" / workdir.name_of(identity) / "shared"
    if not all((shared / name).exists() for name in SHARED):
        _stages(shared, base, "prepare", "reference")
    results = [_seed(base, shared, seed) for seed in SEEDS]
    text = table(results, base)
    Path("docs/study.md").write_text(text)
    print(text)


def _strings(document: Any) -> set[str]:
    """Every string in a JSON document."""
    if isinstance(document, Mapping):
        return set().union(*map(_strings, document.values()))
    if isinstance(document, list | tuple):
        return set().union(*map(_strings, document))
    return {document} if isinstance(document, str) else set()


def _seed(base: Result, shared: Path, seed: int) -> dict[str, Result]:
    """Metrics of the teacher (``flow1``) and of every arm at one training seed."""
    home = shared.parent / f"seed{seed}"
    file = home / "results.json"
    found: dict[str, Result] = json.loads(file.read_text()) if file.exists() else {}
    for name in SHARED:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        if not (home / name).exists():
            (home / name).symlink_to(shared / name)
    seeded = {**base, "seed": seed}
    if "flow1" not in found:
        _stages(home, seeded, "pretrain", "evaluate flow1", "generate 2")
        found["flow1"] = json.loads((home / "metrics/flow1.json").read_text())
    for arm, changes in ARMS.items():
        if arm not in found:
            _stages(home, _changed(seeded, changes), "reflow 2", "evaluate flow2")
            found[arm] = json.loads((home / "metrics/flow2.json").read_text())
        workdir.write_json(file, found)
    return found


def _changed(base: Result, changes: Mapping[str, Mapping[str, Any]]) -> Result:
    reflow = dict(base["reflow"])
    for section, values in changes.items():
        reflow[section] = {**reflow[section], **values}
    return {**base, "reflow": reflow}


def _stages(home: Path, config: Result, *commands: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "params.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    for command in commands:
        print(f"study: {home.name}: {command}", flush=True)
        stage_name, *args = command.split()
        subprocess.run(
            [sys.executable, "-m", f"pipeline.{stage_name}", *args],
            cwd=home, env=environment, check=True,
        )  # fmt: skip


def table(results: list[dict[str, Result]], base: Result) -> str:
    """The table, in Markdown: ratios of excesses, then paired differences with intervals."""
    name = DISTANCES[base["features"]["nets"][0]]
    nfes, many = base["evaluate"]["nfe"], f"nfe{base['evaluate']['teacher_nfe']}"
    keys = [f"nfe{nfe}" for nfe in nfes]
    first = results[0]["flow1"][name]

    def column(arm: str, key: str) -> np.ndarray[Any, Any]:
        return np.array([result[arm][name][key] for result in results])

    teacher = column("flow1", many)
    straight = np.array([r["flow1"]["straightness"] / r[BASE]["straightness"]
                         for r in results])  # fmt: skip
    lines = [
        "# Over training seeds", "",
        f"Made by `make study` from `params.yaml` ({base['dataset']['name']}); {len(results)} "
        f"training seeds, n = {base['evaluate']['n']}, {name} to the training split. "
        f"Arms of a seed share teacher, pairs, initial weights, order and budget "
        f"({results[0][BASE]['budget']:,} network forwards). Brackets are 95 % "
        f"t-intervals of the mean over training seeds.", "",
        f"Real rows: floor (training images, bootstrapped) {first['floor']:.3g}, held-out images "
        f"{first['held_out']:.3g}. Teacher at {many[3:]} NFE (Heun, mean of {TEACHER_SEEDS} "
        f"sampling seeds): {_interval(teacher)}; at {nfes[0]} NFE "
        f"{_interval(column('flow1', keys[0]))}.",
        "", f"Straightness falls {_interval(straight)} fold.", "",
        "The params as they are: "
        f"{base['reflow']['times']['law']} times, {base['reflow']['loss']['name']}.", "",
        "The net of the perceptual term and the metric's both know the labels (other "
        "architecture, seed and half of the images).", "",
        "## Distance, and excess over the floor as a multiple of the teacher's", "",
        "| arm | " + " | ".join(f"{nfe} NFE" for nfe in nfes) + " | "
        + " | ".join(f"ratio at {nfe}" for nfe in nfes) + " |",
        "|---|" + "---|" * (2 * len(nfes)),
    ]  # fmt: skip
    for arm in ARMS:
        cells = [_interval(column(arm, key)) for key in keys]
        floor = first["floor"]
        ratios = [(column(arm, key) - floor) / (teacher - floor) for key in keys]
        lines.append(f"| {arm} | {' | '.join(cells + [_interval(r) for r in ratios])} |")
    lines += ["", "## Paired differences (positive: the first arm is worse)", "",
              "| arm | to | " + " | ".join(f"{nfe} NFE" for nfe in nfes) + " |",
              "|---|---|" + "---|" * len(nfes)]  # fmt: skip
    for arm, to in [*((arm, BASE) for arm in list(ARMS)[1:]), ("uniform t, l2", "u-shape, l2")]:
        gaps = [column(arm, key) - column(to, key) for key in keys]
        cells = [f"{_interval(gap)}: {_verdict(gap)}" for gap in gaps]
        lines.append(f"| {arm} | {to} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _half_width(values: np.ndarray[Any, Any]) -> float:
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return float(quantile * values.std(ddof=1) / np.sqrt(len(values)))


def _interval(values: np.ndarray[Any, Any]) -> str:
    mean, half = values.mean(), _half_width(values)
    return f"{mean:.3g} [{mean - half:.3g}, {mean + half:.3g}]"


def _verdict(gaps: np.ndarray[Any, Any]) -> str:
    mean, half = gaps.mean(), _half_width(gaps)
    if abs(mean) <= half:
        return "no difference seen"
    return "worse" if mean > 0 else "better"


if __name__ == "__main__":
    workdir.main(run)
