"""The ``rfpp`` command: params files, drawing and editing images, pair stores, staged work."""

from __future__ import annotations

import io
import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import console
from pipeline.artifacts import DEFAULT_MODEL
from pipeline.cli import bench, compare, coupling, draw, edit, grid, methods, plan, presets, work
from rfpp_core.config.network import NetworkRow
from rfpp_core.config.params import Params
from rfpp_core.errors import Corrupted, UserError, quoted

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None)  # fmt: skip
pairs_app = typer.Typer(no_args_is_help=True, help="Check, repair or import noise/image pairs.")

USAGE: Any = typer.BadParameter.__mro__[1]  # a command line that cannot be parsed


app.command()(presets.preset)
app.command()(draw.sample)
app.command()(grid.grid)
app.command()(edit.transfer)
app.command()(edit.invert)
app.command()(edit.interpolate)
app.command()(edit.translate)
app.command()(compare.compare)
app.command()(methods.methods)
app.command()(coupling.coupling)
app.command()(bench.bench)
app.command()(plan.plan)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rfpp {metadata.version('rfpp')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """From a set of images to a generator that draws new ones in one network call.

    \b
    rfpp preset digits   puts a complete params.yaml in place
    dvc repro            trains, generates pairs, trains on them and evaluates
    rfpp sample          draws images from the result

    Every stage resumes where it was interrupted; report/index.html shows the results.
    """


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="file to write: .onnx, or .pt2 for torch.export")],
    model: Annotated[Path, typer.Option(help="model file")] = DEFAULT_MODEL,
    nfe: Annotated[int, typer.Option(help="network evaluations (NFE) per image")] = 1,
    guidance: Annotated[float, typer.Option(help="guidance scale; 1 for none")] = 1.0,
    solver: Annotated[
        str | None,
        typer.Option(
            help="euler, heun, midpoint, fireflow, anchored or flow-map [euler up to 8 NFE, else "
            "heun; of a flow map flow-map]"
        ),
    ] = None,
    grid: draw.GridOption = "uniform",
) -> None:
    """Exports a flow to ONNX or torch.export.  Noise (and labels) in, images in [-1, 1] out."""
    from rfpp_core.config import build
    from rfpp_core.interop.onnx import export as write

    flow = build.load_flow(model)
    sampler = draw.sampler(flow, nfe, solver, grid, guidance)
    gap = write(flow, sampler, out)
    print(f"{model} at {sampler.forwards} NFE -> {out}; its images differ from the flow's by at "
          f"most {gap:.1g}")  # fmt: skip


@app.command("import-checkpoint")
def import_checkpoint(
    source: Annotated[
        Path, typer.Argument(help="checkpoint: state dict, NVlabs pickle or safetensors")
    ],
    target: Annotated[Path, typer.Argument(help="model file to write")],
    arch: Annotated[
        Path | None, typer.Option(help="params file with the network that it must fit")
    ] = None,
    shape: Annotated[
        str, typer.Option(help="channels, height and width of its images, with --arch")
    ] = "3,32,32",
    name: Annotated[
        str | None, typer.Option("--network", help="row of networks in that file, with --arch")
    ] = None,
    classes: Annotated[
        int, typer.Option(help="number of labels of a conditional network, with --arch")
    ] = 0,
    rectified: Annotated[
        bool,
        typer.Option(
            help="it is a rectified flow, which starts at t = 1, as RF++'s own weights do; "
            "not an EDM, which starts at t = 80/81"
        ),
    ] = False,
) -> None:
    """Converts a checkpoint to a model file.  It is read as data; nothing in it is executed."""
    from rfpp_core.config import build, params
    from rfpp_core.interop import importing

    document = None
    if arch is not None:
        sizes = tuple(int(n) if re.fullmatch(" *[0-9]{1,5} *", n) else 0 for n in shape.split(","))
        if len(sizes) != 3 or not all(sizes):
            raise UserError(f"--shape is '{shape}'; it must be three numbers such as 3,32,32")
        network = _network(params.load(arch), name)
        if classes < 0 or (network.conditional and not classes):
            raise UserError(f"the network of {arch} is conditional; give --classes")
        document = build.architecture(network, sizes, classes)
    start = 1.0 if rectified else importing.EDM_START
    metadata = importing.convert(
        source, target, document, start=start, say=lambda note: print(f"note: {note}")
    )
    found = metadata["architecture"]
    print(f"{target}: {found['arch']} of {'x'.join(map(str, found['shape']))} images, "
          f"{found['classes'] or 'no'} classes, from {source} (sha256 "
          f"{metadata['provenance']['source']['sha256']})")  # fmt: skip
    if found["arch"] != "small_unet":
        print(f"note: {importing.LICENCE}")


def _network(config: Params, name: str | None) -> NetworkRow:
    """The named row, or the only one."""
    rows = config.networks
    if name is None and len(rows) == 1:
        return next(iter(rows.values()))
    if name not in rows:
        raise UserError(f"name a row of networks by --network (rows: {', '.join(rows)})")
    return rows[name]


@pairs_app.command("verify")
def pairs_verify(
    path: Annotated[Path, typer.Argument(help="pair store, such as data/pairs2.zarr")],
    repair: Annotated[
        bool, typer.Option(help="drop corrupted shards, so that `dvc repro` regenerates them")
    ] = False,
) -> None:
    """Checks a pair store from end to end.

    Every shard must have its digest, and every pair noise of its own, of unit variance, which its
    seed still gives.
    """
    from rfpp_core.pairs import markers
    from rfpp_core.pairs.store import PairStore
    from rfpp_core.pairs.verify import verify, wrong_with

    lost = markers.drop_bad(path) if repair else []
    store = PairStore.open(path)
    if repair:
        corrupted = [k for k in store.committed() if wrong_with(store, k)]
        for k in corrupted:
            store.forget(k)
        if lost := sorted({*lost, *corrupted}):
            names = ", ".join(map(str, lost))
            print(f"{path}: forgot shard(s) {names}; `dvc repro` regenerates them")
            return
    if wrong := verify(store):
        bad = [
            file for k in store.committed() if store.corruption(k) for file in store.shard_files(k)
        ]
        raise Corrupted(f"{path}: {'; '.join(wrong)}", *bad)
    print(f"{path}: {store.n} pairs in {store.shards} shards, all right")


@pairs_app.command("import")
def pairs_import(
    out: Annotated[Path, typer.Argument(help="store to write; an interrupted import resumes")],
    images: Annotated[Path, typer.Option(help="samples.zip of the official RF++ code")],
    noise: Annotated[Path, typer.Option(help="its z.zip")],
    labels: Annotated[Path | None, typer.Option(help="its images_labels.csv")] = None,
    solver: Annotated[
        str, typer.Option(help="solver that made the pairs, to record")
    ] = "edm-heun",
    nfe: Annotated[int, typer.Option(help="its network evaluations per pair, to record")] = 35,
    grid: Annotated[str, typer.Option(help="its time grid, to record")] = "karras",
) -> None:
    """Imports pair archives of the official RF++ code.  It prints the row of `pairs` to use."""
    from tqdm import tqdm

    from rfpp_core.interop import archives
    from rfpp_core.pairs.store import PairStore
    from rfpp_core.storage import files

    archive = archives.Archive(images, noise, labels)
    digests = tuple(files.sha256(path) for path in (images, noise, labels) if path)
    found = archives.convert(
        archive, out, digests, lambda shards: tqdm(shards, desc="pairs", disable=None),
        solver=solver, nfe=nfe, grid=grid,
    )  # fmt: skip
    print(
        f"{out}: {found.n} pairs; noise of mean {found.mean:.4f} and standard deviation "
        f"{found.std:.4f}; correlation with the images {found.coupling:.4f}\n"
        f"pairs:\n  pairs2: {{teacher: flow1, source: import, path: {out}, "
        f"digest: {PairStore.open(out).digest(False)}}}"
    )
    if abs(found.coupling) < found.chance:
        console.warn(f"noise and images look independent (correlation within {found.chance:.4f}): "
                     f"if a flow made these pairs, NumPy now draws other noise than "
                     f"then")  # fmt: skip


@pairs_app.command("digest")
def pairs_digest(
    path: Annotated[Path, typer.Argument(help="pair store, such as data/pairs2.zarr")],
) -> None:
    """Prints the digest of all pairs.  It depends on their content alone."""
    from rfpp_core.pairs.store import PairStore

    print(PairStore.open(path).digest())


app.add_typer(pairs_app, name="pairs")
app.add_typer(work.app, name="work")


def entry() -> None:
    """Runs the command; what a user can get wrong is one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for file names of any encoding
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except typer.Abort:
        sys.exit(1)
    except USAGE as error:
        text = error.format_message()
        if "\n" in text:  # the help of a command without arguments
            error.show()
        else:
            print(f"rfpp: {quoted(text, 400)}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        console.complain(error)
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        console.warn(console.refusal(error) or console.one_line(error))
        sys.exit(2)


if __name__ == "__main__":
    entry()
