"""One of two processes that train together: ``-m tests.gpu.two DEVICE OUT``."""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed as dist

from rfpp_core import runtime
from rfpp_core.config import build, objective
from rfpp_core.images import loader
from rfpp_core.storage import checkpoint
from rfpp_core.training import distributed
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.trainer import train
from tests.gpu.small import images, start, with_


@contextmanager
def group(device):
    """NCCL where each process has its own card; gloo where they share one, which NCCL refuses."""
    if device.type == "cpu" or torch.cuda.device_count() > 1:
        with distributed.group(device) as rank:
            yield rank
        return
    dist.init_process_group("gloo")
    yield runtime.process_rank()
    dist.destroy_process_group()


def main(kind, out):
    shared = kind == "cuda" and torch.cuda.device_count() == 1
    device = torch.device("cuda:0") if shared else runtime.device()
    torch.set_num_threads(1)
    runtime.exact_training(device)
    recipe = with_(accumulate=2, steps=6)
    with group(device) as rank:
        state = start("ncsnpp", recipe, device)
        config = build.train_config(recipe, 5)
        source = loader.batches(images(), None, recipe.batch, 1, device, 0, rank)
        list(train(state, source, objective.loss(recipe, independent), config))
        if rank.first:
            checkpoint.save(Path(out), state.net.state_dict(), {})


if __name__ == "__main__":
    main(*sys.argv[1:])
