"""The kinds of attack, and the stages that each is tried on."""

from __future__ import annotations

from signal import SIGINT, SIGKILL, SIGTERM

from tests.faults import damages, kills, together
from tests.faults.scene import Attack

EVERY, PAIRS, REFLOW = ("pretrain", "generate", "reflow"), ("generate",), ("reflow",)
KINDS: dict[str, tuple[Attack, tuple[str, ...]]] = {
    "SIGKILL to the process group": (kills.signalled(SIGKILL, whole=True), EVERY),
    "SIGTERM to the process group": (kills.signalled(SIGTERM, whole=True), EVERY),
    "SIGINT to the process group": (kills.signalled(SIGINT, whole=True), EVERY),
    "SIGKILL to the driver": (kills.signalled(SIGKILL, whole=False), EVERY),
    "SIGTERM to the driver": (kills.signalled(SIGTERM, whole=False), EVERY),
    "SIGINT to the driver": (kills.signalled(SIGINT, whole=False), EVERY),
    "SIGKILL to a worker": (kills.worker_signalled(SIGKILL), PAIRS),
    "SIGTERM to a worker": (kills.worker_signalled(SIGTERM), PAIRS),
    "SIGINT to a worker": (kills.worker_signalled(SIGINT), PAIRS),
    "SIGKILL to one of two that train": (kills.training_process_killed, REFLOW),
    "SIGKILL to dvc alone": (kills.dvc_signalled(SIGKILL), EVERY),
    "SIGTERM to dvc alone": (kills.dvc_signalled(SIGTERM), EVERY),
    "SIGINT to dvc alone": (kills.dvc_signalled(SIGINT), EVERY),
    "SIGKILL to dvc and all": (kills.kill_dvc_and_all, EVERY),
    "kill between publishing and DVC's lock": (kills.kill_at_publishing, EVERY),
    "kill during a write": (kills.kill_in_a_write, EVERY),
    "kill at 90 % of the shards": (kills.kill_near_the_end, PAIRS),
    "exception in a shard, once": (kills.injected("raise", 1), PAIRS),
    "exception in a shard, always": (kills.injected("raise", 0), PAIRS),
    "worker killed as if out of memory": (kills.injected("oom", 1), PAIRS),
    "worker that cannot allocate": (kills.injected("memory", 1), PAIRS),
    "worker that hangs": (kills.injected("hang", 1), PAIRS),
    "truncated file": (damages.corrupted("truncated"), EVERY),
    "empty file": (damages.corrupted("empty"), EVERY),
    "missing file (marker without data)": (damages.corrupted("missing"), EVERY),
    "flipped bit": (damages.corrupted("bit"), EVERY),
    "edited marker": (damages.corrupted("edited marker"), EVERY),
    "lost marker": (damages.corrupted("lost marker"), EVERY),
    "staged metadata damaged": (damages.damaged_metadata, PAIRS),
    "real images damaged": (damages.damaged_images, ("pretrain",)),
    "published pairs damaged": (damages.damaged_publication, REFLOW),
    "finished training damaged": (damages.damaged_finish, ("pretrain", "reflow")),
    "teacher damaged": (damages.damaged_model, PAIRS),
    "leftovers and stale staging": (damages.leftovers, EVERY),
    "full disk": (damages.full_disk, EVERY),
    "two runs of a stage": (together.two_stages, EVERY),
    "two dvc repro": (together.two_repros, EVERY),
    "dvc exp: killed and taken up": (together.taken_up, ("generate", "reflow")),
    "dvc exp: two at once, same pairs": (together.same_pairs, PAIRS),
    "dvc exp: two at once, other pairs": (together.other_pairs, PAIRS),
    "dvc exp: queue with two workers": (together.queued, PAIRS),
}
