"""A training over several processes of this machine: ``RFPP_PROCESSES``.

This process becomes the first of them and starts the others with the environment that torchrun
would set; on several machines torchrun itself starts them all (``torchrun ... -m pipeline.reflow
2``).  The others die with the first, and the first stops when one of them dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading

from pipeline import stage


def spread() -> None:
    """Starts the other processes, if there are to be several and this is not one of them."""
    count = int(stage.env_number("RFPP_PROCESSES", 1, least=1))
    if "RANK" in os.environ:  # torchrun leaves its workers behind when it is killed
        die_with_parent()
    if count == 1 or "RANK" in os.environ:
        return
    port = str(free_port())
    os.environ |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    module = sys.modules["__main__"].__spec__
    assert module is not None
    command = [sys.executable, "-m", module.name, *sys.argv[1:]]
    others = []
    for rank in range(1, count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        others.append(
            subprocess.Popen(command, env=os.environ | place, preexec_fn=die_with_parent)
        )
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    for other in others:
        threading.Thread(target=_watch, args=(other,), daemon=True).start()


def _watch(other: subprocess.Popen[bytes]) -> None:
    """Without one process the others would wait for it for ever."""
    if code := other.wait():
        if code not in (2, 130):  # those the first process says itself
            print(f"rfpp: a training process died (exit code {code}); run the same command again "
                  f"to go on", file=sys.stderr, flush=True)  # fmt: skip
        os.kill(os.getpid(), signal.SIGINT if code == 130 else signal.SIGTERM)


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
