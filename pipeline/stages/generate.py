"""Stage ``generate@pairs``: a row of ``pairs`` -> data/<name>.zarr, a Prefect task a shard.

The top level stays light: spawned workers import this module again.
"""

from __future__ import annotations

from pipeline import console
from pipeline.work import pair_job, rows


def run(name: str) -> None:
    from rfpp_core.config import params

    row = rows.named(params.load().pairs, name, "pairs")
    if row.source == "import":
        pair_job.publish_imported(name, row)
    else:
        pair_job.make(lambda: pair_job.job_of(name, params.load()))


if __name__ == "__main__":
    console.main(run, "pairs")
