"""Stage ``network@name``: a row of ``networks`` -> models/<name>.safetensors.

Initial weights are drawn by the seed, or are those of a checkpoint, none of whose code is run.
"""

from __future__ import annotations

from pipeline import artifacts, console
from pipeline.work import rows
from rfpp_core.config import build, params
from rfpp_core.config.network import NetworkRow
from rfpp_core.errors import UserError, quoted
from rfpp_core.images import store as image_store
from rfpp_core.interop import importing
from rfpp_core.storage import checkpoint


def run(name: str) -> None:
    config = params.load()
    row = rows.named(config.networks, name, "networks")
    images = image_store.metadata(artifacts.IMAGES)
    document = build.architecture(row, images["shape"], images["classes"])
    artifacts.model(name).parent.mkdir(exist_ok=True)
    if row.checkpoint:
        _import(name, row, document)
    else:
        _draw(name, config.seed, document)
    now = params.load()
    if (now.seed, now.networks.get(name)) != (config.seed, row):
        artifacts.model(name).unlink()
        raise UserError(f"networks.{name} or seed in params.yaml changed during the run; run it "
                        f"again")  # fmt: skip


def _draw(name: str, seed: int, document: dict[str, object]) -> None:
    field = build.field(document, seed=seed)
    provenance = {"stage": "network", "seed": seed, "ledger": {}, "budget": 0,
                  "budget_with_ancestors": 0}  # fmt: skip
    metadata = {"architecture": document, "provenance": provenance, **build.first_time(document)}
    checkpoint.save(artifacts.model(name), field.state_dict(), metadata)


def _import(name: str, row: NetworkRow, document: dict[str, object]) -> None:
    """The checkpoint as it is: an EDM denoiser is a 1-rectified flow without training."""
    importing.convert(
        artifacts.located(row.checkpoint or ""), artifacts.model(name), document, row.sha256,
        say=lambda note: print(f"{name}: {note}"),
    )  # fmt: skip
    print(f"{name}: {quoted(row.checkpoint)} (sha256 {row.sha256})")


if __name__ == "__main__":
    console.main(run, "network")
