"""Staging: work in progress lies in ``.work/<kind>/<identity>/``, and is published when done.

An *identity* is the digest of all that determines the content, and of nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import artifacts, console, settings, stage_log
from rfpp_core.errors import UserError
from rfpp_core.storage import files

if TYPE_CHECKING:
    from torch import Tensor


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
        """Whether `rfpp work adopt` accepted that the code now makes other images.

        The first digest after an adoption is recorded: it stands for the code as it was then.
        """
        notes = self.adopted
        if notes and "now" not in notes[-1]:
            notes[-1] |= {"shard": shard, "now": digest}
            files.write_json(self.path / "adopted.json", notes)
        return any(note.get("now") == digest for note in notes)


def confirm(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to publish if the request changed while the stage ran."""
    if files.digest(before) != files.digest(now):
        names = ", ".join(sorted(k for k in before if before[k] != now.get(k)))
        raise UserError(f"inputs, params or code changed during the run ({names}; identity "
                        f"{name_of(before)} is now {name_of(now)}); run it again")  # fmt: skip


@contextmanager
def staging(kind: str, document: Mapping[str, Any]) -> Iterator[Staging]:
    """Opens ``.work/<kind>/<identity>`` under an exclusive lock, waiting for a busy one.

    ``document`` is the identity as JSON; it is written beside the work, too.
    """
    path = path_of(kind, document)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(lock_of(path), f"{kind} {path.name}", console.warn):
        stage_log.staged(path.name, path.exists())
        path.mkdir(exist_ok=True)
        for left in path.rglob("*.partial"):  # of a run that was killed
            left.unlink(missing_ok=True)
        text = json.dumps(document, indent=1, sort_keys=True)
        files.write_atomic(path / "identity.json", lambda part: part.write_text(text))
        yield Staging(path)


def path_of(kind: str, document: Mapping[str, Any]) -> Path:
    """Where the work of an identity is staged."""
    return artifacts.work() / kind / name_of(document)


def lock_of(path: Path) -> Path:
    """The lock of a staged directory: beside it, since the directory may be removed or renamed."""
    return path.with_name(f"{path.name}.lock")


def name_of(document: Mapping[str, Any]) -> str:
    """Directory name of an identity."""
    return files.digest(document)[:16]


class State(Protocol):
    """The state of a training."""

    step: int

    def tensors(self) -> dict[str, Tensor]: ...

    def metadata(self) -> dict[str, Any]: ...


class Saver:
    """Saves a training's state every 15 seconds, or less often so that writing takes under 2 % of
    the time.

    The state is copied, and a thread writes the copy while the training goes on; leaving the
    ``with`` block waits for it.  ``RFPP_CHECKPOINT_SECONDS`` fixes the interval; at 0 every call
    saves.  ``more`` gives metadata that is saved with the state's own.
    """

    def __init__(self, folder: Path, state: State, more: Callable[[], dict[str, Any]]) -> None:
        self.folder, self.state, self.more = folder, state, more
        self.fixed = settings.checkpoint_seconds()
        self.last, self.cost = time.monotonic(), 0.0
        self.thread, self.writing = ThreadPoolExecutor(1), Future[None]()
        self.writing.set_result(None)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.thread.shutdown()
        if kind is None:
            self.writing.result()

    def maybe(self, done: bool) -> None:
        """Saves if it is time or the training is done.

        Raises:
            OSError: if the state before could not be written.
        """
        from rfpp_core.storage import checkpoint

        wait = max(15.0, 50 * self.cost) if self.fixed is None else self.fixed
        if not done and time.monotonic() - self.last < wait:
            return
        self.writing.result()
        self.last = time.monotonic()
        tensors = checkpoint.copies(self.state.tensors())
        metadata = {**self.state.metadata(), **self.more()}
        self.writing = self.thread.submit(self._write, self.state.step, tensors, metadata)

    def _write(self, step: int, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        from rfpp_core.storage import checkpoint

        checkpoint.save_state(self.folder, step, tensors, metadata)
        self.cost = time.monotonic() - self.last
