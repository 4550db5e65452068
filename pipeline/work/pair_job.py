"""Stage ``generate@k``: the teacher's noise/image pairs -> data/pairs_k.zarr.

The top level stays light: spawned workers import this module again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.work import workdir
from rfpp_core.errors import UserError

if TYPE_CHECKING:
    from pipeline.workers.pool import Pool
    from pipeline.workers.tasks import Made, Witness
    from rfpp_core.config.params import Generate
    from rfpp_core.pairs.spec import PairSpec
    from rfpp_core.pairs.store import PairStore

TOLERATED_SHARE, TOLERATED_LEVELS = 0.01, 1.0  # of pixels, of 255: another model of GPU
TOLERATED_NOISE = 64.0  # 255ths: inversion magnifies another machine's last bits


def spec_of(k: str) -> PairSpec:
    """The PairSpec of a round, from params and the teacher's file."""
    from pipeline.stages import reflow
    from pipeline.work import training_job
    from rfpp_core.config import params
    from rfpp_core.pairs.spec import PairSpec

    config = params.load()
    path, generate = reflow.teacher_path(config, k), config.generate
    digest, about = training_job.read_model(path)
    arch = about["architecture"]
    return PairSpec(
        teacher=digest,
        solver=generate.solver,
        nfe=generate.nfe,
        grid=generate.grid,
        guidance=generate.guidance,
        classes=arch["classes"],
        seed=config.seed,
        shape=tuple(arch["shape"]),
        micro_batch=generate.micro_batch,
        shard=generate.shard,
        start=about.get("start", 1.0),
    )


class Order(NamedTuple):
    """A set of pairs to be made: what determines them, how many, by which task of which workers,
    and where they go."""

    spec: PairSpec
    n: int
    task: str  # "module:function" of (store, *arguments, shard)
    arguments: tuple[str, ...]
    target: Path

    def request(self) -> dict[str, Any]:
        """The identity and n: all that DVC will record with the result."""
        return {**self.spec.identity, "n": self.n}


def order(k: str) -> Order:
    """The pairs of a round."""
    from pipeline.stages import reflow
    from rfpp_core.config import params

    config = params.load()
    teacher = str(reflow.teacher_path(config, k).resolve())
    return Order(
        spec_of(k),
        config.generate.n,
        "pipeline.workers.tasks:make_shard",
        (teacher,),
        reflow.pairs_path(k),
    )


def run(k: str) -> None:
    from rfpp_core.config import params

    section = params.load().generate
    if section.source == "import":
        take_in(k, section)
    else:
        make(lambda: order(k))


def take_in(k: str, section: Generate) -> None:
    """Publishes an imported store as the pairs of a round, sharing its files."""
    from pipeline.stages import reflow

    store, target = imported(section), reflow.pairs_path(k)
    target.parent.mkdir(exist_ok=True)
    store.publish(target, store.n)
    print(f"pairs: {store.n} of {section.path}")


def imported(section: Generate) -> PairStore:
    """The store that ``source: import`` names, whole.

    Raises:
        UserError: if it is missing, incomplete or another.
    """
    from rfpp_core.pairs.store import PairStore

    store = PairStore.open(Path(section.path or ""))
    if (found := store.digest(decode=False)) != section.digest:
        raise UserError(f"{section.path} has digest {found}, not {section.digest} "
                        f"(generate.digest)")  # fmt: skip
    return store


def make(ask: Callable[[], Order]) -> None:
    """Makes the missing shards of an order, which is asked for again before publishing.

    Raises:
        UserError: if shards fail, if the code would make other pairs than those kept, or if what
            was asked for changed meanwhile.
    """
    from pipeline.workers import pool as workers

    workers.quiet_resource_tracker()
    from rfpp_core.pairs.store import PairStore
    from rfpp_core.storage.zarr_arrays import check_shard

    given = ask()
    check_shard(given.spec.shape, given.spec.shard)
    with workdir.staging("pairs", given.spec.identity) as work:
        began = time.monotonic()
        store = _take_up(work, given)
        checked = time.monotonic()
        made = _fill(store, given, work)
        workdir.confirm(given.request(), ask().request())
        filled = time.monotonic()
        PairStore.open(store.path).publish(given.target, given.n, work.adopted)
        if made:
            keeping = checked - began + time.monotonic() - filled + sum(m.keeping for m in made)
            computing = sum(m.computing for m in made)
            print(f"pairs: {len(made)} shards made, {computing / len(made):.1f} s a shard; "
                  f"writing, fsync, digests, markers and their checks took {keeping:.2f} s "
                  f"({keeping / computing:.1%} of that)")  # fmt: skip


def _take_up(work: workdir.Staging, given: Order) -> PairStore:
    """The staged store, without what is damaged."""
    from rfpp_core.pairs import markers
    from rfpp_core.pairs import store as pair_store

    path = work.path / "pairs.zarr"
    for shard in markers.drop_bad(path):
        print(f"pairs: shard {shard} is made again: its marker is damaged")
    try:
        store = pair_store.PairStore.create(path, given.spec, given.n)
    except UserError as error:
        print(f"pairs: the metadata is written again: {error}")
        pair_store.mend(path, given.spec, given.n)
        store = pair_store.PairStore.create(path, given.spec, given.n)
    drop_damaged(store)
    return store


def _fill(store: PairStore, given: Order, work: workdir.Staging) -> list[Made]:
    """Makes the missing shards; what became of each."""
    from pipeline.workers import pool as workers

    wanted = range(-(-given.n // given.spec.shard))
    kept = [shard for shard in store.committed() if shard in wanted]
    missing = [shard for shard in store.missing() if shard in wanted]
    pool, made = workers.open_pool(), []
    try:
        if kept:
            check_witness(pool, store, given.arguments, kept[-1], work)
            print(f"pairs: {len(kept)} of {len(kept) + len(missing)} shards kept")
        if missing:
            from pipeline.workers.prefect_flow import make_shards

            call = (given.task, str(store.path), *given.arguments)
            made = make_shards(pool, call, missing, given.spec.shard)
    except BaseException:
        pool.close(kill=True)
        raise
    pool.close()
    return made


def drop_damaged(store: PairStore) -> None:
    """Forgets kept shards whose files are not what was committed; they are made again."""
    for shard in store.committed():
        if wrong := store.damage(shard):
            print(f"pairs: shard {shard} is made again: {wrong}")
            store.forget(shard)


def check_witness(
    pool: Pool, store: PairStore, arguments: Sequence[str], shard: int, work: workdir.Staging
) -> None:
    """Refuses to mix kept shards with images that the code would make otherwise today.

    Another machine may round a pixel otherwise; other images that ``rfpp work adopt`` accepted
    are known by the digest of this micro-batch.
    """
    found = _made_again(pool, str(store.path), *arguments, shard)
    most = TOLERATED_NOISE if store.spec.stored else TOLERATED_LEVELS
    share, levels = (0.0, 0.0) if found.same_machine else (TOLERATED_SHARE, most)
    if (found.share <= share and found.levels <= levels) or work.accepts(shard, found.digest):
        return
    raise UserError(
        f"the code now makes other images than those kept in {work.path} (shard {shard}: "
        f"{found.share:.1%} of pixels differ, by up to {found.levels:.0f} levels); `rfpp work "
        f"clean pairs/{work.path.name}` makes them anew, `rfpp work adopt pairs/"
        f"{work.path.name}` keeps them"
    )


def _made_again(pool: Pool, *arguments: str | int) -> Witness:
    """The witness; by another worker if one dies or hangs."""
    from pipeline.workers.pool import WorkerDied

    timeout, left = workdir.shard_patience()
    while True:
        try:
            found: Witness = pool.call(
                "pipeline.workers.tasks:witness", *arguments, timeout=timeout
            )
            return found
        except (WorkerDied, MemoryError) as error:
            if not left:
                raise UserError(f"what is kept could not be checked: {error}; run again") from None
            left -= 1


if __name__ == "__main__":
    workdir.main(run, "round")
