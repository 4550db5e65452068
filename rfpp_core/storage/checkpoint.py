"""Files that hold weights: models and training states, all safetensors, nothing executable.

A model file holds EMA weights and one metadata key, ``rfpp``: canonical JSON of architecture,
preconditioning, params and provenance, and a sha256 of that and of the tensors, which every read
verifies.  No time, host or path is in it, so equal runs give equal bytes.  One file is enough to
sample.

A training state is ``state-<step>.safetensors`` and a marker ``state-<step>.json``, written after
it, with its sha256: a state exists when its marker does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rfpp_core.errors import Corrupted, UserError, quoted
from rfpp_core.storage import files

KEY, DIGEST = "rfpp", "sha256"
# Far beyond any network, yet too little for a hostile file to do harm.
LONGEST_HEADER, MOST_TENSORS, MOST_AXES, MOST_VALUES = 1 << 24, 1 << 15, 8, 1 << 20


class Loaded(NamedTuple):
    """Tensors by name, the metadata document of a file, and the digest of its tensors."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    weights: str


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON document to one safetensors file, atomically and durably."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    meta = metadata_of(plain, metadata)
    files.write_atomic(path, lambda part: save_file(plain, part, metadata=meta))


def metadata_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a file of these tensors and this document."""
    sha256 = files.digest([metadata, digest(tensors)])
    return {KEY: files.canonical({**metadata, DIGEST: sha256})}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of tensors: their names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{t.dtype}{tuple(t.shape)}".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def load(path: Path, made_by: str = "dvc repro") -> Loaded:
    """Reads a file written by :func:`save`.

    Raises:
        Corrupted: if it is not what was written.
        UserError: if it is missing or not one of this project's.
    """
    try:
        with opened(path) as file:
            metadata, stated = _document(file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weights = digest(tensors)
        intact = stated == files.digest([metadata, weights])
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `{made_by}` makes it") from None
    except UserError as error:
        raise Corrupted(f"{path} {error}", path) from None
    except MemoryError:
        raise
    except Exception as error:  # a hostile file chooses what it provokes in safetensors and torch
        raise Corrupted(f"{path} is not a readable safetensors file: {quoted(error, 400)}",
                        path) from None  # fmt: skip
    if metadata is None:
        raise UserError(f"{path} was not written by this project (no '{KEY}' metadata)")
    if stated is None:
        raise UserError(f"{path} was written by an earlier version; `rfpp import-checkpoint` "
                        f"converts a model, `{made_by}` writes a new one")  # fmt: skip
    if not intact:
        raise Corrupted(f"{path} is corrupted: it is not what was written; `{made_by}` rebuilds "
                        f"it", path)  # fmt: skip
    return Loaded(tensors, metadata, weights)


def opened(path: Path) -> Any:
    """An open safetensors file, if its header is no larger than a network's.

    Raises:
        UserError: what is too large, without the path.
    """
    with path.open("rb") as start:
        head = start.read(9)
    size = int.from_bytes(head[:8], "little")
    if head[8:] == b"{" and LONGEST_HEADER < size < path.stat().st_size:
        raise UserError(f"has a header of {size:,} bytes; at most {LONGEST_HEADER:,} are read, "
                        f"which is far more than a network needs")  # fmt: skip
    file: Any = safe_open(path, framework="pt")
    names = file.keys()
    if len(names) > MOST_TENSORS:
        raise UserError(f"holds {len(names):,} tensors; at most {MOST_TENSORS:,} are read, which "
                        f"is far more than a network needs")  # fmt: skip
    for name in names:
        if (axes := len(file.get_slice(name).get_shape())) > MOST_AXES:
            raise UserError(f"holds a tensor of {axes:,} axes; at most {MOST_AXES} are read")
    return file


def _document(file: Any) -> tuple[dict[str, Any] | None, Any]:
    """The document of an open safetensors file, or None, and the digest that it states."""
    text = (file.metadata() or {}).get(KEY, "null")
    if (values := sum(map(text.count, "[{,"))) > MOST_VALUES:  # each takes up to 200 bytes
        raise UserError(f"has metadata of {values:,} values; at most {MOST_VALUES:,} are read")
    metadata = json.loads(text)
    if not isinstance(metadata, dict):
        return None, None
    stated = metadata.pop(DIGEST, None)
    return metadata, stated


def stated_metadata(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The document of a safetensors file of this project; empty for another's.

    Raises:
        Corrupted: if it states a digest, and that is not the tensors' and its own.
    """
    try:
        with opened(path) as file:
            metadata, stated = _document(file)
        if metadata is None:
            return {}
        intact = stated in (None, files.digest([metadata, digest(tensors)]))
    except UserError as error:
        raise Corrupted(f"{path} {error}", path) from None
    except (ValueError, RecursionError):
        intact, metadata = False, {}
    if not intact:
        raise Corrupted(f"{path} is corrupted: it is not what was written", path)
    return metadata


def load_into(
    module: nn.Module, tensors: Mapping[str, Tensor], where: str, assign: bool = False
) -> None:
    """Loads weights whose names, shapes and types must be exactly the module's; ``assign`` makes
    them its own instead of copying.

    A module that extends another has a ``from_flow``, which gives the weights of the other its own
    names and adds the new ones; a model file (``assign``) must hold them all.

    Raises:
        UserError: with the list of differences.
    """
    adapt = getattr(module, "from_flow", None)
    if adapt and not assign:
        tensors = adapt(tensors)
    own = module.state_dict()
    want = {name: tuple(t.shape) for name, t in own.items()}
    check_fit(want, {name: tuple(t.shape) for name, t in tensors.items()}, where)
    if wrong := [name for name in own if tensors[name].dtype != own[name].dtype]:
        name = wrong[0]
        raise UserError(f"{where} does not fit the network: {name} is of {tensors[name].dtype}, "
                        f"not {own[name].dtype}")  # fmt: skip
    module.load_state_dict(dict(tensors), assign=assign)


def check_fit(
    want: Mapping[str, tuple[int, ...]], have: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Compares names and shapes of a network with those of a file.

    Raises:
        UserError: with the list of differences.
    """
    wrong = [f"{name} missing" for name in want.keys() - have.keys()]
    wrong += [f"{quoted(name)} unknown" for name in have.keys() - want.keys()]
    wrong += [f"{name} is {have[name]}, not {want[name]}" for name in want.keys() & have.keys()
              if have[name] != want[name]]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{where} does not fit the network: {'; '.join(sorted(wrong)[:5])}{more}")


class Ordered(Mapping[str, Tensor]):
    """Tensors by name in a given order and type, each converted on access."""

    def __init__(
        self, tensors: Mapping[str, Tensor], names: Sequence[str], dtype: torch.dtype
    ) -> None:
        self.tensors, self.names, self.dtype = tensors, names, dtype

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def save_state(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    keep: int = 2,
) -> None:
    """Writes the training state of a step and its marker; keeps the newest ``keep`` up to it.

    States of later steps, from a longer training, stay.
    """
    path = folder / f"state-{step:09d}.safetensors"
    save(path, tensors, metadata)
    marker = files.canonical({"sha256": files.sha256(path), "step": step})
    files.write_atomic(path.with_suffix(".json"), lambda part: part.write_text(marker))
    until = [p for p in sorted(folder.glob("state-*.safetensors")) if p.stem <= path.stem]
    for old in until[:-keep]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink()


def load_state(
    folder: Path, at_most: int, say: Callable[[str], None] = lambda _: None
) -> Loaded | None:
    """The newest complete training state of at most ``at_most`` steps, or None; says which
    corrupted ones it skipped."""
    for marker in sorted(folder.glob("state-*.json"), reverse=True):
        name = re.fullmatch(r"state-(\d+)", marker.stem)
        if name is None or (step := int(name[1])) > at_most:
            continue
        path = marker.with_suffix(".safetensors")
        try:
            if json.loads(marker.read_text())["sha256"] != files.sha256(path):
                raise ValueError("it is not what its marker says")
            return load(path)
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            say(f"the state of step {step} is corrupted and skipped ({quoted(error, 400)})")
    return None


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, which may be written while the tensors change."""
    layout = torch.contiguous_format  # as files have it
    return {name: t.detach().to("cpu", copy=True, memory_format=layout)
            for name, t in tensors.items()}  # fmt: skip


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same tensors on a device."""
    return {name: t.to(device) for name, t in tensors.items()}
