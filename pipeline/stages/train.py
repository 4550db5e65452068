"""Stage ``train@flow``: a row of ``flows`` -> models/<flow>.safetensors and its loss curve."""

from __future__ import annotations

from pipeline import console
from pipeline.work import rows, training_run
from rfpp_core.config import params


def run(flow: str) -> None:
    config = params.load()
    rows.named(config.flows, flow, "flows")
    if config.recipe_of(flow).steps:
        training_run.run(flow, params.load)
    else:
        training_run.keep(flow, config)


if __name__ == "__main__":
    console.main(run, "flow")
