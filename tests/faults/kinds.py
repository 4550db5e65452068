"""The kinds of attack, and the stages that each is tried on."""

from __future__ import annotations

from signal import SIGINT, SIGKILL, SIGTERM

from tests.faults import changes, corruption, environments, kills, together
from tests.faults.scene import STAGES, Attack

ALL = tuple(STAGES)
FLOW1, FLOW2, PAIRS = ("train@flow1",), ("train@flow2",), ("generate@pairs2",)
TRAIN, MAKE = FLOW1 + FLOW2, FLOW1 + PAIRS + FLOW2
READ, MEASURE = (*MAKE, "evaluate@flow2"), ("reference", "evaluate@flow2")
KINDS: dict[str, tuple[Attack, tuple[str, ...]]] = {
    "SIGKILL to the process group": (kills.signalled(SIGKILL, whole=True), ALL),
    "SIGTERM to the process group": (kills.signalled(SIGTERM, whole=True), ALL),
    "SIGINT to the process group": (kills.signalled(SIGINT, whole=True), ALL),
    "SIGKILL to the driver": (kills.signalled(SIGKILL, whole=False), ALL),
    "SIGTERM to the driver": (kills.signalled(SIGTERM, whole=False), ALL),
    "SIGINT to the driver": (kills.signalled(SIGINT, whole=False), ALL),
    "SIGSTOP, then SIGCONT to the driver": (kills.stopped, ALL),
    "SIGKILL to a worker": (kills.worker_signalled(SIGKILL), PAIRS),
    "SIGTERM to a worker": (kills.worker_signalled(SIGTERM), PAIRS),
    "SIGINT to a worker": (kills.worker_signalled(SIGINT), PAIRS),
    "SIGSTOP, then SIGCONT to a worker": (kills.worker_stopped, PAIRS),
    "SIGKILL to the private Prefect server": (kills.server_killed, PAIRS),
    "SIGKILL to one of two that train": (kills.training_process_killed, FLOW2),
    "SIGKILL to dvc alone": (kills.dvc_signalled(SIGKILL), ALL),
    "SIGTERM to dvc alone": (kills.dvc_signalled(SIGTERM), ALL),
    "SIGINT to dvc alone": (kills.dvc_signalled(SIGINT), ALL),
    "SIGKILL to dvc and all": (kills.kill_dvc_and_all, ALL),
    "kill between publishing and DVC's lock": (kills.kill_at_publishing, ALL),
    "kill during a write": (kills.kill_in_a_write, ALL),
    "kill at 90 % of the shards": (kills.kill_near_the_end, PAIRS),
    "exception in a shard, once": (kills.injected("raise", 1), PAIRS),
    "exception in a shard, always": (kills.injected("raise", 0), PAIRS),
    "worker killed as if out of memory": (kills.injected("oom", 1), PAIRS),
    "worker that cannot allocate": (kills.injected("memory", 1), PAIRS),
    "worker that hangs": (kills.injected("hang", 1), PAIRS),
    "truncated file": (corruption.corrupted("truncated"), MAKE),
    "empty file": (corruption.corrupted("empty"), MAKE),
    "missing file (marker without data)": (corruption.corrupted("missing"), MAKE),
    "flipped bit": (corruption.corrupted("bit"), MAKE),
    "edited marker": (corruption.corrupted("edited marker"), MAKE),
    "lost marker": (corruption.corrupted("lost marker"), MAKE),
    "staged metadata corrupted": (corruption.corrupted_metadata, PAIRS),
    "staged measurement corrupted": (corruption.corrupted_measurement, MEASURE),
    "real images corrupted": (corruption.corrupted_images, FLOW1),
    "reference or flow corrupted": (corruption.corrupted_reference, ("evaluate@flow2",)),
    "published pairs corrupted": (corruption.corrupted_publication, FLOW2),
    "finished training corrupted": (corruption.corrupted_finish, TRAIN),
    "teacher corrupted": (corruption.corrupted_model, PAIRS),
    "leftovers and stale staging": (corruption.leftovers, MAKE),
    "full disk": (corruption.full_disk, MAKE),
    "params edited while it runs": (changes.params_edited, ALL),
    "staged work removed while it runs": (changes.work_removed, ALL),
    "dvc.lock truncated": (changes.lock_cut, ALL),
    "model swapped for another": (changes.model_swapped, READ),
    "two sets of pairs swapped": (changes.pairs_swapped, FLOW2),
    "an unlikely path": (environments.unlikely_path, ALL),
    "a symlinked checkout": (environments.symlinked, ALL),
    "unlikely surroundings": (environments.surroundings, ALL),
    "a state of the git repository": (environments.git_state, ALL),
    "another command meanwhile": (environments.command_meanwhile, ALL),
    "two runs of a stage": (together.two_stages, ALL),
    "two dvc repro": (together.two_repros, ALL),
    "dvc exp: killed and resumed": (together.resumed, PAIRS + FLOW2),
    "dvc exp: two at once, same pairs": (together.same_pairs, PAIRS),
    "dvc exp: two at once, other pairs": (together.other_pairs, PAIRS),
    "dvc exp: queue with two workers": (together.queued, PAIRS),
}
