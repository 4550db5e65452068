"""The attacks: each takes a scene and a random generator, strikes, resumes, and checks."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.scene import PRODUCT, Lapse, Scene

Attack = Callable[[Scene, random.Random], None]
SHARDS = 12


def somewhere(scene: Scene, rng: random.Random, process: subprocess.Popen[bytes]) -> bool:
    """Waits for a random instant of a run; False if the run ended first."""
    if rng.random() < 0.4:
        time.sleep(rng.uniform(0.0, 8.0))
        return process.poll() is None
    most = SHARDS if scene.stage == "generate" else 2
    count = rng.randint(1, most)
    there = scene.until(process, lambda: len(scene.staged()) >= count)
    time.sleep(rng.uniform(0.0, 0.05))
    return there and process.poll() is None


def signalled(number: int, whole: bool) -> Attack:
    """A signal to the process group, or to the driver alone; then run again."""

    def attack(scene: Scene, rng: random.Random) -> None:
        process = scene.start()
        if somewhere(scene, rng, process):
            (os.killpg if whole else os.kill)(process.pid, number)
        code = process.wait(60)
        if number == signal.SIGINT and code == 0 and not (scene.path / product(scene)).exists():
            raise Lapse("an interrupted run says that it succeeded")
        if "Traceback" in scene.log.read_text():
            raise Lapse("a traceback")
        resume(scene)

    return attack


def product(scene: Scene) -> str:
    return PRODUCT[scene.stage]


def resume(scene: Scene) -> None:
    """Run again: the missing shards only, and the same bytes."""
    scene.no_orphans()
    kept, begun = len(scene.staged()), len(scene.made())
    finished = (scene.path / product(scene)).exists()
    scene.finish()
    again = len(scene.made()) - begun
    if scene.stage == "generate" and not finished and again > SHARDS - kept + 1:
        raise Lapse(f"{again} shards were made with {kept} of {SHARDS} there")
    scene.same()
    scene.no_orphans()


def kill_worker(scene: Scene, rng: random.Random) -> None:
    process = scene.start()
    scene.until(process, lambda: len(scene.staged()) >= rng.randint(0, 8))
    if scene.until(process, lambda: bool(scene.workers()) or process.poll() is not None):
        for pid in scene.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
    if process.wait(120) != 0:
        raise Lapse("a killed worker was not replaced")
    scene.same()
    scene.no_orphans()


def kill_dvc_alone(scene: Scene, rng: random.Random) -> None:
    """The stage goes on; the second run must wait for it or say so, and end well."""
    process = scene.start(scene.dvc)
    if not scene.until(process, lambda: len(scene.staged()) >= 1):
        raise Lapse("the run ended before it could be attacked")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    scene.finish(scene.dvc)
    scene.same()
    scene.no_orphans()


def kill_dvc_group(scene: Scene, rng: random.Random) -> None:
    process = scene.start(scene.dvc)
    if somewhere(scene, rng, process):
        os.killpg(process.pid, signal.SIGKILL)
    _dvc_again(scene, process)


def kill_at_publishing(scene: Scene, rng: random.Random) -> None:
    """Between the rename and DVC's lock."""
    process = scene.start(scene.dvc)
    if scene.until(process, (scene.path / product(scene)).exists):
        os.killpg(process.pid, signal.SIGKILL)
    _dvc_again(scene, process)


def _dvc_again(scene: Scene, killed: subprocess.Popen[bytes]) -> None:
    killed.wait()
    scene.no_orphans()
    scene.finish(scene.dvc)
    scene.same()


def kill_in_a_write(scene: Scene, rng: random.Random) -> None:
    """While a checkpoint, a marker or a model is being written."""
    process = scene.start()

    def writing() -> bool:
        return any((scene.path / ".work").glob("*/*/**/*.partial"))

    if scene.until(process, lambda: writing() or process.poll() is not None):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resume(scene)


def injected(kind: str, times: int) -> Attack:
    """A fault inside a worker, once or always."""

    def attack(scene: Scene, rng: random.Random) -> None:
        shard = rng.randrange(SHARDS)
        env = {"FAULT": f"{kind}:{shard}:{times}"}
        if kind == "hang":
            env["RFPP_SHARD_TIMEOUT"] = "6"
        if times:
            scene.finish(**env)
        else:
            env["RFPP_RETRIES"] = "1"
            said = scene.finish(code=2, **env)
            line = next((x for x in said.splitlines() if x.startswith("rfpp: shards")), "")
            if f"shards {shard} failed" not in line or "injected" not in line:
                raise Lapse(f"the failing shard is not named: {said[-300:]}")
            if len(scene.staged()) != SHARDS - 1:
                raise Lapse(f"{len(scene.staged())} shards were kept, not {SHARDS - 1}")
            begun = len(scene.made())
            scene.finish()
            if scene.made()[begun:] != [shard]:
                raise Lapse(f"made again: {scene.made()[begun:]}, not {shard} alone")
        scene.same()
        scene.no_orphans()

    return attack


def damaged(how: str) -> Attack:
    """Damage to what is staged between two runs; it is found by name and made again."""

    def attack(scene: Scene, rng: random.Random) -> None:
        process = scene.start()
        if not scene.until(process, lambda: len(scene.staged()) >= 2):
            raise Lapse("the run ended before it could be attacked")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        scene.no_orphans()
        marker = rng.choice(scene.staged())
        if scene.stage == "generate":
            shard = int(marker.stem)
            data = marker.parent.parent / f"images/c/{shard}/0/0/0"
        else:
            shard, data = -1, marker.with_suffix(".safetensors")
        _damage(how, data, marker, rng)
        said = scene.finish()
        by_name = f"shard {shard} is made again" in said
        if scene.stage == "generate" and how != "no marker" and not by_name:
            raise Lapse(f"{how}: not said: {said[-300:]}")
        scene.same()

    return attack


def _damage(how: str, data: Path, marker: Path, rng: random.Random) -> None:
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
            marker.write_text(marker.read_text().replace("sha256", "sha512", 1))
        case "no marker":
            marker.unlink()


def damaged_model(scene: Scene, rng: random.Random) -> None:
    """A half-written teacher is refused in one line, and nothing is made of it."""
    model = scene.path / "models/flow1.safetensors"
    content = model.read_bytes()
    model.unlink()
    model.write_bytes(content[: rng.randrange(len(content))])
    said = scene.finish(code=2)
    if "models/flow1.safetensors is not a readable" not in said:
        raise Lapse(f"not named: {said[-300:]}")
    model.write_bytes(content)
    scene.finish()
    scene.same()


def leftovers(scene: Scene, rng: random.Random) -> None:
    """Partial files, and staged work of another identity, are in nobody's way."""
    other = scene.path / ".work" / "pairs" / ("0" * 16)
    other.mkdir(parents=True)
    (other / "identity.json").write_text("{}")
    (scene.path / "data/.pairs_2.zarr.partial").mkdir()
    (scene.path / "data/.pairs_2.zarr.partial/zarr.json").write_text("{")
    (scene.path / "models/.flow2.safetensors.1.partial").write_bytes(b"half")
    scene.finish()
    scene.same()


def two_at_once(scene: Scene, rng: random.Random) -> None:
    """Two runs of the same stage: the second waits, and no shard is made twice."""
    first = scene.start()
    time.sleep(rng.uniform(0, 3))
    second = scene.start()
    if (first.wait(300), second.wait(300)) != (0, 0):
        raise Lapse(f"exit codes {first.returncode}, {second.returncode}")
    made = scene.made()
    if len(set(made)) < len(made):
        raise Lapse(f"shards made twice: {sorted(made)}")
    scene.same()
    scene.no_orphans()


def experiments(scene: Scene, rng: random.Random) -> None:
    """`dvc exp run --temp` killed, then `dvc exp run` takes the same work up."""
    target = scene.dvc[-1]
    for command in (["git", "add", "-f", "dvc.lock"], ["git", "commit", "-qm", "lock"]):
        scene.finish(command)
    process = scene.start(["dvc", "exp", "run", "--temp", target])
    if scene.until(process, lambda: len(scene.staged()) >= 1):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    scene.no_orphans()
    kept = len(scene.staged())
    begun = len(scene.made())
    scene.finish(["dvc", "exp", "run", target])
    if scene.stage == "generate" and len(scene.made()) - begun > SHARDS - kept + 1:
        raise Lapse("an experiment made shards again")
    scene.same()


def full_disk(scene: Scene, rng: random.Random) -> None:
    """No space left: an error, whole shards kept, and on with more space."""
    work = scene.path / ".work"
    work.mkdir(exist_ok=True)
    size = f"size={rng.randint(60, 120)}k"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", work], check=False,
                          capture_output=True)  # fmt: skip
    if done.returncode:
        print("  no tmpfs can be mounted here: the full disk was not tried")
        return
    try:
        process = scene.start(PREFECT_HOME=str(scene.faults / "prefect"))
        if process.wait(300) == 0:
            raise Lapse("it fitted; the attack needs a smaller disk")
        if "Traceback" in scene.log.read_text():
            raise Lapse("a traceback")
        subprocess.run(["mount", "-o", "remount,size=64m", str(work)], check=True)
        scene.finish(PREFECT_HOME=str(scene.faults / "prefect"))
        scene.same()
        scene.no_orphans()
    finally:
        subprocess.run(["umount", "-l", str(work)], check=False)
        shutil.rmtree(work, ignore_errors=True)


EVERY, PAIRS = ("pretrain", "generate", "reflow"), ("generate",)
KINDS: dict[str, tuple[Attack, tuple[str, ...]]] = {
    "SIGKILL to the group": (signalled(signal.SIGKILL, True), EVERY),
    "SIGTERM to the group": (signalled(signal.SIGTERM, True), EVERY),
    "SIGINT to the group": (signalled(signal.SIGINT, True), EVERY),
    "SIGKILL to the driver": (signalled(signal.SIGKILL, False), EVERY),
    "SIGTERM to the driver": (signalled(signal.SIGTERM, False), EVERY),
    "SIGKILL to a worker": (kill_worker, PAIRS),
    "SIGKILL to dvc alone": (kill_dvc_alone, EVERY),
    "SIGKILL to dvc and all": (kill_dvc_group, EVERY),
    "kill between publishing and the lock": (kill_at_publishing, EVERY),
    "kill during a write": (kill_in_a_write, EVERY),
    "exception in a shard, once": (injected("raise", 1), PAIRS),
    "exception in a shard, always": (injected("raise", 0), PAIRS),
    "worker killed from within": (injected("oom", 1), PAIRS),
    "worker without memory": (injected("memory", 1), PAIRS),
    "worker that hangs": (injected("hang", 1), PAIRS),
    "truncated file": (damaged("truncated"), EVERY),
    "empty file": (damaged("empty"), EVERY),
    "missing file": (damaged("missing"), EVERY),
    "flipped bit": (damaged("bit"), EVERY),
    "edited marker": (damaged("edited marker"), EVERY),
    "lost marker": (damaged("no marker"), EVERY),
    "half-written model": (damaged_model, PAIRS),
    "leftovers and stale staging": (leftovers, ("generate", "reflow")),
    "two runs at once": (two_at_once, EVERY),
    "experiments": (experiments, ("generate", "reflow")),
    "full disk": (full_disk, PAIRS),
}
