"""Two processes train what one does, and another number of them may resume it."""

import shutil
import signal
import sys
import time

import pytest
import torch

from rfpp_core.storage import checkpoint
from tests.helpers import Project

pytestmark = pytest.mark.slow
TOLERANCE = 2e-4  # sums of gradients in another order, over 100 updates of Adam


def weights(project: Project) -> dict:
    return checkpoint.load(project.path / "models/flow2.safetensors").tensors


def train(project: Project, processes: int, **env: str) -> list[str]:
    settings = {"RFPP_PROCESSES": processes, **env}
    return ["env", *(f"{name}={value}" for name, value in settings.items()),
            sys.executable, "-m", "pipeline.stages.train", "flow2"]  # fmt: skip


@pytest.fixture
def ready(tmp_path, finished) -> Project:
    """A project that stands before its second training."""
    project = finished.copy(tmp_path / "project")
    shutil.rmtree(project.trainings("pairs")[0])
    (project.path / "models/flow2.safetensors").unlink()
    return project


def close(one: dict, other: dict) -> bool:
    return all(float((one[name] - other[name]).abs().max()) < TOLERANCE for name in one)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "pipeline.stages.train", "flow2"]  # fmt: skip


@pytest.mark.parametrize("torchrun", [False, True])
def test_two_processes_are_one_trainer(ready, finished, torchrun):
    done = ready.run(*(TORCHRUN if torchrun else train(ready, 2)))
    assert done.stdout.count("flow2: 100 steps") == 1
    assert close(weights(ready), weights(finished))
    rows = (ready.path / "curves/loss/flow2.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(step) for step in range(10, 101, 10)]


@pytest.mark.parametrize("processes", [1, 2])
def test_pairs_may_stay_on_the_disk(ready, finished, processes):
    """Paged from files that the processes share; the same weights, and no file is left."""
    running = ready.start(*train(ready, processes, RFPP_MEMORY="0"))
    seen = False
    while running.poll() is None:
        seen = seen or bool(ready.work("train/*/flat/*/images.raw"))
        time.sleep(0.005)
    assert running.returncode == 0
    assert seen
    assert not ready.work("train/*/flat")
    if processes == 1:
        for name, tensor in weights(finished).items():
            assert torch.equal(tensor, weights(ready)[name])
    assert close(weights(ready), weights(finished))


def test_a_training_goes_on_with_another_number_of_processes(ready, finished):
    running = ready.start(*train(ready, 2))
    while not ready.states("pairs"):
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)  # the first process alone: the other dies with it
    running.wait()
    assert not (ready.path / "models/flow2.safetensors").exists()
    done = ready.run(*train(ready, 1))
    assert "resumes at step" in done.stdout
    assert close(weights(ready), weights(finished))


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_of_two_that_fails_is_one_line(ready, rank):
    """Whichever fails first speaks, and the other ends in silence."""
    hook = ready.path / "sitecustomize.py"
    hook.write_text(
        "import os, sys\n"
        "from rfpp_core.errors import UserError\n"
        f"mine = os.environ.get('RANK', '0') == '{rank}'\n"
        "if mine and 'pipeline.stages.train' in sys.orig_argv:\n"
        "    from pipeline.work import training_run\n"
        "    def fail(*_):\n"
        "        raise UserError('no room on this machine')\n"
        "    training_run._buffers = fail\n"
    )
    done = ready.run("env", "PYTHONPATH=.", *train(ready, 2)[1:], ok=False)
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.strip()] == [
        "rfpp: no room on this machine"
    ]


def test_an_uneven_share_is_refused(ready):
    done = ready.run(*train(ready, 3), ok=False)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("rfpp")]
    assert lines == ["rfpp: batch is 64, which 3 processes do not share evenly"]


def test_ranks_take_slices_of_one_batch():
    from rfpp_core.images import loader
    from rfpp_core.runtime import Rank

    images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 1, 2, 2)
    cpu = torch.device("cpu")
    whole = next(loader.batches(images, None, 12, 5, cpu, start=9))
    parts = [next(loader.batches(images, None, 12, 5, cpu, 9, Rank(r, 3))) for r in range(3)]
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
    assert torch.equal(torch.cat([part.position for part in parts]), whole.position)
