import json

import onnxruntime
import pytest
import torch

from rfpp_core.config import build
from rfpp_core.errors import UserError
from rfpp_core.interop.onnx import export
from rfpp_core.sampling.sampler import SamplerConfig
from tests.helpers import save_tiny


@pytest.fixture(scope="module", params=[0, 4], ids=["unconditional", "conditional"])
def flow(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "flow.safetensors"
    return build.load_flow(save_tiny(path, classes=request.param))


@pytest.mark.parametrize(
    "sampler",
    [
        SamplerConfig("euler", 1),
        SamplerConfig("euler", 2, times=(1.0, 0.8)),
        SamplerConfig("heun", 4),
    ],
    ids=["1", "2", "4"],
)
def test_onnx_is_the_flow(tmp_path, flow, sampler):
    path = tmp_path / "generator.onnx"
    assert export(flow, sampler, path) < 1e-4
    session = onnxruntime.InferenceSession(str(path))
    noise = torch.randn(7, *flow.shape)
    fed, labels = {"noise": noise.numpy()}, None
    if flow.classes:
        labels = [0, 1, 2, 3, 3, 2, 1]
        fed["label"] = torch.tensor(labels).numpy()
    images = torch.from_numpy(session.run(["images"], fed)[0])
    torch.testing.assert_close(images, flow.decode(noise, sampler, labels), rtol=0, atol=1e-4)
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["rfpp"])
    assert metadata["flow"] == flow.digest
    assert [file.name for file in tmp_path.iterdir()] == ["generator.onnx"]


def test_torch_export_is_the_flow(tmp_path, flow):
    path, sampler = tmp_path / "generator.pt2", SamplerConfig("euler", 2)
    assert export(flow, sampler, path) < 1e-5
    loaded = torch.export.load(path).module()
    noise = torch.randn(4, *flow.shape)
    labels = torch.arange(4) if flow.classes else None
    given = (noise,) if labels is None else (noise, labels)
    expected = flow.decode(noise, sampler, None if labels is None else labels.tolist())
    torch.testing.assert_close(loaded(*given), expected, rtol=0, atol=1e-5)


def test_mistakes(tmp_path, flow):
    with pytest.raises(UserError, match=r"must end in \.onnx or \.pt2"):
        export(flow, SamplerConfig("euler", 1), tmp_path / "generator.h5")
    with pytest.raises(UserError, match="rk45 is not exported"):
        export(flow, SamplerConfig("rk45"), tmp_path / "generator.onnx")
    for sampler in (SamplerConfig("euler", 100_000), SamplerConfig("heun", 129, guidance=2.0)):
        with pytest.raises(UserError, match=r"at most 256, not (100,000|258); lower nfe"):
            export(flow, sampler, tmp_path / "generator.onnx")
    assert not list(tmp_path.iterdir())
