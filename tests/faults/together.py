"""Several at once: two runs of a stage, two ``dvc repro``, experiments, the queue."""

from __future__ import annotations

import os
import random
import signal
import time

from tests.faults.kills import GRACE
from tests.faults.scene import SHARDS, Failure, Scene

LR, TARGET = "recipes.reflow.lr", "train@flow2"
BUSY = "dvc.exceptions.LockError", "Unable to acquire lock", "is busy", "is locked"


def two_stages(scene: Scene, rng: random.Random) -> None:
    """Two runs of the same stage: the second waits, and no shard is made twice."""
    first = scene.start()
    time.sleep(rng.uniform(0, 3))
    scene.hit(first.poll() is None)
    second = scene.start()
    if (first.wait(300), second.wait(300)) != (0, 0):
        raise Failure(f"exit codes {first.returncode}, {second.returncode}")
    scene.no_twice()
    scene.same()
    scene.no_orphans()


def two_repros(scene: Scene, rng: random.Random) -> None:
    """A second ``dvc repro`` beside a running one waits, or DVC refuses it; no harm is done."""
    first = scene.start(scene.dvc)
    time.sleep(rng.uniform(0, 6))
    scene.hit(first.poll() is None)
    second = scene.start(scene.dvc)
    codes = first.wait(300), second.wait(300)
    if 0 not in codes:
        raise Failure(f"neither came through: exit codes {codes}")
    if any(codes) and not any(sign in scene.log.read_text() for sign in BUSY):
        raise Failure(f"refused, and not said why: {scene.log.read_text()[-300:]}")
    scene.no_orphans()
    scene.finish(scene.dvc)
    scene.no_twice()
    scene.same()


def resumed(scene: Scene, rng: random.Random) -> None:
    """``dvc exp run --temp`` killed, then ``dvc exp run`` resumes the same work."""
    scene.commit()
    process = scene.start(["dvc", "exp", "run", "--temp", scene.stage])
    least = rng.randint(1, SHARDS if scene.pairs else 1)
    if scene.hit(scene.until(process, lambda: len(scene.staged()) >= least)):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(GRACE)
    scene.resume(["dvc", "exp", "run", scene.stage])


def same_pairs(scene: Scene, rng: random.Random) -> None:
    """Two experiments at once on the same pairs, one killed or not: no shard is made twice."""
    killed = _two_experiments(scene, rng, [f"{LR}=0.001"], [f"{LR}=0.003"])
    if len(scene.staged()) != SHARDS:
        raise Failure(f"{len(scene.staged())} shards were staged for the same pairs")
    scene.finish(["dvc", "repro", scene.stage])
    scene.no_twice(killed)
    scene.same()


def other_pairs(scene: Scene, rng: random.Random) -> None:
    """Two experiments at once on different pairs: each its own, and the first as ever."""
    _two_experiments(scene, rng, [f"{LR}=0.001"], ["pairs.pairs2.nfe=3"])
    if len(scene.staged()) != 2 * SHARDS:
        raise Failure(f"{len(scene.staged())} shards were staged for two sets of pairs")
    begun = len(scene.made())
    scene.finish(["dvc", "repro", scene.stage])
    if len(scene.made()) != begun:
        raise Failure("shards were made again")
    scene.same()


def _two_experiments(scene: Scene, rng: random.Random, one: list[str], other: list[str]) -> int:
    """Runs both side by side; with even odds the first is killed on its way and run again.

    Returns the number of kills.
    """
    scene.commit()
    commands = [["dvc", "exp", "run", "--temp", "-S", *what, TARGET] for what in (one, other)]
    first = scene.start(commands[0])
    time.sleep(rng.uniform(0, 2))
    scene.hit(first.poll() is None)
    second = scene.start(commands[1])
    killed, least = False, rng.randint(1, SHARDS)
    if rng.random() < 0.5:
        killed = scene.until(first, lambda: len(scene.staged()) >= least)
        if killed:
            os.killpg(first.pid, signal.SIGKILL)
    codes = first.wait(300), second.wait(300)
    scene.no_orphans()
    for code, command, shot in zip(codes, commands, (killed, False), strict=True):
        if code:  # killed, or refused by DVC's own lock, which it says
            said = scene.log.read_text()
            if not shot and not any(sign in said for sign in BUSY):
                raise Failure(f"exit codes {codes}: {said[-300:]}")
            scene.finish(command)
    return int(killed)


def queued(scene: Scene, rng: random.Random) -> None:
    """``--queue`` with two workers; with even odds a task's stage is killed, and queued again."""
    scene.commit()
    kill_at = rng.randint(1, SHARDS - 1) if rng.random() < 0.5 else None
    failed = _work_off(scene, kill_at)
    scene.hit(failed or kill_at is None)
    if failed and kill_at is None:
        raise Failure(f"{failed} queued experiments failed: {scene.log.read_text()[-300:]}")
    if failed:
        scene.finish(["dvc", "queue", "remove", "--all"])
        if still := _work_off(scene, None):
            raise Failure(f"{still} queued experiments failed again")
    scene.finish(["dvc", "repro", scene.stage])
    scene.no_twice(kills=failed)
    scene.same()


def _work_off(scene: Scene, kill_at: int | None) -> int:
    """Queues two experiments on the same pairs, waits for two workers to do them; how many
    failed."""
    scene.finish(["dvc", "exp", "run", "--queue", "-S", f"{LR}=0.001,0.003", TARGET])
    scene.finish(["dvc", "queue", "start", "-j", "2"])
    deadline = time.monotonic() + 240
    while True:
        if kill_at is not None and len(scene.staged()) >= kill_at:
            for pid in scene.pids("pipeline.stages.generate"):
                os.kill(pid, signal.SIGKILL)
            kill_at = None
        states = scene.finish(["dvc", "queue", "status"]).split()
        if not {"Queued", "Running"} & set(states):
            break
        if time.monotonic() > deadline:
            raise Failure(f"the queue is not done: {' '.join(states)}")
    scene.finish(["dvc", "queue", "stop"])
    scene.no_orphans()
    if states.count("Success") + states.count("Failed") != 2:
        raise Failure(f"the queue lost a task: {' '.join(states)}")
    return states.count("Failed")
