"""Attacks on files: damaged, lost, left over, and no room for them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.faults.scene import SHARDS, Attack, Failure, Scene

RFPP = [sys.executable, "-m", "pipeline.cli.main"]


def corrupted(how: str) -> Attack:
    """Damage to what is staged between two runs; it is found by name and made again."""

    def attack(scene: Scene, rng: random.Random) -> None:
        scene.half_done(2)
        if scene.stage == "generate":
            marker = rng.choice(scene.staged())
            data = marker.parent.parent / _shard_file(int(marker.stem))
            named = f"shard {int(marker.stem)} is made again"
        else:
            marker = scene.staged()[-1]  # the one that would be taken
            data = marker.with_suffix(".safetensors")
            named = f"step {int(marker.stem.partition('-')[2])} is damaged and passed over"
        corruption(how, scene.hit(data), marker, rng)
        said = scene.finish()
        if how != "lost marker" and named not in said:
            raise Failure(f"{how}: not said: {said[-300:]}")
        scene.same()

    return attack


def _shard_file(shard: int) -> str:
    return f"images/c/{shard}/0/0/0"


def corruption(how: str, data: Path, marker: Path, rng: random.Random) -> None:
    """In place: the mode and the hard links, which DVC trusts, stay as they are."""
    content = data.read_bytes()
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
            text = marker.read_text()
            digits = [i for i, c in enumerate(text) if c.isdigit()]
            at = rng.choice(digits)  # a digest, a number: no key
            marker.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        case "lost marker":
            marker.unlink()
        case _:
            raise ValueError(how)


def damaged_publication(scene: Scene, rng: random.Random) -> None:
    """Pairs damaged after publishing: refused by name, and brought back by dvc or --repair."""
    store, shard = scene.path / "data/pairs_2.zarr", rng.randrange(SHARDS)
    marker = store / f"commits/{shard:06d}.json"
    how = rng.choice(["truncated", "empty", "missing", "bit"])
    _link_to_cache(scene, store / _shard_file(shard))
    corruption(how, scene.hit(store / _shard_file(shard)), marker, rng)
    verify = [*RFPP, "pairs", "verify", str(store)]
    for command in (scene.command, verify):
        said = scene.finish(command, code=2)
        if f"shard {shard}" not in said or "Traceback" in said:
            raise Failure(f"{how}: {command[-1]} does not name shard {shard}: {said[-300:]}")
    if rng.random() < 0.5:
        said = scene.finish([*verify, "--repair"])
        if f"forgot shard(s) {shard};" not in said or marker.exists():
            raise Failure(f"{how}: not repaired: {said[-300:]}")
    scene.finish(["dvc", "repro", "reflow@2"])
    scene.finish(verify)
    scene.same()


def _link_to_cache(scene: Scene, file: Path) -> None:
    """As DVC leaves a file: read-only, the same inode as in its cache."""
    content = file.read_bytes()
    [cached] = [path for path in (scene.path / ".dvc/cache/files").rglob("*")
                if path.is_file() and path.read_bytes() == content]  # fmt: skip
    file.unlink()
    os.link(cached, file)
    file.chmod(0o444)


def damaged_metadata(scene: Scene, rng: random.Random) -> None:
    """The metadata of staged pairs is a function of the params, and written again."""
    scene.half_done(2)
    kept, begun = len(scene.staged()), len(scene.made())
    store = scene.staged()[0].parent.parent
    name = rng.choice(["zarr.json", "images/zarr.json", "labels/zarr.json"])
    how = rng.choice(["truncated", "empty", "missing"])
    corruption(how, scene.hit(store / name), store / name, rng)
    said = scene.finish()
    if "the metadata is written again" not in said:
        raise Failure(f"{how} {name}: not said: {said[-300:]}")
    if len(scene.made()) - begun != SHARDS - kept:
        raise Failure(f"{len(scene.made()) - begun} shards made with {kept} of {SHARDS} there")
    scene.same()


def damaged_images(scene: Scene, rng: random.Random) -> None:
    """The real images, which every file of theirs can lose: refused, and prepared again."""
    images = scene.path / "data/images.zarr/train"
    name = rng.choice(["images/c/0/0/0/0", "labels/c/0"])
    how = rng.choice(["truncated", "empty", "missing", "bit"])
    _link_to_cache(scene, images / name)
    corruption(how, scene.hit(images / name), images / name, rng)
    said = scene.finish(code=2)
    if "data/images.zarr is damaged" not in said or "Traceback" in said:
        raise Failure(f"{how} {name}: not said: {said[-300:]}")
    scene.finish(["dvc", "repro", "pretrain"])
    scene.same()


def damaged_finish(scene: Scene, rng: random.Random) -> None:
    """A finished training is kept for later; damaged there, it is made again from its state."""
    scene.finish()
    scene.product.unlink()
    name = rng.choice(["flow-*.safetensors", "loss-*.csv"])
    kept = next((scene.path / ".work").glob(f"{scene.folder}/*/{name}"))
    corruption(rng.choice(["truncated", "empty", "bit"]), scene.hit(kept), kept, rng)
    said = scene.finish()
    if "is made again from the last state" not in said:
        raise Failure(f"not said: {said[-300:]}")
    scene.same()


def damaged_model(scene: Scene, rng: random.Random) -> None:
    """A damaged teacher is refused in one line, nothing is made of it, and dvc brings it back."""
    model = scene.hit(scene.path / "models/flow1.safetensors")
    _link_to_cache(scene, model)
    how = rng.choice(["truncated", "empty", "bit"])
    corruption(how, model, model, rng)
    said = scene.finish(code=2)
    if "models/flow1.safetensors is " not in said or "Traceback" in said or scene.staged():
        raise Failure(f"{how}: not named: {said[-300:]}")
    scene.finish(["dvc", "repro", "generate@2"])
    scene.same()


def leftovers(scene: Scene, rng: random.Random) -> None:
    """Half-written files of a killed run, and staged work of another identity: the first are
    cleared away, the second is in nobody's way."""
    scene.half_done(1)
    own = scene.staged()[0].parent
    other = own.with_name("0" * 16)
    if scene.stage == "generate":
        own, other = own.parent.parent, own.parent.parent.with_name("0" * 16)
        halves = [scene.path / "data/.pairs_2.zarr.partial/zarr.json",
                  own / "pairs.zarr/commits/.000011.json.1.partial"]  # fmt: skip
    else:
        halves = [scene.path / f"models/.{scene.product.name}.1.partial",
                  own / "state-000000005.safetensors",
                  own / ".state-000000099.safetensors.1.partial"]  # fmt: skip
    shutil.copytree(own, other)
    for half in scene.hit(halves):
        half.parent.mkdir(exist_ok=True)
        half.write_bytes(b"half")
    scene.finish()
    if there := [half for half in halves if half.exists()]:
        raise Failure(f"left lying: {there}")
    scene.same()


def full_disk(scene: Scene, rng: random.Random) -> None:
    """No space left: an error in a line, nothing half made is kept, and on with more space."""
    work = scene.path / ".work"
    work.mkdir(exist_ok=True)
    private = scene.stage == "generate" and "PREFECT_API_URL" not in scene.env
    whole = sum(p.stat().st_size for p in scene.truth.path.glob(f".work/{scene.folder}/**/*"))
    if private:  # Prefect's database of some 5 MB is on the full disk, too
        whole = 7 << 20
    size = f"size={int(rng.uniform(0.2, 0.7) * whole) >> 10}k"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", work], check=False,
                          capture_output=True)  # fmt: skip
    if done.returncode:
        print("  NOT TRIED: no tmpfs can be mounted here (it takes root), so no disk was full")
        return
    env = {} if private else {"PREFECT_HOME": str(scene.faults / "prefect")}
    try:
        process = scene.start(**env)
        if process.wait(300) == 0:
            raise Failure("it fitted; the attack needs a smaller disk")
        said = scene.log.read_text()
        clear = "No space left" in said or (private and "rfpp: Prefect" in said)
        if "Traceback" in said or not clear:
            raise Failure(f"not one clear line: {said[-300:]}")
        scene.no_orphans()
        subprocess.run(["mount", "-o", "remount,size=64m", str(scene.hit(work))], check=True)
        scene.finish(**env)
        scene.same()
        scene.no_orphans()
    finally:
        subprocess.run(["umount", "-l", str(work)], check=False)
        shutil.rmtree(work, ignore_errors=True)
