"""Faults inside worker processes, which Python imports this module into at their start.

``FAULT`` is ``kind:shard:times`` (times 0: always); each time is counted by a file in
``FAULT_HOME``, where every shard that is made and every measurement are logged, too.
"""

import importlib.util
import os
import resource
import signal
import sys
import time
from pathlib import Path

HOME, SPEC = os.environ.get("FAULT_HOME"), os.environ.get("FAULT", "")


def struck(kind: str, shard: int) -> bool:
    wanted, _, rest = SPEC.partition(":")
    if wanted != kind:
        return False
    at, times = (int(part) for part in rest.split(":"))
    if shard != at:
        return False
    count = 0
    while times and count < times:
        try:
            (Path(HOME) / f"struck-{count}").touch(exist_ok=False)
            return True
        except FileExistsError:
            count += 1
    return not times


def guard(make):
    def make_shard(store, teacher, shard):
        with (Path(HOME) / "made").open("a") as log:
            log.write(f"{shard}\n")
        if struck("raise", shard):
            raise RuntimeError("injected")
        if struck("hang", shard):
            time.sleep(600)
        if struck("oom", shard):
            os.kill(os.getpid(), signal.SIGKILL)
        if struck("memory", shard):
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), resource.RLIM_INFINITY))
            bytearray(1 << 26)  # a small shard may fit into what the process holds already
        return make(store, teacher, shard)

    return make_shard


def logged(save):
    def write(self, document, value):
        save(self, document, value)
        with (Path(HOME) / "measured").open("a") as log:
            log.write(f"{self._file(document).name}\n")

    return write


def guard_tasks(module):
    module.make_shard = guard(module.make_shard)


def guard_results(module):
    module.Results.save = logged(module.Results.save)


GUARDS = {"pipeline.workers.tasks": guard_tasks, "pipeline.work.results": guard_results}


class Finder:
    """Guards modules as they are imported."""

    def find_spec(self, name, path=None, target=None):
        if name not in GUARDS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            GUARDS[name](module)

        spec.loader.exec_module = exec_module
        return spec


if HOME:
    sys.meta_path.insert(0, Finder())
