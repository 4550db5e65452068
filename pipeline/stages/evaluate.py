"""Stage ``evaluate@flow``: one flow against the real images.

models/<flow>.safetensors -> metrics/<flow>.json (means, for ``dvc exp show``),
curves/distance/<flow>.csv (every number with its standard deviation) and samples/<flow>/*.png,
with samples/<flow>/grid.json where ``evaluate.grid_search`` asks for it.
"""

from __future__ import annotations

from typing import Any

from pipeline import artifacts, console
from pipeline.work import domain_job, evaluation_job, grid_job, pictures, rows, workdir
from pipeline.work.feature_nets import Reference
from pipeline.work.results import Results
from pipeline.work.training_data import check_fit
from pipeline.workers.drawing import everywhere
from rfpp_core import runtime
from rfpp_core.config import build, params
from rfpp_core.config.params import Params
from rfpp_core.evaluation import network_size
from rfpp_core.images import store as image_store
from rfpp_core.storage import files


def request(config: Params, name: str) -> dict[str, Any]:
    """All that DVC will record with the result."""
    inputs = (artifacts.model(name), artifacts.FEATURES, artifacts.REFERENCE)
    return {
        **config.model_dump(mode="json", include={"seed", "features", "evaluate"}),
        "row": rows.named(config.flows, name, "flows").model_dump(mode="json"),
        "images": image_store.metadata(artifacts.IMAGES)["digest"],
        "files": {str(path): files.sha256(path) for path in inputs if path.exists()},
    }


@runtime.enough_memory("free the device or set RFPP_DEVICE=cpu")
def run(name: str) -> None:
    config = params.load()
    rows.named(config.flows, name, "flows")
    device = runtime.device()
    requested = request(config, name)
    runtime.exact()
    real = Reference(config.features)
    flow = build.load_flow(artifacts.model(name), device)
    real_images = image_store.metadata(artifacts.IMAGES)
    images, architecture = real_images["digest"], flow.metadata["architecture"]
    check_fit(artifacts.IMAGES, real_images["shape"], None, artifacts.model(name), architecture)
    flow, real, held_out, used = domain_job.evaluated(name, flow, real, config)
    row = used.flows[name]
    drawing = everywhere(flow, artifacts.model(name))
    with workdir.staging(evaluation_job.KIND, {"flow": flow.digest}) as work, drawing as draw:
        found = Results(work.path)
        grids = grid_job.own(flow, used.evaluate, used.seed, found)
        more = grid_job.samplers(grids, used.evaluate, row)
        table = evaluation_job.table(flow, real, used, row, found, name, more, draw)
        errors = grid_job.add_errors(table, flow, grids, used.evaluate, row, found)
        properties = evaluation_job.properties(flow, used, found, held_out, images)
        properties |= evaluation_job.pairing(flow, used, found)
    workdir.confirm(requested, request(params.load(), name))
    files.write_csv(artifacts.table(name), table)
    provenance = flow.metadata["provenance"]
    files.write_json(artifacts.metrics(name), {
        **evaluation_job.primary_metrics(real, table),
        **properties,
        **errors,
        "parameters": network_size.parameters(flow.field),
        "macs": network_size.macs(flow.field, flow.shape),
        "images_per_second_nfe1": round(evaluation_job.speed(flow, used.evaluate.n)),
        "budget": provenance["budget"],
        "budget_with_ancestors": provenance["budget_with_ancestors"],
    })  # fmt: skip
    pictures.draw(flow, name, used, more)
    grid_job.publish(grids, name)


if __name__ == "__main__":
    console.main(run, "flow")
