"""A training in a process of its own, which resumes: ``-m tests.gpu.one DEVICE FOLDER [HANG]``.

It saves its state at every report, and its finished weights.  With HANG it stands still in the
update after that many, as ``FOLDER/hangs`` then says, and waits to be killed.
"""

import sys
import time
from pathlib import Path

import torch

from rfpp_core import runtime
from rfpp_core.storage import checkpoint
from rfpp_core.training.couplings.independent import independent
from tests.gpu.small import reports_of, start, with_

RECIPE = with_(steps=9, dropout=0.1, precision="bf16")  # a report every 3


def main(kind, folder, hang=None):
    device, folder = torch.device(kind), Path(folder)
    torch.set_num_threads(1)
    runtime.exact_training(device)
    state = start("ncsnpp", RECIPE, device)
    if saved := checkpoint.load_state(folder, RECIPE.steps):
        state.restore(checkpoint.to_device(saved.tensors, device), saved.metadata)
    (folder / "began").write_text(str(state.step))

    def coupling(batch, draws):
        if hang is not None and draws.step == int(hang):
            (folder / "hangs").touch()
            time.sleep(600)
        return independent(batch, draws)

    for report in reports_of(state, RECIPE, coupling):
        checkpoint.save_state(folder, report.step, state.tensors(), state.metadata())
    checkpoint.save(folder / "weights.safetensors", state.average.state_dict(), {})


if __name__ == "__main__":
    main(*sys.argv[1:])
