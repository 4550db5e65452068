"""Attacks by the surroundings of a run: paths, variables, git, other commands of DVC."""

from __future__ import annotations

import os
import random
import shlex

from tests.faults.kills import somewhere
from tests.faults.scene import Failure, Scene
from tests.helpers import Project

PATHS = ("with spaces, and a 'quote'", "Bilder für später", "-x", "a" * 200, "50% [draft] #2 {x}")
SURROUNDINGS = {  # what a shell does before the command
    "LC_ALL=C": "export LC_ALL=C LANG=C PYTHONCOERCECLOCALE=0",
    "umask 000": "umask 000",
    "umask 077": "umask 077",
    "PYTHONOPTIMIZE=2": "export PYTHONOPTIMIZE=2",
    "warnings are errors": "export PYTHONWARNINGS=error",
    "one core": "taskset -p -c 0 $$ > /dev/null",
    "no HOME": "unset HOME",
    "ulimit -n 128": "ulimit -n 128",
    "no terminal width": "export COLUMNS=0 TERM=dumb",
}
GIT = {
    "a detached HEAD": "git checkout -q --detach",
    "no git user": "git config user.useConfigOnly true",
    "a dirty tree": "echo '# mine' >> dvc.yaml",
    "a frozen stage": "dvc freeze prepare",  # DVC freezes no stage of a table
}
COMMANDS = ("dvc gc -w -f", "dvc checkout", "dvc status", "git stash -q")


def unlikely_path(scene: Scene, rng: random.Random) -> None:
    """The checkout lies under an odd name."""
    old, new = scene.path, scene.path.with_name(rng.choice(PATHS))
    old.rename(new)
    try:
        _moved(scene, new)
        _to_the_end(scene, "true")
    finally:
        new.rename(old)
        _moved(scene, old)


def symlinked(scene: Scene, rng: random.Random) -> None:
    """The checkout is reached by a symbolic link."""
    link = scene.path.with_name("link")
    link.unlink(missing_ok=True)
    link.symlink_to(scene.path)
    _to_the_end(scene, f"cd {shlex.quote(str(link))}")


def surroundings(scene: Scene, rng: random.Random) -> None:
    """Variables, limits and masks that a shell may have."""
    name = rng.choice([*SURROUNDINGS])
    scene.notes["surroundings"] = name
    _to_the_end(scene, SURROUNDINGS[name])


def git_state(scene: Scene, rng: random.Random) -> None:
    """A git repository in a state that people leave it in."""
    name = rng.choice([*GIT])
    scene.notes["git"] = name
    _to_the_end(scene, GIT[name])


def command_meanwhile(scene: Scene, rng: random.Random) -> None:
    """Another command on the same tree: the stage ends right, or in one line."""
    command = rng.choice(COMMANDS)
    scene.notes["command"] = command
    process = scene.start()
    if scene.hit(somewhere(scene, rng, process)):
        scene.start(["bash", "-c", command]).wait(120)
    code, said = process.wait(120), scene.log.read_text()
    if code not in (0, 2) or "Traceback" in said:
        raise Failure(f"exit code {code}, not one line: {said[-300:]}")
    scene.no_orphans()
    scene.finish(["bash", "-c", "git stash pop -q 2> /dev/null; dvc repro " + scene.stage])
    scene.same()


def _to_the_end(scene: Scene, before: str) -> None:
    """Runs the stage through DVC after a line of shell, and compares."""
    scene.finish(["bash", "-c", f"{before} && exec {shlex.join(scene.dvc)}"])
    scene.hit(True)
    if "Traceback" in scene.log.read_text():
        raise Failure("a traceback")
    scene.same()
    scene.no_orphans()


def _moved(scene: Scene, path: os.PathLike[str]) -> None:
    scene.project = Project(scene.path.with_name(os.path.basename(path)))
    scene.path = scene.project.path
    scene.product = scene.path / scene.about.product
