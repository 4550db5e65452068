"""What a stage shows: its exit code, one line for an error, progress bars, image grids."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline import artifacts, settings, stage_log
from rfpp_core.errors import Several, UserError, escaped, quoted
from rfpp_core.storage import files

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

LINE_SECONDS = 30.0  # between two lines of progress in a log
FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))
PARTIAL = re.compile(r"\.([^/]+)\.[0-9]+\.partial$")  # the temporary name of a file


def main(run: Callable[..., None], *names: str) -> None:
    """Runs a stage with the arguments named; a user's mistake is one line and exit code 2."""
    try:
        if len(sys.argv) != 1 + len(names):
            raise UserError(f"usage: python -m pipeline.stages.<stage> {' '.join(names).upper()}")
        if "RFPP_ERRORS" not in os.environ:  # the launcher alone is interrupted
            signal.signal(signal.SIGINT, signal.default_int_handler)
        settings.check()
        artifacts.library_caches()
        with stage_log.timed(*sys.argv[1:]):
            run(*sys.argv[1:])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is done, and Ctrl-C would say otherwise
    except UserError as error:
        make_writable(error)
        _complain(told(error))
        sys.exit(2)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # all processes of a training are interrupted
            _complain("interrupted; run the same command again to resume")
        sys.exit(130)
    except Exception as error:  # safetensors and zarr wrap the OSError in errors of their own
        if lost_another(error):
            _complain(f"another process of this training is gone and says why ({one_line(error)})")
            sys.exit(2)
        line = refusal(error)
        if line is None:
            if hand_over(traceback.format_exc(), 1):
                sys.exit(1)
            raise
        if any(full in line for full in FULL):
            line += "; free some space and run the same command again to resume"
        _complain(line)
        sys.exit(2)


def warn(text: str) -> None:
    """Prints a line to stderr."""
    print(f"rfpp: {escaped(text)}", file=sys.stderr, flush=True)


def complain(error: UserError) -> None:
    """Prints a user's mistake, on one line unless there are :class:`Several`."""
    make_writable(error)
    print(f"rfpp: {told(error)}", file=sys.stderr, flush=True)


def told(error: UserError) -> str:
    """The text of a user's mistake; names of files in it do nothing to a terminal."""
    return "\n".join(map(escaped, error.lines if isinstance(error, Several) else [str(error)]))


def one_line(error: object) -> str:
    """Type and message of an error, without what follows the first line."""
    return quoted(f"{type(error).__name__}: {error}".splitlines()[0], 400)


def refusal(error: Exception) -> str | None:
    """One line about a file that the operating system refuses, also if a library has wrapped its
    error; None for any other error."""
    if not isinstance(error, OSError):
        wrapped = re.search(r"\(os error [0-9]+\)", str(error))
        return one_line(error) if wrapped or any(full in str(error) for full in FULL) else None
    name = error.filename2 or error.filename  # of a rename, the target
    if name is None:
        return one_line(error)
    name = PARTIAL.sub(r"\1", os.fsdecode(name) if isinstance(name, bytes) else str(name))
    in_the_way = isinstance(error, FileExistsError) and not os.path.isdir(name)
    why = os.strerror(errno.ENOTDIR) if in_the_way else error.strerror
    return f"{quoted(name)} cannot be used: {why}"


def make_writable(error: UserError) -> None:
    """Makes corrupted files writable, so that DVC checks them; it trusts read-only ones."""
    for file in getattr(error, "files", ()):
        files.make_writable(file)


def _complain(text: str) -> None:
    """Prints what :func:`told` or :func:`refusal` say, or has the launcher print it."""
    if not hand_over(f"rfpp: {text}\n", 2):
        print(f"rfpp: {text}", file=sys.stderr, flush=True)


def lost_another(error: Exception) -> bool:
    """Whether a process of a training failed only because another one did."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and any(sign in str(error).lower() for sign in ("gloo", "nccl", "connection"))


def hand_over(text: str, code: int) -> bool:
    """Passes an error to the launcher of a training's processes, which prints the first one;
    False if there is no launcher.  The file's name is the time and the exit code."""
    folder = os.environ.get("RFPP_ERRORS")
    if folder is None:
        return False
    name = f"{time.monotonic_ns():020d}-{code}"
    try:
        part = Path(folder, f"{name}.partial")
        part.write_text(text)
        part.rename(Path(folder, name))
    except OSError:
        return False
    return True


class _Lines:
    """Prints each state of a bar on its own line, for logs."""

    def write(self, text: str) -> int:
        if line := text.strip("\r\n "):
            sys.stderr.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def bar(what: str, total: int, unit: str, done: int = 0, quiet: bool = False) -> tqdm[Any]:
    """A progress bar in a terminal; in a log a line every 30 seconds, after the first 30.

    Args:
        what: name of the bar.
        total: number of units.
        unit: such as img.
        done: units done by the run that this one resumes.
        quiet: show nothing (in all but the first of several processes).
    """
    terminal = sys.stderr.isatty()
    seconds = 1.0 if terminal else LINE_SECONDS
    return tqdm(
        desc=what, total=total, initial=done, unit=unit, unit_scale=total > 9999, disable=quiet,
        file=sys.stderr if terminal else _Lines(), leave=terminal, ncols=None if terminal else 100,
        mininterval=seconds, maxinterval=seconds, delay=0 if terminal else LINE_SECONDS,
    )  # fmt: skip


def save_grid(images: Tensor, path: Path, columns: int, side: int = 32) -> None:
    """Writes float images (N, C, H, W) in [-1, 1] as one PNG, enlarged to about ``side`` px."""
    from PIL import Image
    from torchvision.utils import make_grid

    from rfpp_core.images import pixels

    scale = max(1, side // images.shape[-1])
    big = pixels.to_uint8(images.cpu()).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(big, columns, padding=2, pad_value=128)
    image = Image.fromarray(grid.permute(1, 2, 0).numpy())
    files.write_atomic(path, lambda part: image.save(part, "PNG"))


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays by name as one .npz."""
    import numpy as np

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    files.write_atomic(path, write)
