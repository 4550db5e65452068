"""What tests of the launcher run as a training of two processes: ``-m tests.ranks MODE``."""

import os
import signal
import time
from pathlib import Path

from pipeline import console
from pipeline.workers import launch
from rfpp_core.errors import UserError


def run(mode: str) -> None:
    launch.spread()
    rank, folder = os.environ["RANK"], Path(os.environ["RFPP_ERRORS"])
    os.write(1, f"rank {rank}\n".encode())
    if mode == "works":
        return
    if rank == "1" and mode == "refuses":
        raise UserError("no room on this machine")
    if rank == "1" and mode == "breaks":
        raise RuntimeError("a mistake")
    if rank == "1" and mode == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == "1" and mode == "leaves":
        os._exit(7)
    if mode == "refuses":  # as a broken connection makes it
        while not list(folder.iterdir()):
            time.sleep(0.001)
        raise RuntimeError("connection closed by peer")
    time.sleep(600)


if __name__ == "__main__":
    console.main(run, "mode")
