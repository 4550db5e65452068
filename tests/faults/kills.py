"""Attacks on processes: signals, deaths, hangs and errors at random instants of a run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

from tests.faults.scene import SHARDS, Attack, Failure, Scene

GRACE = 60.0  # seconds that an attacked run may take to leave


def somewhere(scene: Scene, rng: random.Random, process: subprocess.Popen[bytes]) -> bool:
    """Waits for a random instant of a run; False if the run ended first."""
    if rng.random() < 0.4:
        time.sleep(rng.uniform(0.0, 8.0))
        return process.poll() is None
    count = rng.randint(1, scene.about.most)
    there = scene.until(process, lambda: len(scene.staged()) >= count)
    time.sleep(rng.uniform(0.0, 0.05))
    return there and process.poll() is None


def signalled(number: int, whole: bool) -> Attack:
    """A signal to the process group, or to the driver alone; then run again."""

    def attack(scene: Scene, rng: random.Random) -> None:
        process = scene.start()
        struck = scene.hit(somewhere(scene, rng, process))
        begun, at = len(scene.made()), time.monotonic()
        if struck:
            (os.killpg if whole else os.kill)(process.pid, number)
        code = process.wait(GRACE)
        scene.notes["seconds to end"] = round(time.monotonic() - at, 2)
        said = scene.log.read_text()
        if code == 0 and not scene.product.exists():
            raise Failure("an interrupted run says that it succeeded")
        if "Traceback" in said:
            raise Failure("a traceback")
        if number == signal.SIGINT and code and "run the same command again" not in said:
            raise Failure(f"not said how to resume: {said[-300:]}")
        if struck and len(scene.made()) > begun + scene.width:
            raise Failure(f"{len(scene.made()) - begun} shards were begun after the signal")
        scene.resume()

    return attack


def worker_signalled(number: int) -> Attack:
    """A worker that dies is replaced; Ctrl-C is its parent's business."""

    def attack(scene: Scene, rng: random.Random) -> None:
        if resumed := rng.random() < 0.4:  # a resumed run first regenerates and compares
            scene.half_done(2)
        process = scene.start()
        least = 0 if resumed else rng.randint(0, 8)
        there = scene.until(process, lambda: len(scene.staged()) >= least)
        if there and scene.until(process, lambda: bool(scene.workers())):
            os.kill(scene.hit(rng.choice(scene.workers())), number)
        if process.wait(120) != 0:
            raise Failure("the run did not get over a worker's signal")
        scene.same()
        scene.no_orphans()

    return attack


def training_process_killed(scene: Scene, rng: random.Random) -> None:
    """One of two that train together: the other leaves, and any number of them resumes."""
    process = scene.start(RFPP_PROCESSES="2")
    least = rng.randint(1, 2)
    if scene.hit(scene.until(process, lambda: len(scene.staged()) >= least)):
        os.kill(rng.choice(scene.pids("pipeline.stages.train")), signal.SIGKILL)
    if process.wait(GRACE) == 0 and not scene.product.exists():
        raise Failure("a training without one of its processes says that it succeeded")
    scene.no_orphans()
    scene.finish(RFPP_PROCESSES=str(rng.randint(1, 2)))
    scene.close()
    scene.no_orphans()


def stopped(scene: Scene, rng: random.Random) -> None:
    """A driver that stands still for seconds and continues: nothing is lost or made twice."""
    process = scene.start()
    if scene.hit(somewhere(scene, rng, process)):
        _stand_still(process.pid, rng)
    _gets_over_it(scene, process)


def worker_stopped(scene: Scene, rng: random.Random) -> None:
    """The same of a worker: without a limit on a shard's time, it is waited for."""
    process = scene.start()
    least = rng.randint(0, SHARDS - 1)
    there = scene.until(process, lambda: len(scene.staged()) >= least)
    if there and scene.until(process, lambda: bool(scene.workers())):
        _stand_still(scene.hit(rng.choice(scene.workers())), rng)
    _gets_over_it(scene, process)


def _stand_still(pid: int, rng: random.Random) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(rng.uniform(0.5, 3.0))
    os.kill(pid, signal.SIGCONT)


def _gets_over_it(scene: Scene, process: subprocess.Popen[bytes]) -> None:
    if process.wait(120) != 0:
        raise Failure(f"exit code {process.returncode}: {scene.log.read_text()[-300:]}")
    scene.no_twice()
    scene.same()
    scene.no_orphans()


def server_killed(scene: Scene, rng: random.Random) -> None:
    """The private Prefect server dies midway: the run ends right, or in a line, and resumes."""
    scene.private()
    process = scene.start()
    least = rng.randint(0, SHARDS - 1)
    there = scene.until(process, lambda: len(scene.staged()) >= least)
    if there and scene.until(process, lambda: bool(scene.pids("uvicorn"))):
        os.kill(scene.hit(scene.pids("uvicorn")[0]), signal.SIGKILL)
    code = process.wait(120)
    said = scene.log.read_text()
    if code not in (0, 2) or "Traceback" in said or (code and "rfpp: Prefect" not in said):
        raise Failure(f"exit code {code}, not one line: {said[-300:]}")
    scene.no_orphans()
    scene.finish()
    scene.no_twice(kills=1)
    scene.same()


def dvc_signalled(number: int) -> Attack:
    """To dvc alone: its stage runs on; the next run waits for it and makes nothing twice."""

    def attack(scene: Scene, rng: random.Random) -> None:
        process = scene.start(scene.dvc)
        if scene.hit(somewhere(scene, rng, process)):
            os.kill(process.pid, number)
        process.wait(GRACE)
        scene.finish(scene.dvc)
        scene.same()
        scene.no_twice()
        scene.no_orphans()

    return attack


def kill_dvc_and_all(scene: Scene, rng: random.Random) -> None:
    process = scene.start(scene.dvc)
    if scene.hit(somewhere(scene, rng, process)):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(GRACE)
    scene.resume(scene.dvc)


def kill_at_publishing(scene: Scene, rng: random.Random) -> None:
    """Between the rename and DVC's lock."""
    process = scene.start(scene.dvc)
    if scene.hit(scene.until(process, scene.product.exists)):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(GRACE)
    scene.resume(scene.dvc)


def kill_in_a_write(scene: Scene, rng: random.Random) -> None:
    """While a training state, a marker, a shard's metadata or a model is being written."""
    process, at = scene.start(), rng.randint(1, 6)
    seen: set[str] = set()

    def writing() -> bool:
        seen.update(str(path) for path in (scene.path / ".work").glob("*/*/**/*.partial"))
        return len(seen) >= at

    if scene.hit(scene.until(process, writing)):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(GRACE)
    scene.resume()


def kill_near_the_end(scene: Scene, rng: random.Random) -> None:
    """At 90 % of the shards: what is left is all that is made."""
    process = scene.start()
    if scene.hit(scene.until(process, lambda: len(scene.staged()) >= round(0.9 * SHARDS))):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(GRACE)
    scene.resume()


def injected(kind: str, times: int) -> Attack:
    """A fault inside a worker, once or always."""

    def attack(scene: Scene, rng: random.Random) -> None:
        shard = rng.randrange(SHARDS)
        env = {"FAULT": f"{kind}:{shard}:{times}"}
        if kind == "hang":
            env["RFPP_SHARD_TIMEOUT"] = "6"
        if times:
            said = scene.finish(**env)
            if not scene.hit((scene.faults / "struck-0").exists()):
                raise Failure("the fault was not injected")
            if f"shard {shard} failed" not in said:
                raise Failure(f"the failing shard is not named: {said[-300:]}")
        else:
            scene.hit(True)
            _fails_for_good(scene, shard, RFPP_RETRIES="1", **env)
        scene.same()
        scene.no_orphans()

    return attack


def _fails_for_good(scene: Scene, shard: int, **env: str) -> None:
    """The others stay, the shard is named with its error, and it alone is made again."""
    said = scene.finish(code=2, **env)
    line = next((x for x in said.splitlines() if x.startswith("rfpp: shards")), "")
    if f"shards {shard} failed" not in line or "injected" not in line:
        raise Failure(f"the failing shard is not named: {said[-300:]}")
    if len(scene.staged()) != SHARDS - 1:
        raise Failure(f"{len(scene.staged())} shards were committed, not {SHARDS - 1}")
    begun = len(scene.made())
    scene.finish()
    if scene.made()[begun:] != [shard]:
        raise Failure(f"made again: {scene.made()[begun:]}, not {shard} alone")
