"""The pair store: noise/image pairs in one Zarr v3 group, committed shard by shard.

    zarr.json            the PairSpec: what determines the pairs
    images/              uint8 (n, C, H, W), one file a shard
    labels/              int16 (n,), -1 where there is no label
    noise/               float32 (n, C, H, W), only where noise has no seed (inverted images)
    commits/000000.json  marker of shard 0: digests of its files, content and first noise sample

A shard exists when its marker exists, and a marker implies durable, verified data: the complete
shard is written, synced and digested before its marker is renamed into place.  Zarr reads missing
or empty shards as zeros without an error, so readers go by markers only.  Noise is not stored
where that of pair i is a function of (seed, i).  A larger store begins with the same shards.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from rfpp_core.errors import Corrupted, UserError
from rfpp_core.images.buffers import MEMORY, Buffers, flush
from rfpp_core.pairs import markers
from rfpp_core.pairs.spec import FREE, Pairs, PairSpec, noise_digest
from rfpp_core.storage import files
from rfpp_core.storage.zarr_arrays import check_array, create_array, open_group


class PairStore:
    """A store on disk; open one with :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path, group: zarr.Group, spec: PairSpec) -> None:
        self.path, self.group, self.spec = path, group, spec

    @classmethod
    def create(cls, path: Path, spec: PairSpec, n: int) -> PairStore:
        """Creates a store of n pairs, or opens one of the same spec, which may grow to n.

        Only a store whose last shard is full can grow.

        Raises:
            UserError: if ``path`` holds pairs of another spec.
        """
        if (path / "zarr.json").exists():
            store = cls.open(path)
            if store.spec != spec:
                raise UserError(f"{path} holds other pairs: {store.spec.differences(spec)}")
            if store.n < n and store.n % spec.shard == 0:
                _grow(path, n)
            return cls.open(path)
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path} has no zarr.json")
        building = path.with_name(f".{path.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        group = zarr.open_group(building, mode="w-", zarr_format=3)
        for name, layout in spec.arrays.items():
            create_array(group, name, n, layout)
        group.attrs["rfpp"] = spec.document
        (building / "commits").mkdir()
        for meta in (*building.rglob("zarr.json"), building / "commits", building):
            files.sync(meta)
        building.rename(path)
        files.sync(path.parent)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, check_noise: bool = True) -> PairStore:
        """Opens a store and checks the first noise sample of every committed shard.

        Args:
            path: the store.
            check_noise: False for a worker that was handed a store which its parent opened; of
                thousands of shards each would check all.

        Raises:
            UserError: if it is missing, not a pair store, or its noise is not what this code
                draws from its seed (which would silently pair images with unrelated noise).
        """
        group = open_group(path, "dvc repro")
        try:
            spec = TypeAdapter(PairSpec).validate_python(group.attrs.asdict().get("rfpp"))
        except ValidationError:
            raise UserError(f"{path} is not a pair store of this version") from None
        fixed = {
            f.name: f.default
            for f in fields(PairSpec)
            if f.default is not MISSING and f.name not in FREE
        }
        if wrong := [f"{k} '{getattr(spec, k)}'" for k in fixed if getattr(spec, k) != fixed[k]]:
            raise UserError(f"{path} has {', '.join(wrong)}; this version reads {fixed}")
        n = [check_array(path, group, name, layout) for name, layout in spec.arrays.items()]
        if min(n) < n[0]:  # the images'
            raise UserError(f"{path}: its arrays have {n} entries; the images' must be fewest")
        store = cls(path, group, spec)
        for k in store.committed() if check_noise else ():
            if store.marker(k)["noise_witness"] != spec.noise_digest(k):
                raise UserError(f"{path}: the noise of shard {k} is not that of seed {spec.seed}")
        return store

    @property
    def n(self) -> int:
        """Pairs of the complete store; :meth:`missing` tells what is not there yet."""
        return int(self._images.shape[0])

    @property
    def shards(self) -> int:
        return -(-self.n // self.spec.shard)

    def span(self, shard: int) -> tuple[int, int]:
        """First pair of a shard, and one past its last; the last shard may be short."""
        start = shard * self.spec.shard
        return start, min(start + self.spec.shard, self.n)

    @property
    def _images(self) -> Any:
        return self.group["images"]

    def committed(self) -> list[int]:
        """Shards whose marker exists, ascending."""
        return sorted(k for k in markers.found(self.path) if k < self.shards)

    def missing(self) -> list[int]:
        """Shards still to be generated, ascending."""
        return sorted(set(range(self.shards)) - set(self.committed()))

    def marker(self, shard: int) -> dict[str, Any]:
        """The marker of a committed shard.

        Raises:
            Corrupted: if it is not what was written.
        """
        path = self._marker_path(shard)
        marker = markers.read(path)
        if marker is None:
            raise Corrupted(f"{path} is corrupted; `dvc repro` rebuilds its shard", path)
        return marker

    def commit(
        self, shard: int, pairs: Pairs, first: NDArray[np.float32] | None = None, **metadata: Any
    ) -> None:
        """Writes one shard durably, then its marker; a committed shard is left as it is.

        Args:
            shard: which one.
            pairs: as many as its span, with noise where the store holds it.
            first: the noise (C, H, W) its first image was generated from, where it is seeded.
            **metadata: what to record beside the digests (device, torch version).

        Raises:
            UserError: if readers will draw other noise from the seed.
        """
        witness = self.spec.noise_digest(shard)
        if first is not None and noise_digest(first) != witness:
            raise UserError(
                f"{self.path}: the device that generated shard {shard} draws other noise from "
                f"seed {self.spec.seed} than this CPU, so noise and images would not belong "
                f"together; generate them on another device"
            )
        if self._marker_path(shard).exists():  # by a call that was given up but still ran
            return
        start, stop = self.span(shard)
        paths = self.shard_files(shard)
        for path in paths:  # zarr reads the index of an old shard first, which may be corrupted
            path.unlink(missing_ok=True)
        group = zarr.open_group(self.path, mode="r+", zarr_format=3)
        for name, part in pairs._asdict().items():
            if part is not None:
                array: Any = group[name]
                array[start:stop] = part
        for path in paths:
            files.sync(path)
            for folder in list(path.relative_to(self.path).parents):
                files.sync(self.path / folder)
        marker = {
            **metadata,
            "shard": shard,
            "start": start,
            "stop": stop,
            "files": {str(p.relative_to(self.path)): files.sha256(p) for p in paths},
            "pairs_sha256": pairs.digest,
            "noise_witness": witness,
        }
        markers.write(self._marker_path(shard), marker)

    def read(self, start: int, stop: int) -> Pairs:
        """The pairs [start, stop), all of which must be committed.

        Raises:
            UserError: if a shard of the range is missing or corrupted.
        """
        shards = range(start // self.spec.shard, -(-stop // self.spec.shard))
        if lost := set(shards) - set(self.committed()):
            raise UserError(f"{self.path}: shard {min(lost)} is missing; `dvc repro` generates it")
        arrays: list[Any] = [self.group[name] for name in self._names]
        try:
            found = [array[start:stop] for array in arrays]
        except (ValueError, RuntimeError) as error:
            corrupted = next((k for k in shards if self.corruption(k)), shards[0])
            raise self._corrupted(corrupted, str(error)) from None
        return Pairs(found[0], found[1], found[2] if self.spec.stored else None)

    def each_shard(self) -> Iterator[tuple[int, Pairs]]:
        """Yields (shard, pairs) of every shard in order, with one shard in memory.

        Raises:
            UserError: if a shard is missing, or is not what was committed.
        """
        for k in range(self.shards):
            pairs = self.read(*self.span(k))
            if pairs.digest != self.marker(k)["pairs_sha256"]:
                raise self._corrupted(k, "it is not what was committed")
            yield k, pairs

    def _corrupted(self, k: int, why: str) -> Corrupted:
        """The error of a corrupted shard."""
        line = f"{self.path}: shard {k} is corrupted ({why}); `dvc repro` rebuilds it"
        return Corrupted(line, *self.shard_files(k), self._marker_path(k))

    def read_all(self, buffers: Buffers = MEMORY) -> Pairs:
        """Every pair, each shard checked against its marker; in memory or in files, as
        ``buffers`` says."""
        layout = {
            name: ((self.n, *tail), dtype) for name, (tail, dtype, *_) in self.spec.arrays.items()
        }
        arrays, empty = buffers.arrays(layout)
        if empty:
            for k, pairs in self.each_shard():
                for name, part in pairs._asdict().items():
                    if part is not None:
                        arrays[name][slice(*self.span(k))] = part
            flush(arrays)
        return Pairs(arrays["images"], arrays["labels"], arrays.get("noise"))

    def digest(self, decode: bool = True) -> str:
        """sha256 of spec and decoded content, whatever the codec, and the order in which shards
        were committed.

        Args:
            decode: whether to check the content against the markers, which hold its digests.

        Raises:
            UserError: if a shard is missing or corrupted.
        """
        if lost := self.missing():
            raise UserError(f"{self.path}: shard {lost[0]} is missing; `dvc repro` generates it")
        if decode:
            for _ in self.each_shard():
                pass
        sha = hashlib.sha256(files.canonical(self.spec.content).encode())
        for k in range(self.shards):
            sha.update(self.marker(k)["pairs_sha256"].encode())
        return sha.hexdigest()

    def corruption(self, k: int) -> str | None:
        """What is wrong with a committed shard's files, by their digests; None if nothing is."""
        marker = self.marker(k)
        names = {str(path.relative_to(self.path)) for path in self.shard_files(k)}
        if set(marker["files"]) != names:
            return "its marker names other files"
        for name, digest in marker["files"].items():
            path = self.path / name
            if not path.exists():
                return f"{name} is missing"
            if files.sha256(path) != digest:
                return f"{name} is not what was committed"
        return None

    def forget(self, k: int) -> None:
        """Removes a shard's marker, so that the shard is regenerated."""
        for file in self.shard_files(k):
            files.make_writable(file)
        self._marker_path(k).unlink()
        files.sync(self.path / "commits")

    @property
    def adopted(self) -> list[Any]:
        """What ``rfpp work adopt`` recorded about these pairs."""
        found: Any = self.group.attrs.asdict().get("adopted", [])
        return list(found)

    def publish(self, target: Path, n: int, adopted: Sequence[Any] = ()) -> None:
        """Publishes the first n pairs as a store of their own, which shares files by hard links.

        Args:
            target: path of that store; it appears complete, by a rename, and replaces another.
            n: how many pairs.
            adopted: what ``rfpp work adopt`` recorded about them.

        Raises:
            UserError: if a shard is missing or corrupted.
        """
        building = target.with_name(f".{target.name}.partial")
        shutil.rmtree(building, ignore_errors=True)
        other = PairStore.create(building, self.spec, n)
        if lost := sorted(set(range(other.shards)) - set(self.committed())):
            raise UserError(f"{self.path}: shard {lost[0]} is missing; run `dvc repro` again")
        for k in range(other.shards):
            if wrong := self.corruption(k):
                raise UserError(f"{self.path}: shard {k}: {wrong}; run `dvc repro` again")
            for path in (*self.shard_files(k), self._marker_path(k)):
                files.link(path, building / path.relative_to(self.path))
        if adopted:
            zarr.open_group(building, mode="r+").attrs["adopted"] = list(adopted)
        files.replace_tree(building, target)

    @property
    def _names(self) -> tuple[str, ...]:
        return ("images", "labels", "noise") if self.spec.stored else ("images", "labels")

    def shard_files(self, shard: int) -> tuple[Path, ...]:
        """The files in which Zarr stores a shard: images, labels, and noise if it is stored."""
        zeros = "/0" * len(self.spec.shape)
        return tuple(
            self.path / f"{name}/c/{shard}{'' if name == 'labels' else zeros}"
            for name in self._names
        )

    def _marker_path(self, shard: int) -> Path:
        return self.path / "commits" / f"{shard:06d}.json"


def rebuild_metadata(path: Path, spec: PairSpec, n: int) -> None:
    """Rebuilds a store's metadata, a function of spec and n; shards stay as they are."""
    building = path.with_name(f".{path.name}.rebuilt")
    shutil.rmtree(building, ignore_errors=True)
    fresh = PairStore.create(building, spec, n).path
    for file in fresh.rglob("zarr.json"):
        files.replace(file, path / file.relative_to(fresh))
    (path / "commits").mkdir(exist_ok=True)
    shutil.rmtree(fresh)


def _grow(path: Path, n: int) -> None:
    """Raises the number of pairs in the arrays' metadata; no data moves."""
    names = [name for name in ("noise", "labels", "images") if (path / name).exists()]
    for name in names:  # n is read from images: a kill between the two is harmless
        file = path / name / "zarr.json"
        meta = json.loads(file.read_text())
        meta["shape"][0] = n
        text = json.dumps(meta, indent=2)
        files.write_atomic(file, lambda part, text=text: part.write_text(text))  # type: ignore[misc]
