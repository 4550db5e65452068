"""``rfpp``: presets, sampling, pair stores and staged work from the command line."""

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
from pipeline.cli import compare, draw, edit, presets, work
from rfpp_core.config.network import NetworkRow
from rfpp_core.config.params import Params
from rfpp_core.errors import Corrupted, UserError, quoted
from rfpp_core.sampling.flow import sampler_for

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None,
                  help="From a set of images to a one-step generator.")  # fmt: skip
pairs_app = typer.Typer(no_args_is_help=True, help="Check and digest pair stores.")
app.add_typer(pairs_app, name="pairs")
app.add_typer(work.app, name="work")

USAGE: Any = typer.BadParameter.__mro__[1]  # a command line that cannot be parsed


app.command()(presets.preset)
app.command()(draw.sample)
app.command()(compare.compare)


def _version(asked: bool) -> None:
    if asked:
        print(f"rfpp {metadata.version('rfpp')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """From a set of images to a one-step generator."""


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help=".onnx, or .pt2 of torch.export")],
    model: Annotated[Path, typer.Option(help="model file")] = DEFAULT_MODEL,
    nfe: Annotated[int, typer.Option(help="network evaluations an image")] = 1,
    guidance: Annotated[float, typer.Option(help="guidance scale, 1 for none")] = 1.0,
    solver: Annotated[
        str | None, typer.Option(help="euler up to 8 NFE, else heun; not edm-heun, rk45")
    ] = None,
    grid: Annotated[str, typer.Option(help="uniform, karras, or times: 1,0.8")] = "uniform",
) -> None:
    """Writes a generator for other runtimes: noise (and label) in, images in [-1, 1] out."""
    from rfpp_core.config import build
    from rfpp_core.interop.onnx import export as write

    flow = build.load_flow(model)
    sampler = sampler_for(flow, nfe, solver, grid, guidance)
    gap = write(flow, sampler, out)
    print(f"{model} at {sampler.forwards} NFE -> {out}; its images differ from the flow's by at "
          f"most {gap:.1g}")  # fmt: skip


@app.command("import-checkpoint")
def import_checkpoint(
    source: Annotated[Path, typer.Argument(help="state dict, NVlabs pickle or safetensors")],
    target: Annotated[Path, typer.Argument(help="model file to write")],
    arch: Annotated[Path | None, typer.Option(help="params file whose network it must be")] = None,
    shape: Annotated[str, typer.Option(help="C,H,W of its images, with --arch")] = "3,32,32",
    name: Annotated[
        str | None, typer.Option("--network", help="its row of networks, with --arch")
    ] = None,
    classes: Annotated[int, typer.Option(help="labels of a conditional network, with --arch")] = 0,
    rectified: Annotated[bool, typer.Option(help="a flow from t = 1, as RF++'s own weights, "
                                                 "not an EDM from t = 80/81")] = False,
) -> None:  # fmt: skip
    """Makes a model file of a foreign checkpoint; nothing in it is executed."""
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
    """The row that is named, or the only one."""
    rows = config.networks
    if name is None and len(rows) == 1:
        return next(iter(rows.values()))
    if name not in rows:
        raise UserError(f"name a row of networks by --network (rows: {', '.join(rows)})")
    return rows[name]


app.command()(edit.invert)
app.command()(edit.interpolate)
app.command()(edit.translate)


@pairs_app.command("verify")
def pairs_verify(
    path: Path,
    repair: Annotated[bool, typer.Option(help="forget damaged shards, to be made again")] = False,
) -> None:
    """Reads everything and checks digests, noise witness, distinct noise of unit variance."""
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
            print(f"{path}: forgot shard(s) {names}; `dvc repro` makes them again")
            return
    if wrong := verify(store):
        bad = [
            file for k in store.committed() if store.corruption(k) for file in store.shard_files(k)
        ]
        raise Corrupted(f"{path}: {'; '.join(wrong)}", *bad)
    print(f"{path}: {store.n} pairs in {store.shards} shards, all right")


@pairs_app.command("import")
def pairs_import(
    out: Annotated[Path, typer.Argument(help="store to make; an interrupted one goes on")],
    images: Annotated[Path, typer.Option(help="samples.zip of the official RF++ code")],
    noise: Annotated[Path, typer.Option(help="z.zip")],
    labels: Annotated[Path | None, typer.Option(help="images_labels.csv")] = None,
    solver: Annotated[str, typer.Option(help="what is said to have made them")] = "edm-heun",
    nfe: Annotated[int, typer.Option(help="and at how many evaluations")] = 35,
    grid: Annotated[str, typer.Option(help="and on which grid")] = "karras",
) -> None:
    """Reads official pair archives into a store; a row of `pairs` trains on it."""
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
        f"{out}: {found.n} pairs; noise of mean {found.mean:.4f} and deviation {found.std:.4f}; "
        f"correlation with the images {found.coupling:.4f}\n"
        f"pairs:\n  pairs2: {{teacher: flow1, source: import, path: {out}, "
        f"digest: {PairStore.open(out).digest(False)}}}"
    )
    if abs(found.coupling) < found.chance:
        print(f"rfpp: noises and images look independent (correlation within {found.chance:.4f}): "
              f"if these are a flow's pairs, this NumPy draws other noise than theirs did",
              file=sys.stderr)  # fmt: skip


@pairs_app.command("digest")
def pairs_digest(path: Path) -> None:
    """Digest of the decoded content, the same whoever made the shards in whatever order."""
    from rfpp_core.pairs.store import PairStore

    print(PairStore.open(path).digest())


def entry() -> None:
    """The ``rfpp`` command: what a user can get wrong is one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files in another encoding
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except typer.Abort:
        sys.exit(1)
    except USAGE as error:
        text = error.format_message()
        if "\n" in text:  # help, for a command without arguments
            error.show()
        else:
            print(f"rfpp: {quoted(text, 400)}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        console.complain(error)
        sys.exit(2)
    except BrokenPipeError:  # what reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        console.warn(console.refusal(error) or console.one_line(error))
        sys.exit(2)


if __name__ == "__main__":
    entry()
