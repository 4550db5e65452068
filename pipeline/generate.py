"""Stage ``generate@k``: the teacher's noise/image pairs -> data/pairs_k.zarr.

The top level stays light: spawned workers import this module again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pipeline import stage
from rfpp_core.errors import UserError

TOLERATED_SHARE, TOLERATED_LEVELS = 0.01, 1.0  # of pixels, of 255: another model of GPU


def spec_of(k: str) -> Any:
    """The PairSpec of a round, from params and the teacher's file."""
    from pipeline import reflow, training
    from rfpp_core import checkpoint, params
    from rfpp_core.pairs import PairSpec

    config = params.load()
    path, generate = reflow.teacher_path(config, k), config.generate
    digest = training.digest_of_model(path, "dvc repro")
    arch = checkpoint.load(path).about["architecture"]
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
    )


def identity_of(k: str) -> dict[str, Any]:
    document: dict[str, Any] = spec_of(k).identity
    return document


def run(k: str) -> None:
    from pipeline import devices

    devices.quiet_resource_tracker()
    from pipeline import reflow
    from rfpp_core import params
    from rfpp_core.pairs import PairStore

    config = params.load()
    n, teacher = config.generate.n, str(reflow.teacher_path(config, k).resolve())
    spec = spec_of(k)
    with stage.staging("pairs", spec.identity) as work:
        store = PairStore.create(work.path / "pairs.zarr", spec, n)
        kept = [shard for shard in store.committed() if shard * spec.shard < n]
        missing = [shard for shard in store.missing() if shard * spec.shard < n]
        pool = devices.open_pool()
        try:
            if kept:
                check_witness(pool, store, teacher, kept[-1], work)
                print(f"pairs: {len(kept)} of {len(kept) + len(missing)} shards kept")
            if missing:
                from pipeline.shard_flow import make_shards

                make_shards(pool, str(store.path), teacher, missing, spec.shard)
        except BaseException:
            pool.close(kill=True)
            raise
        pool.close()
        work.confirm(partial(identity_of, k))
        PairStore.open(store.path).publish(reflow.pairs_path(k), n)


def check_witness(pool: Any, store: Any, teacher: str, shard: int, work: stage.Staging) -> None:
    """Refuses to mix kept shards with images that the code would make otherwise today."""
    share, levels = pool.call("pipeline.shards:witness", str(store.path), teacher, shard)
    other_device = "cuda" in store.marker(shard).get("device", "")
    limits = (TOLERATED_SHARE, TOLERATED_LEVELS) if other_device else (0.0, 0.0)
    if (share <= limits[0] and levels <= limits[1]) or work.adopted:
        return
    raise UserError(
        f"the code now makes other images than those kept in {work.path} (shard {shard}: "
        f"{share:.1%} of pixels differ, by up to {levels:.0f} levels); `rfpp work clean "
        f"pairs/{work.path.name}` makes them anew, `rfpp work adopt pairs/{work.path.name}` "
        f"keeps them"
    )


if __name__ == "__main__":
    stage.main(run, "round")
