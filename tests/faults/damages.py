"""Attacks on files: damaged, lost, left over, and no room for them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.faults.scene import SHARDS, Attack, Lapse, Scene

RFPP = [sys.executable, "-m", "pipeline.cli"]


def damaged(how: str) -> Attack:
    """Damage to what is staged between two runs; it is found by name and made again."""

    def attack(scene: Scene, rng: random.Random) -> None:
        process = scene.start()
        if scene.until(process, lambda: len(scene.staged()) >= 2):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        scene.no_orphans()
        marker = rng.choice(scene.staged())
        if scene.stage == "generate":
            data = marker.parent.parent / _shard_file(int(marker.stem))
        else:
            data = marker.with_suffix(".safetensors")
        damage(how, scene.hit(data), marker, rng)
        said = scene.finish()
        by_name = f"shard {marker.stem.lstrip('0') or 0} is made again" in said
        if scene.stage == "generate" and how != "lost marker" and not by_name:
            raise Lapse(f"{how}: not said: {said[-300:]}")
        scene.same()

    return attack


def _shard_file(shard: int) -> str:
    return f"images/c/{shard}/0/0/0"


def damage(how: str, data: Path, marker: Path, rng: random.Random) -> None:
    content = data.read_bytes()
    data.chmod(0o644)  # what DVC linked is read-only
    match how:
        case "truncated":
            data.write_bytes(content[: rng.randrange(1, len(content))])
        case "empty":
            data.write_bytes(b"")
        case "missing":
            data.unlink()
        case "bit":
            at = rng.randrange(len(content))
            data.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        case "edited marker":
            marker.chmod(0o644)
            marker.write_text(marker.read_text().replace("sha256", "sha512", 1))
        case "lost marker":
            marker.unlink()
        case _:
            raise ValueError(how)


def damaged_publication(scene: Scene, rng: random.Random) -> None:
    """Pairs damaged after publishing: refused by name, and brought back by dvc or --repair."""
    store, shard = scene.path / "data/pairs_2.zarr", rng.randrange(SHARDS)
    marker = store / f"commits/{shard:06d}.json"
    how = rng.choice(["truncated", "empty", "missing", "bit"])
    damage(how, scene.hit(store / _shard_file(shard)), marker, rng)
    verify = [*RFPP, "pairs", "verify", str(store)]
    for command in (scene.command, verify):
        said = scene.finish(command, code=2)
        if f"shard {shard}" not in said or "Traceback" in said:
            raise Lapse(f"{how}: {command[-1]} does not name shard {shard}: {said[-300:]}")
    if rng.random() < 0.5:
        said = scene.finish([*verify, "--repair"])
        if f"forgot shard(s) {shard};" not in said or marker.exists():
            raise Lapse(f"{how}: not repaired: {said[-300:]}")
    scene.finish(["dvc", "repro", "reflow@2"])
    scene.finish(verify)
    scene.same()


def damaged_finish(scene: Scene, rng: random.Random) -> None:
    """A finished training is kept for later; damaged there, it is made again from its state."""
    scene.finish()
    scene.product.unlink()
    kept = next((scene.path / ".work").glob(f"{scene.folder}/*/flow-*.safetensors"))
    damage(rng.choice(["truncated", "empty", "bit"]), scene.hit(kept), kept, rng)
    said = scene.finish()
    if "made again from the last state" not in said:
        raise Lapse(f"not said: {said[-300:]}")
    scene.same()


def damaged_model(scene: Scene, rng: random.Random) -> None:
    """A half-written teacher is refused in one line, and nothing is made of it."""
    model = scene.hit(scene.path / "models/flow1.safetensors")
    content = model.read_bytes()
    model.unlink()
    model.write_bytes(content[: rng.randrange(len(content))])
    said = scene.finish(code=2)
    if "models/flow1.safetensors is not a readable" not in said or scene.staged():
        raise Lapse(f"not named: {said[-300:]}")
    model.write_bytes(content)
    scene.finish()
    scene.same()


def leftovers(scene: Scene, rng: random.Random) -> None:
    """Partial files, and staged work of another identity, are in nobody's way."""
    folder = {"pretrain": "pretrain", "generate": "pairs", "reflow": "reflow"}[scene.stage]
    other = scene.path / ".work" / folder / ("0" * 16)
    other.mkdir(parents=True)
    (other / "identity.json").write_text("{}")
    if scene.stage == "generate":
        (scene.path / "data/.pairs_2.zarr.partial").mkdir()
        (scene.path / "data/.pairs_2.zarr.partial/zarr.json").write_text("{")
        (other / ".pairs.zarr.building").mkdir()
    else:
        (scene.path / f"models/.{scene.product.name}.1.partial").write_bytes(b"half")
        (other / "state-50.safetensors").write_bytes(b"half")
    scene.hit(True)
    scene.finish()
    scene.same()


def full_disk(scene: Scene, rng: random.Random) -> None:
    """No space left: an error in a line, nothing half made is kept, and on with more space."""
    work = scene.path / ".work"
    work.mkdir(exist_ok=True)
    whole = sum(p.stat().st_size for p in scene.truth.path.glob(f".work/{scene.folder}/**/*"))
    size = f"size={int(rng.uniform(0.2, 0.7) * whole) >> 10}k"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", work], check=False,
                          capture_output=True)  # fmt: skip
    if done.returncode:
        print("  NOT TRIED: no tmpfs can be mounted here (it takes root), so no disk was full")
        return
    env = {"PREFECT_HOME": str(scene.faults / "prefect")}
    try:
        process = scene.start(**env)
        if process.wait(300) == 0:
            raise Lapse("it fitted; the attack needs a smaller disk")
        said = scene.log.read_text()
        if "Traceback" in said or "No space left" not in said:
            raise Lapse(f"not one clear line: {said[-300:]}")
        scene.no_orphans()
        subprocess.run(["mount", "-o", "remount,size=64m", str(scene.hit(work))], check=True)
        scene.finish(**env)
        scene.same()
        scene.no_orphans()
    finally:
        subprocess.run(["umount", "-l", str(work)], check=False)
        shutil.rmtree(work, ignore_errors=True)
