"""Attacks on files: corrupted, lost, left over, and no space for them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.faults.scene import SHARDS, Attack, Failure, Scene, work_of

RFPP = [sys.executable, "-m", "pipeline.cli.main"]


def corrupted(how: str) -> Attack:
    """What is staged is corrupted between two runs; it is found by name and made again."""

    def attack(scene: Scene, rng: random.Random) -> None:
        scene.half_done(2)
        if scene.pairs:
            marker = rng.choice(scene.staged())
            data = marker.parent.parent / _shard_file(int(marker.stem))
            named = f"pairs: shard {int(marker.stem)} is regenerated"
        else:
            marker = scene.staged()[-1]  # the one that would be taken
            data = marker.with_suffix(".safetensors")
            named = f"step {int(marker.stem.partition('-')[2])} is corrupted and skipped"
        corrupt(how, scene.hit(data), marker, rng)
        said = scene.finish()
        if how != "lost marker" and named not in said:
            raise Failure(f"{how}: not said: {said[-300:]}")
        scene.same()

    return attack


def _shard_file(shard: int) -> str:
    return f"images/c/{shard}/0/0/0"


def corrupt(how: str, data: Path, marker: Path, rng: random.Random) -> None:
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


def corrupted_publication(scene: Scene, rng: random.Random) -> None:
    """Pairs corrupted after publishing: refused by name, and brought back by dvc or --repair."""
    store, shard = scene.path / "data/pairs2.zarr", rng.randrange(SHARDS)
    marker = store / f"commits/{shard:06d}.json"
    how = rng.choice(["truncated", "empty", "missing", "bit"])
    _link_to_cache(scene, store / _shard_file(shard))
    corrupt(how, scene.hit(store / _shard_file(shard)), marker, rng)
    verify = [*RFPP, "pairs", "verify", str(store)]
    for command in (scene.command, verify):
        said = scene.finish(command, code=2)
        if f"shard {shard}" not in said or "Traceback" in said:
            raise Failure(f"{how}: {command[-1]} does not name shard {shard}: {said[-300:]}")
    if rng.random() < 0.5:
        said = scene.finish([*verify, "--repair"])
        if f"forgot shard(s) {shard};" not in said or marker.exists():
            raise Failure(f"{how}: not repaired: {said[-300:]}")
    scene.finish(["dvc", "repro", "train@flow2"])
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


def corrupted_metadata(scene: Scene, rng: random.Random) -> None:
    """The metadata of staged pairs is a function of the params, and written again."""
    scene.half_done(2)
    kept, begun = len(scene.staged()), len(scene.made())
    store = scene.staged()[0].parent.parent
    name = rng.choice(["zarr.json", "images/zarr.json", "labels/zarr.json"])
    how = rng.choice(["truncated", "empty", "missing"])
    corrupt(how, scene.hit(store / name), store / name, rng)
    said = scene.finish()
    if "the metadata is written again" not in said:
        raise Failure(f"{how} {name}: not said: {said[-300:]}")
    if len(scene.made()) - begun != SHARDS - kept:
        raise Failure(f"{len(scene.made()) - begun} shards made with {kept} of {SHARDS} there")
    scene.same()


def corrupted_images(scene: Scene, rng: random.Random) -> None:
    """The real images, which every file of theirs can lose: refused, and prepared again."""
    images = scene.path / "data/images.zarr/train"
    name = rng.choice(["images/c/0/0/0/0", "labels/c/0"])
    how = rng.choice(["truncated", "empty", "missing", "bit"])
    _link_to_cache(scene, images / name)
    corrupt(how, scene.hit(images / name), images / name, rng)
    said = scene.finish(code=2)
    if "data/images.zarr is corrupted" not in said or "Traceback" in said:
        raise Failure(f"{how} {name}: not said: {said[-300:]}")
    scene.finish(["dvc", "repro", "train@flow1"])
    scene.same()


def corrupted_reference(scene: Scene, rng: random.Random) -> None:
    """What an evaluation reads: refused by name, and restored by dvc."""
    name = rng.choice(["models/features.safetensors", "data/reference.npz",
                       "models/flow2.safetensors"])  # fmt: skip
    file, how = scene.hit(scene.path / name), rng.choice(["truncated", "empty", "missing"])
    if not name.endswith(".npz"):  # of which some bits mean nothing
        how = rng.choice([how, "bit"])
    _link_to_cache(scene, file)
    corrupt(how, file, file, rng)
    said = scene.finish(code=2)
    if f"{name} is " not in said or "Traceback" in said:
        raise Failure(f"{how} {name}: not named: {said[-300:]}")
    scene.finish(["dvc", "repro", "evaluate@flow2"])
    scene.same()


def corrupted_finish(scene: Scene, rng: random.Random) -> None:
    """A finished training that is corrupted in .work is made again from its last state."""
    scene.finish()
    scene.product.unlink()
    name = rng.choice(["flow-*.safetensors", "loss-*.csv"])
    kept = next(scene.work()[0].glob(name))
    corrupt(rng.choice(["truncated", "empty", "bit"]), scene.hit(kept), kept, rng)
    said = scene.finish()
    if "corrupted; it is trained again from the last state" not in said:
        raise Failure(f"not said: {said[-300:]}")
    scene.same()


def corrupted_measurement(scene: Scene, rng: random.Random) -> None:
    """Features and measurements that are staged: a corrupted one alone is computed again."""
    scene.finish()
    kept, measured = scene.done_for_good(), len(scene.measured())
    one = scene.hit(rng.choice(list(kept)))
    corrupt(rng.choice(["truncated", "empty", "bit", "missing"]), one, one, rng)
    damaged_at = one.stat().st_mtime_ns if one.exists() else 0
    for out in scene.about.outs:
        path = scene.path / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    scene.finish()
    after = scene.done_for_good()
    if changed := [path for path in kept if path != one and after[path] != kept[path]]:
        raise Failure(f"computed again, though intact: {changed}")
    again = len(scene.measured()) - measured
    if after[one] == damaged_at or again != (scene.verb == "evaluate"):
        raise Failure(f"{one.name} was corrupted; {again} measurements were made again")
    scene.same()


def corrupted_model(scene: Scene, rng: random.Random) -> None:
    """A corrupted teacher is refused in one line, and nothing made of it; dvc restores it."""
    model = scene.hit(scene.path / "models/flow1.safetensors")
    _link_to_cache(scene, model)
    how = rng.choice(["truncated", "empty", "bit"])
    corrupt(how, model, model, rng)
    said = scene.finish(code=2)
    if "models/flow1.safetensors is " not in said or "Traceback" in said or scene.staged():
        raise Failure(f"{how}: not named: {said[-300:]}")
    scene.finish(["dvc", "repro", "generate@pairs2"])
    scene.same()


def leftovers(scene: Scene, rng: random.Random) -> None:
    """Half-written files of a killed run, and staged work of another identity: the first are
    cleared away, the second is in nobody's way."""
    scene.half_done(1)
    own = scene.staged()[0].parent
    other = own.with_name("0" * 16)
    if scene.pairs:
        own, other = own.parent.parent, own.parent.parent.with_name("0" * 16)
        halves = [scene.path / "data/.pairs2.zarr.partial/zarr.json",
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
    """No space left is one line; nothing half made stays, and with more space it resumes."""
    work = scene.path / ".work"
    work.mkdir(exist_ok=True)
    private = scene.pairs and "PREFECT_API_URL" not in scene.env
    there = work_of(scene.truth, scene.stage)
    whole = sum(path.stat().st_size for folder in there for path in folder.rglob("*"))
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
