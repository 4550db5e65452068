"""DVC stages, the Prefect flow over shards, worker processes and the command line."""

import os
import signal
import sys


def _interrupted(*_: object) -> None:
    os.write(2, b"rfpp: interrupted; run the same command again to go on\n")
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # a stage's imports take seconds; `stage.main` takes over after them
    signal.signal(signal.SIGINT, _interrupted)
