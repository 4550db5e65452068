"""Gives files to a command, each in a process of its own, and measures time and memory.

``python -m tests.unit.interop.bounds COMMAND SECONDS FILE...`` prints a JSON line for each file.
The processes are forked from one that has imported everything, so that hundreds take seconds; one
that crashes or hangs is its own measurement and no other's.
"""

import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

SPARE = 1 << 29  # bytes beside twice the file
IMPORTED = (
    "lpips", "pipeline.cli.main", "pipeline.console", "pipeline.work.perceptual_net",
    "rfpp_core.config.build", "rfpp_core.interop.importing", "typer._adapters",
)  # fmt: skip


def command_line(*arguments):
    from pipeline.cli import main

    sys.argv = ["rfpp", *map(str, arguments)]
    main.entry()


def vgg(path):
    from pipeline import console
    from pipeline.work import perceptual_net
    from rfpp_core.config.recipe import Loss

    sys.argv = ["preflight"]
    section = Loss(perceptual="lpips", vgg_path=str(path))
    console.main(lambda: perceptual_net.lpips(section))


def memory_hungry(path):
    _ = bytearray(SPARE + (1 << 28))


FAULTS = {  # by the content of a file
    "crash": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda path: time.sleep(1000),
    "memory": memory_hungry,
    "traceback": lambda path: 1 / 0,
    "two lines": lambda path: sys.exit("rfpp: one\nrfpp: two"),
}
COMMANDS = {
    "import-checkpoint": lambda path: command_line(
        "import-checkpoint", path, path.with_suffix(".out")
    ),
    "sample": lambda path: command_line("sample", "--model", path, "--out", path.parent / "x.png"),
    "vgg_path": vgg,
    "fault": lambda path: FAULTS[path.read_text()](path) if path.stat().st_size else None,
}


def memory(key):
    """Bytes by a key of the kernel's account of this process."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


def measured(command, path, seconds):
    """What became of a command: ``code`` or ``signal``, ``said``, ``seconds``, ``memory``."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as found:
        began = time.monotonic()
        if (process := os.fork()) == 0:
            try:
                _run(command, path, seconds, said.fileno(), found.fileno())
            finally:
                os._exit(1)
        _, status = os.waitpid(process, 0)
        found.seek(0)
        result = json.loads(found.read() or b"{}")
        if os.WIFSIGNALED(status):
            result["signal"] = signal.Signals(os.WTERMSIG(status)).name
        said.seek(0)
        text = said.read(1 << 20).decode(errors="replace")
        return {"file": path.name, "seconds": time.monotonic() - began, "said": text, **result}


def _run(command, path, seconds, said, found):
    os.dup2(said, 1)
    os.dup2(said, 2)
    limit = memory("VmSize") + 2 * path.stat().st_size + 2 * SPARE  # the machine's own safety
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    base, code = memory("VmRSS"), 0
    signal.alarm(seconds)
    try:
        COMMANDS[command](path)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        print(end.code if isinstance(end.code, str) else "", end="")
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(found, json.dumps({"code": code, "memory": memory("VmHWM") - base}).encode())


def main():
    for name in IMPORTED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    gc.freeze()
    command, seconds, *paths = sys.argv[1:]
    for path in paths:
        print(json.dumps(measured(command, Path(path), int(seconds))), flush=True)


if __name__ == "__main__":
    main()
