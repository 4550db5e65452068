"""What stages share: the work root, identities, staging, locks, progress and curves.

A stage that can be interrupted works in ``<root>/.work/<kind>/<identity>/`` and publishes by a
rename.  The root is ``DVC_ROOT`` if the current directory lies under it (so ``dvc exp run --temp``
finds the work of the main tree), else the nearest parent with ``.dvc``.  *Identity* is the digest
of what determines the content and of nothing else.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rfpp_core.errors import UserError
from rfpp_core.storage import files

if TYPE_CHECKING:
    from torch import Tensor

IMAGES = Path("data/images.zarr")
NUMBERS = {  # settings that are numbers: least, most, whether whole
    "RFPP_CHECKPOINT_SECONDS": (0.0, 1e7, False),
    "RFPP_MEMORY": (0.0, 1e6, False),
    "RFPP_PROCESSES": (1.0, 9999.0, True),
    "RFPP_RETRIES": (0.0, 1e3, True),
    "RFPP_RETRY_SECONDS": (0.0, 1e5, False),
    "RFPP_SHARD_TIMEOUT": (0.0, 1e7, False),
    "RFPP_THREADS": (1.0, 9999.0, True),
    "RFPP_WORKERS": (1.0, 9999.0, True),
}
Row = dict[str, Any]  # a line of a CSV
Entry = TypeVar("Entry")


def main(run: Callable[..., None], *names: str) -> None:
    """Runs a stage with the arguments named; a user's mistake is one line and exit code 2."""
    try:
        if len(sys.argv) != 1 + len(names):
            raise UserError(f"usage: python -m pipeline.<stage> {' '.join(names).upper()}")
        if "RFPP_ERRORS" not in os.environ:  # the launcher alone is interrupted
            signal.signal(signal.SIGINT, signal.default_int_handler)
        check_environment()
        library_caches()
        run(*sys.argv[1:])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is done; Ctrl-C now would only deny it
    except UserError as error:
        distrust(error)
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # all processes of a training are interrupted
            _complain("interrupted; run the same command again to go on")
        sys.exit(130)
    except Exception as error:  # safetensors and zarr wrap the OSError in errors of their own
        if lost_another(error):
            _complain(
                f"another process of this training is gone, and says why ({one_line(error)})"
            )
            sys.exit(2)
        if not any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            if hand_over(traceback.format_exc(), 1):
                sys.exit(1)
            raise
        _complain(f"{one_line(error)}; what is whole is kept, free some space and run the same "
                  f"command again to go on")  # fmt: skip
        sys.exit(2)


def one_line(error: object) -> str:
    """Type and message of an error, without what follows the first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def distrust(error: UserError) -> None:
    """Has DVC look into what was found damaged, instead of trusting it for being read-only."""
    for file in getattr(error, "files", ()):
        files.distrust(file)


def _complain(line: str) -> None:
    if not hand_over(f"rfpp: {line}\n", 2):
        print(f"rfpp: {line}", file=sys.stderr, flush=True)


def lost_another(error: Exception) -> bool:
    """Whether a process of a training failed only because another did."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and any(sign in str(error).lower() for sign in ("gloo", "nccl", "connection"))


def hand_over(text: str, code: int) -> bool:
    """Gives an error to the launcher of a training's processes, which prints the first of them;
    False if there is none.  The name of the file says when it was, and the exit code."""
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


def entry(entries: Mapping[str, Entry], name: str, what: str) -> Entry:
    """The entry of a map in the params (``rounds``, ``finetunes``) that a command line names.

    Raises:
        UserError: naming those there are.
    """
    if name not in entries:
        raise UserError(f"there is no {what} {name} in params.yaml ({what}s: "
                        f"{', '.join(entries) or 'none'})")  # fmt: skip
    return entries[name]


def root() -> Path:
    """Where ``.work`` is."""
    here = Path.cwd().resolve()
    if (given := os.environ.get("DVC_ROOT")) and here.is_relative_to(Path(given).resolve()):
        return Path(given).resolve()
    return next((p for p in (here, *here.parents) if (p / ".dvc").is_dir()), here)


def work() -> Path:
    """The work directory, made if need be; caches of libraries go there too unless set."""
    path = root() / ".work"
    path.mkdir(exist_ok=True)
    return path


def library_caches() -> None:
    """Points the caches of matplotlib and torch hub below ``.work`` unless they are set."""
    for name, folder in (("MPLCONFIGDIR", "matplotlib"), ("TORCH_HOME", "torch")):
        os.environ.setdefault(name, str(work() / folder))


def check_builds() -> None:
    """Refuses a torch and a torchvision of different builds before anything is computed."""
    import torch

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise UserError(
            f"torchvision does not fit torch {torch.__version__} ({str(error).splitlines()[0]}); "
            f"install both in one command: pip install torch torchvision"
        ) from None


class Staging:
    """A locked work directory of one identity; use :func:`staging`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def adopted(self) -> list[Any]:
        """What ``rfpp work adopt`` recorded here."""
        file = self.path / "adopted.json"
        return list(json.loads(file.read_text())) if file.exists() else []

    def accepts(self, shard: int, digest: str) -> bool:
        """Whether images made now instead of those kept were adopted.

        An adoption is of the code as it is then: the first digest seen after it is written down.
        """
        notes = self.adopted
        if notes and "now" not in notes[-1]:
            notes[-1] |= {"shard": shard, "now": digest}
            write_json(self.path / "adopted.json", notes)
        return any(note.get("now") == digest for note in notes)


def confirm(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to publish if what was asked for changed while the stage ran."""
    if files.digest(before) != files.digest(now):
        names = ", ".join(sorted(k for k in before if before[k] != now.get(k)))
        raise UserError(f"inputs, params or code changed during the run ({names}; identity "
                        f"{name_of(before)} is now {name_of(now)}); run it again")  # fmt: skip


@contextmanager
def staging(kind: str, document: Mapping[str, Any]) -> Iterator[Staging]:
    """Opens ``.work/<kind>/<identity>`` under an exclusive lock, waiting for a busy one.

    ``document`` is the identity as JSON; it is kept beside the work for people to read.
    """
    path = path_of(kind, document)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(path), f"{kind} {path.name}"):
        path.mkdir(exist_ok=True)
        for left in path.rglob("*.partial"):  # by a run that was killed
            left.unlink(missing_ok=True)
        text = json.dumps(document, indent=1, sort_keys=True)
        files.write_atomic(path / "identity.json", lambda part: part.write_text(text))
        yield Staging(path)


def path_of(kind: str, document: Mapping[str, Any]) -> Path:
    """Where the work of an identity is staged."""
    return work() / kind / name_of(document)


def lock_of(path: Path) -> Path:
    """The lock of a staged directory: beside it, since the directory may be removed or renamed."""
    return path.with_name(f"{path.name}.lock")


def name_of(document: Mapping[str, Any]) -> str:
    """Directory name of an identity."""
    return files.digest(document)[:16]


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds an flock, which the kernel frees however its holder dies; waits for a busy one."""
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            print(f"rfpp: {what} is busy in process {lock.read().strip() or '?'}; waiting for it",
                  file=sys.stderr, flush=True)  # fmt: skip
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def unless_busy(path: Path) -> Iterator[bool]:
    """Whether an flock could be had at once; if so it is held."""
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def publish(source: Path, target: Path) -> None:
    """Links (else copies) a finished file into place by a rename; the source stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*.partial"):
        left.unlink(missing_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.partial")
    files.link(source, part)
    os.replace(part, target)


class State(Protocol):
    """What can be saved while it is trained."""

    step: int

    def tensors(self) -> dict[str, Tensor]: ...

    def about(self) -> dict[str, Any]: ...


class Saver:
    """Saves a training's state, often enough to lose little and seldom enough to cost under 2 %.

    ``RFPP_CHECKPOINT_SECONDS`` fixes the interval; at 0 it is saved every time.  ``more`` gives
    what is saved beside the counters.
    """

    def __init__(self, folder: Path, state: State, more: Callable[[], dict[str, Any]]) -> None:
        self.folder, self.state, self.more = folder, state, more
        given = bool(os.environ.get("RFPP_CHECKPOINT_SECONDS"))
        self.fixed = env_number("RFPP_CHECKPOINT_SECONDS", 0) if given else None
        self.last, self.cost = time.monotonic(), 0.0

    def maybe(self, done: bool) -> None:
        """Saves if it is time, or if this is the end."""
        from rfpp_core.storage import checkpoint

        wait = max(15.0, 50 * self.cost) if self.fixed is None else self.fixed
        start = time.monotonic()
        if not done and start - self.last < wait:
            return
        about = {**self.state.about(), **self.more()}
        checkpoint.save_state(self.folder, self.state.step, self.state.tensors(), about)
        self.last = time.monotonic()
        self.cost = self.last - start


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows that share their keys."""

    def write(part: Path) -> None:
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    files.write_atomic(path, write)


def env_number(name: str, default: float, least: float = 0) -> float:
    """A number from the environment, within its limits (:data:`NUMBERS`, else from ``least``).

    Raises:
        UserError: if it is not one.
    """
    least, most, whole = NUMBERS.get(name, (least, math.inf, False))
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most or (whole and not value.is_integer()):
        raise UserError(f"{name} is {text[:80]!r}; it must be a {'whole ' * whole}number from "
                        f"{least:g} to {most:g}")  # fmt: skip
    return value


def shard_patience() -> tuple[float | None, int]:
    """Seconds that a worker may take (``RFPP_SHARD_TIMEOUT``), and how often it is tried again
    (``RFPP_RETRIES``)."""
    return env_number("RFPP_SHARD_TIMEOUT", 0) or None, int(env_number("RFPP_RETRIES", 3))


def check_environment() -> None:
    """Refuses wrong settings at once, though a later stage would read them.

    Raises:
        UserError: naming the first.
    """
    for name, (least, _, _) in NUMBERS.items():
        env_number(name, least)
    device = os.environ.get("RFPP_DEVICE") or "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", device):
        raise UserError(f"RFPP_DEVICE is {device[:80]!r}; it is cpu, cuda or cuda:<index>")


def write_json(path: Path, document: Any) -> None:
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    files.write_atomic(path, lambda part: part.write_text(text))
