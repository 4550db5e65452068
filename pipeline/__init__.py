"""DVC stages, the Prefect flow over shards, worker processes and the command line."""

import ctypes
import os
import signal
import sys
from contextlib import suppress

# How long threads of GCC's OpenMP spin when they wait for work, in rounds.  With other work on the
# cores spinning takes its time and their own: a training step of digits takes seven times as long.
# Without any a step takes half as long again on idle cores, since threads are woken for every
# operator.  This many are some microseconds.  OpenMP reads it when torch is imported.
if os.environ.setdefault("OMP_WAIT_POLICY", "passive") == "passive":
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")


# glibc gives freed memory back to the kernel, which clears it anew for the next operator: a sixth
# of a network evaluation of digits.  So up to 256 MB of it are kept, of pieces below 32 MB, unless
# the user says otherwise, or Dask, which does for its workers.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
if not any(name.startswith("MALLOC_") for name in os.environ):
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 256 << 20)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)


def _interrupted(*_: object) -> None:
    os.write(2, b"rfpp: interrupted; run the same command again to resume\n")
    os._exit(130)


# a stage's imports take seconds; `stage.main` takes over after them (RFPP_ERRORS: a launcher does)
if sys.argv[:1] == ["-m"] and "RFPP_ERRORS" not in os.environ:
    signal.signal(signal.SIGINT, _interrupted)
