"""DVC stages, the Prefect flow over shards, worker processes and the command line."""

import os
import signal
import sys

# Threads that wait for work must not spin: with other work on the cores they take its time and
# their own.  OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _interrupted(*_: object) -> None:
    os.write(2, b"rfpp: interrupted; run the same command again to resume\n")
    os._exit(130)


# a stage's imports take seconds; `stage.main` takes over after them (RFPP_ERRORS: a launcher does)
if sys.argv[:1] == ["-m"] and "RFPP_ERRORS" not in os.environ:
    signal.signal(signal.SIGINT, _interrupted)
