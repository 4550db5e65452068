"""What a worker does in tests that kill it while it works."""

import time
from pathlib import Path

from pipeline.workers import tasks


def make_shard(store, teacher, shard, flag):
    """As ``tasks.make_shard``, but hangs after its second micro-batch, as a file then says."""
    original, done = tasks.micro_batch, []

    def micro_batch(*args):
        made = original(*args)
        done.append(args)
        if len(done) == 2:
            Path(flag).touch()
            time.sleep(600)
        return made

    tasks.micro_batch = micro_batch
    return tasks.make_shard(store, teacher, shard)
