"""Exports a flow and its sampler as one graph for other runtimes: noise (and label) in, images
out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rfpp_core.errors import UserError
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.sampler import Guided, SamplerConfig
from rfpp_core.sampling.solver_table import ADAPTIVE, properties_of
from rfpp_core.sampling.solvers import solve
from rfpp_core.storage import files

OPSET = 18
MOST_FORWARDS = 256  # the graph holds the network once for each


class Generator(nn.Module):
    """Noise (B, C, H, W) and labels int64 (B,) -> images of that shape, roughly in [-1, 1]."""

    def __init__(self, flow: Flow, sampler: SamplerConfig) -> None:
        super().__init__()
        self.field, self.sampler, self.start = flow.field, sampler, flow.start
        self.grid, self.last = sampler.plan(flow.start)

    def forward(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        field = Guided(self.field, self.sampler.guidance)
        z = noise if self.start == 1 else self.start * noise
        return solve(field, z, self.grid, self.sampler.solver, self.last, label).x


def export(flow: Flow, sampler: SamplerConfig, path: Path) -> float:
    """Writes the generator to a ``.onnx`` file, or a ``.pt2`` of ``torch.export``.

    Args:
        flow: on the CPU.
        sampler: solver, NFE and grid, which become part of the graph.
        path: the file; the batch size stays free.

    Returns:
        The largest difference between images of the written graph and of the flow.

    Raises:
        UserError: if the suffix is another, the solver is adaptive, the graph would be too large,
            or packages are missing.
    """
    if (
        sampler.solver == ADAPTIVE or properties_of(sampler.solver).float64
    ):  # its state is no float32
        raise UserError(
            f"{sampler.solver} is not exported; take euler, midpoint, heun or anchored"
        )
    if sampler.forwards > MOST_FORWARDS:
        raise UserError(f"an exported graph holds each of its network evaluations: at most "
                        f"{MOST_FORWARDS}, not {sampler.forwards:,}; lower nfe (guidance takes "
                        f"two each)")  # fmt: skip
    writers = {".onnx": _onnx, ".pt2": _pt2}
    if path.suffix not in writers:
        raise UserError(f"{path} must end in {' or '.join(writers)}")
    generator = Generator(flow, sampler).eval()
    noise = torch.randn(3, *flow.shape, generator=torch.Generator().manual_seed(0))
    given = (noise, torch.arange(3) % flow.classes) if flow.classes else (noise,)
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(
            generator, given, dynamic_shapes=tuple({0: batch} for _ in given)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        run = writers[path.suffix](program, given, path, flow)
        more = tuple(torch.cat((x, x))[:5] for x in given)  # another batch size
        return float((run(more) - generator(*more)).abs().max())


Run = Callable[[tuple[Tensor, ...]], Tensor]


def _pt2(program: Any, given: tuple[Tensor, ...], path: Path, flow: Flow) -> Run:
    def write(part: Path) -> None:
        with part.open("wb") as file, warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # torch's, about weights that are not on the CPU
            torch.export.save(program, file)

    files.write_atomic(path, write)
    loaded: Any = torch.export.load(path).module()
    return lambda inputs: loaded(*inputs)


def _onnx(program: Any, given: tuple[Tensor, ...], path: Path, flow: Flow) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}; pip install '.[export]'") from None
    names = ["noise", "label"][: len(given)]
    made: Any = torch.onnx.export(
        program, given, input_names=names, output_names=["images"], opset_version=OPSET,
        dynamo=True, verbose=False,
    )  # fmt: skip
    made.model.metadata_props["rfpp"] = files.canonical({"flow": flow.digest, **flow.metadata})
    files.write_atomic(path, lambda part: made.save(str(part)))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        fed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["images"], fed)[0])

    return run
