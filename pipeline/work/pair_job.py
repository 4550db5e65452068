"""A set of pairs, a row of ``pairs``: made shard by shard, resumable, published.

A teacher draws images from noise, or inverts real images to noise (configuration G of RF++, arXiv
2405.20320), or translates those of its source domain; or the store was imported.  The top level
imports neither torch nor Zarr, since spawned workers import this module, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import artifacts, settings
from pipeline.work import workdir
from rfpp_core.errors import UserError

if TYPE_CHECKING:
    from pipeline.workers.pool import Pool
    from pipeline.workers.tasks import Made, Regenerated
    from rfpp_core.config.pairs import PairSet
    from rfpp_core.config.params import Params
    from rfpp_core.pairs.spec import PairSpec
    from rfpp_core.pairs.store import PairStore

KIND = "pairs"  # of staged work
TASK = "pipeline.workers.tasks:make_shard"
TOLERATED_SHARE, TOLERATED_LEVELS = 0.01, 1.0  # of pixels, of 255: another model of GPU
TOLERATED_NOISE = 64.0  # 255ths: inversion magnifies another machine's last bits


class PairJob(NamedTuple):
    """A set of pairs to make: what determines them, how many, the target."""

    spec: PairSpec
    n: int
    arguments: tuple[str, ...]  # of the workers' task, (store, *arguments, shard)
    target: Path

    def request(self) -> dict[str, Any]:
        """The identity and n: all that DVC will record with the result."""
        return {**self.spec.identity, "n": self.n}


def job_of(name: str, config: Params) -> PairJob:
    """The job of a row of ``pairs``, from params and the teacher's file."""
    from pipeline.work.training_data import check_fit, read_model
    from rfpp_core.images import store as image_store
    from rfpp_core.pairs.spec import PairSpec

    row = config.pairs[name]
    teacher = artifacts.model(row.teacher)
    digest, metadata = read_model(teacher)
    arch, real_ones = metadata["architecture"], row.source in ("images", "domain")
    domain = domain_of(name, row, metadata)
    real = image_store.metadata(artifacts.IMAGES)
    check_fit(artifacts.IMAGES, real["shape"], None, teacher, arch)
    spec = PairSpec(
        teacher=digest,
        solver=row.solver,
        nfe=row.nfe,
        grid=row.grid,
        guidance=row.guidance,
        classes=arch["classes"],
        seed=0 if real_ones else config.seed,
        shape=tuple(arch["shape"]),
        micro_batch=row.micro_batch,
        shard=row.shard,
        start=metadata.get("start", 1.0),
        source=real["digest"] if real_ones else "",
        noise_kind="stored" if real_ones else "seeded",
        precision=row.precision,
        compile=row.compile,
        codec=row.codec,
        domain=",".join(map(str, domain)),
    )
    path, target = str(teacher.resolve()), artifacts.pairs(name)
    if not real_ones:
        assert row.n is not None
        return PairJob(spec, row.n, (path,), target)
    n = image_store.count(artifacts.IMAGES, "train")
    if domain:
        n = len(image_store.rows_of(artifacts.IMAGES, "train", domain))
    return PairJob(spec, n, (path, str(artifacts.IMAGES.resolve())), target)


def domain_of(name: str, row: PairSet, teacher: Mapping[str, Any]) -> tuple[int, ...]:
    """Labels of the images that a row translates, of its teacher's metadata; empty for another.

    Raises:
        UserError: if the teacher's file is of another kind than the row.
    """
    domains = teacher.get("domains")
    if (row.source == "domain") != bool(domains):
        raise UserError(f"{artifacts.model(row.teacher)} "
                        f"{'translates images' if domains else 'starts from noise'}, and pairs."
                        f"{name}.source is {row.source}; run `dvc repro train@"
                        f"{row.teacher}`")  # fmt: skip
    return tuple(domains["source"]) if domains else ()


def publish_imported(name: str, row: PairSet) -> None:
    """Publishes an imported store as a row of ``pairs``, sharing its files."""
    store, target = imported(name, row), artifacts.pairs(name)
    target.parent.mkdir(exist_ok=True)
    store.publish(target, store.n)
    print(f"{name}: {store.n} pairs of {row.path}")


def imported(name: str, row: PairSet) -> PairStore:
    """The store of a row with ``source: import``.

    Raises:
        UserError: if it is missing or incomplete, or has another digest.
    """
    from rfpp_core.pairs.store import PairStore

    store = PairStore.open(artifacts.located(row.path or ""))
    if (found := store.digest(decode=False)) != row.digest:
        raise UserError(f"{row.path} has digest {found}, not {row.digest} "
                        f"(pairs.{name}.digest)")  # fmt: skip
    return store


def make(read_job: Callable[[], PairJob]) -> None:
    """Makes the missing shards of a job and publishes the set; the job is read again before.

    Raises:
        UserError: if shards fail, if the code now makes other pairs than those committed, or if
            the job changed meanwhile.
    """
    from pipeline.workers import pool as workers

    workers.quiet_resource_tracker()
    from rfpp_core.pairs.store import PairStore
    from rfpp_core.storage.zarr_arrays import check_shard

    given = read_job()
    check_shard(given.spec.shape, given.spec.shard)
    with workdir.staging(KIND, given.spec.identity) as work:
        began = time.monotonic()
        store = _staged_store(work, given)
        checked = time.monotonic()
        made = _fill(store, given, work)
        workdir.confirm(given.request(), read_job().request())
        filled = time.monotonic()
        PairStore.open(store.path).publish(given.target, given.n, work.adopted)
        if made:
            writing = checked - began + time.monotonic() - filled + sum(m.writing for m in made)
            computing = sum(m.computing for m in made)
            print(f"pairs: {len(made)} shards made, {computing / len(made):.1f} s a shard; "
                  f"writing, fsync, digests, markers and their checks took {writing:.2f} s "
                  f"({writing / computing:.1%} of that)")  # fmt: skip


def _staged_store(work: workdir.Staging, given: PairJob) -> PairStore:
    """The staged store, without shards that are corrupted."""
    from rfpp_core.pairs import markers
    from rfpp_core.pairs import store as pair_store

    path = work.path / "pairs.zarr"
    for shard in markers.drop_bad(path):
        print(f"pairs: shard {shard} is regenerated: its marker is corrupted")
    try:
        store = pair_store.PairStore.create(path, given.spec, given.n)
    except UserError as error:
        print(f"pairs: the metadata is written again: {error}")
        pair_store.rebuild_metadata(path, given.spec, given.n)
        store = pair_store.PairStore.create(path, given.spec, given.n)
    drop_corrupted(store)
    return store


def _fill(store: PairStore, given: PairJob, work: workdir.Staging) -> list[Made]:
    """Makes the missing shards; how long each took."""
    from pipeline.workers import pool as workers

    wanted = range(-(-given.n // given.spec.shard))
    there = [shard for shard in store.committed() if shard in wanted]
    missing = [shard for shard in store.missing() if shard in wanted]
    pool, made = workers.open_pool(), []
    try:
        if there:
            check_regenerated(pool, store, given.arguments, there[-1], work)
            print(f"pairs: {len(there)} of {len(there) + len(missing)} shards are there")
        if missing:
            from pipeline.workers.prefect_flow import make_shards

            call = (TASK, str(store.path), *given.arguments)
            made = make_shards(pool, call, missing, given.spec.shard)
    except BaseException:
        pool.close(kill=True)
        raise
    pool.close()
    return made


def drop_corrupted(store: PairStore) -> None:
    """Drops shards whose files are not what was committed, so that they are regenerated."""
    for shard in store.committed():
        if wrong := store.corruption(shard):
            print(f"pairs: shard {shard} is regenerated: {wrong}")
            store.forget(shard)


def check_regenerated(
    pool: Pool, store: PairStore, arguments: Sequence[str], shard: int, work: workdir.Staging
) -> None:
    """Refuses to add shards to those committed if the code would now make other images.

    Another machine may round a few pixels differently.  Other images that ``rfpp work adopt``
    accepted are known by the digest of this micro-batch.
    """
    found = _regenerate(pool, str(store.path), *arguments, shard)
    most = TOLERATED_NOISE if store.spec.inverts else TOLERATED_LEVELS
    share, levels = (0.0, 0.0) if found.same_machine else (TOLERATED_SHARE, most)
    if (found.share <= share and found.levels <= levels) or work.accepts(shard, found.digest):
        return
    raise UserError(
        f"the code now makes other images than those in {work.path} (shard {shard}: "
        f"{found.share:.1%} of pixels differ, by up to {found.levels:.0f} levels); `rfpp work "
        f"clean pairs/{work.path.name}` drops them, `rfpp work adopt pairs/"
        f"{work.path.name}` accepts them"
    )


def _regenerate(pool: Pool, *arguments: str | int) -> Regenerated:
    """The regeneration check, repeated on another worker if one dies or hangs."""
    from pipeline.workers.pool import WorkerDied

    timeout, left = settings.shard_timeout(), settings.retries()
    while True:
        try:
            found: Regenerated = pool.call(
                "pipeline.workers.tasks:regenerate", *arguments, timeout=timeout
            )
            return found
        except (WorkerDied, MemoryError) as error:
            if not left:
                raise UserError(f"the committed shards could not be checked: {error}; run "
                                f"again") from None  # fmt: skip
            left -= 1
