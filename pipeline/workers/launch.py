"""A training over several processes of this machine: ``RFPP_PROCESSES``.

This process becomes their launcher: it starts them with the environment that torchrun would set,
waits, and does nothing else.  On several machines torchrun itself starts them all (``torchrun ...
-m pipeline.stages.train flow2``).  A process that fails leaves its error in a file
(``console.hand_over``); the launcher prints the first and ends the others, which die with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import settings
from rfpp_core.errors import UserError

POLL = 0.05  # seconds


def spread() -> None:
    """Becomes the launcher if a training is to have several processes and this is none of them.

    Then it does not return, but exits as they do.
    """
    count = settings.processes()
    if "RANK" in os.environ:  # a killed torchrun would leave its workers behind
        die_with_parent()
    elif count > 1:
        sys.exit(launch(count))


def launch(count: int) -> int:
    """Runs this command in ``count`` processes and returns the exit code.

    Raises:
        KeyboardInterrupt: on Ctrl-C, which the processes ignore; they are ended before.
        UserError: if one is killed, or ends without an error message.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="rfpp-") as folder:
        try:
            ranks.extend(_start(count, folder))
            _wait(ranks, Path(folder))
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the outcome is known
            return _outcome([rank.poll() for rank in ranks], Path(folder))
        finally:
            for rank in ranks:
                rank.kill()
            for rank in ranks:
                rank.wait()


def _start(count: int, folder: str) -> Iterator[subprocess.Popen[bytes]]:
    module = sys.modules["__main__"].__spec__
    assert module is not None
    command = [sys.executable, "-m", module.name, *sys.argv[1:]]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(free_port()), "RFPP_ERRORS": folder}  # fmt: skip
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        yield subprocess.Popen(command, env=os.environ | shared | place, preexec_fn=_belong)


def _wait(ranks: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Waits until all are done or one has failed, for which the others would wait forever."""
    while any(rank.poll() is None for rank in ranks):
        if any(rank.poll() for rank in ranks) or _errors(folder):
            return
        time.sleep(POLL)


def _errors(folder: Path) -> list[Path]:
    """The files of errors, oldest first."""
    return sorted(path for path in folder.iterdir() if path.suffix != ".partial")


def _outcome(codes: list[int | None], folder: Path) -> int:
    """Prints the first error and returns the exit code."""
    if killed := [code for code in codes if code and code < 0]:  # not by this process
        name = signal.Signals(-killed[0]).name
        raise UserError(f"a training process was killed ({name}); run the same command again to "
                        f"resume")  # fmt: skip
    if errors := _errors(folder):
        print(errors[0].read_text(), end="", file=sys.stderr, flush=True)
        return int(errors[0].name.rpartition("-")[2])
    if failed := [code for code in codes if code]:
        raise UserError(f"a training process ended with exit code {failed[0]}; run the same "
                        f"command again to resume")  # fmt: skip
    return 0


def _belong() -> None:
    """Set up in each process of the launcher before anything else."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
