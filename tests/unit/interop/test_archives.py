"""Official pair archives, written by the test in their format, into a store of stored noise."""

import csv
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from rfpp_core.errors import UserError
from rfpp_core.interop import archives
from rfpp_core.pairs.store import PairStore

N, SIDE = 30, 8


def states(n, seed=0):
    """The .bin of each pair, and the noise it stands for: one stream, its state before each."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        now = rng.bit_generator.state["state"]
        data = b"".join(now[key].to_bytes(16, "big") for key in ("state", "inc"))
        yield data, rng.standard_normal((3, SIDE, SIDE)).astype(np.float32)


def name_of(i, nested):
    return f"{i // 10}/{i:05d}" if nested else f"{i:05d}"


@pytest.fixture
def official(tmp_path):
    """(paths, images, noises, labels) of a small archive; images that follow their noise."""

    def make(nested=False, labelled=False, coupled=True, change=lambda i, data: data):
        found = list(states(N))
        noises = np.stack([z for _, z in found])
        rng = np.random.default_rng(1)
        drawn = noises if coupled else rng.normal(size=noises.shape)
        images = np.clip(127.5 + 60 * drawn, 0, 255).astype(np.uint8)
        labels = rng.integers(0, 4, N)
        paths = [tmp_path / name for name in ("samples.zip", "z.zip", "images_labels.csv")]
        with zipfile.ZipFile(paths[0], "w") as pictures, zipfile.ZipFile(paths[1], "w") as zs:
            for i, (data, _) in enumerate(found):
                buffer = io.BytesIO()
                Image.fromarray(images[i].transpose(1, 2, 0)).save(buffer, "PNG")
                pictures.writestr(f"{name_of(i, nested)}.png", buffer.getvalue())
                zs.writestr(f"{name_of(i, nested)}.bin", change(i, data))
        with paths[2].open("w", newline="") as file:
            rows = [(f"{name_of(i, nested)}.png", labels[i]) for i in range(N)]
            csv.writer(file).writerows(rows if labelled else [])
        return paths, images, noises, labels if labelled else np.full(N, -1)

    return make


def convert(paths, out, watch=iter):
    archive = archives.Archive(*paths)
    return archives.convert(
        archive, out, ("a", "b"), watch, solver="edm-heun", nfe=35, grid="karras"
    )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_pairs_come_over(official, tmp_path, nested, labelled, monkeypatch):
    monkeypatch.setattr(archives, "SHARD", 20)
    paths, images, noises, labels = official(nested, labelled)
    found = convert(paths, tmp_path / "pairs.zarr")
    store = PairStore.open(tmp_path / "pairs.zarr")
    read = store.read_all()
    np.testing.assert_array_equal(read.images, images)
    np.testing.assert_array_equal(read.noise, noises)
    np.testing.assert_array_equal(read.labels, labels)
    assert store.spec.classes == (4 if labelled else 0)
    assert found.coupling > found.chance
    assert found.mean == pytest.approx(noises.mean(), abs=1e-6)
    with pytest.raises(UserError, match="exists"):
        convert(paths, store.path)


def test_an_interrupted_import_goes_on(official, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SHARD", 10)
    paths, *_ = official()
    out = tmp_path / "pairs.zarr"

    def stop(shards):
        yield shards[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(paths, out, stop)
    assert not out.exists()
    todo = []
    convert(paths, out, lambda shards: todo.extend(shards) or shards)
    assert todo == [1, 2]
    assert PairStore.open(out).missing() == []


def test_decoupled_archives_are_seen(official, tmp_path):
    found = convert(official(coupled=False)[0], tmp_path / "pairs.zarr")
    assert abs(found.coupling) < found.chance


def test_what_is_wrong_is_said(official, tmp_path):
    out = tmp_path / "pairs.zarr"
    paths, *_ = official(change=lambda i, data: data[:31] if i == 7 else data)
    with pytest.raises(UserError, match=r"00007\.bin in .* is 31 bytes, not a PCG64 state of 32"):
        convert(paths, out)
    first = next(states(1))[0]
    paths, *_ = official(change=lambda i, data: first if i == 7 else data)
    with pytest.raises(UserError, match="holds 1 noise samples twice"):
        convert(paths, out)
    assert not out.exists()
    paths, *_ = official()
    with zipfile.ZipFile(paths[1], "a") as more:
        more.writestr("99999.bin", first)
    with pytest.raises(UserError, match=r"do not belong together: .* the first 99999\.bin"):
        convert(paths, out)
    paths, *_ = official(labelled=True)
    text = paths[2].read_text()
    paths[2].write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(UserError, match=r"has no label .* for 00029\.png"):
        convert(paths, out)
    paths[2].write_text("00000.png,70000\n")
    with pytest.raises(UserError, match="out of range"):
        convert(paths, out)
    with pytest.raises(UserError, match=r"gone\.zip is missing"):
        archives.Archive(tmp_path / "gone.zip", paths[1], None)
    paths[1].write_bytes(b"no zip")
    with pytest.raises(UserError, match="is not a readable zip"):
        archives.Archive(paths[0], paths[1], None)


def test_a_flow_trains_on_an_imported_store(official, tmp_path, monkeypatch):
    """Through the stages' own code: generate publishes it, train uses its stored noise."""
    import torch
    import yaml

    from pipeline.stages import generate
    from pipeline.work import ledger, training_data, training_job
    from rfpp_core.config import build, params
    from rfpp_core.config.network import Network
    from rfpp_core.images import store as image_store
    from rfpp_core.images.buffers import Buffers
    from rfpp_core.images.loader import Batch
    from rfpp_core.storage import checkpoint
    from tests.helpers import SMOKE, save_tiny

    monkeypatch.chdir(tmp_path)
    paths, _, noises, _ = official()
    convert(paths, tmp_path / "official.zarr")
    raw = yaml.safe_load(SMOKE)
    digest = PairStore.open(tmp_path / "official.zarr").digest()
    raw["pairs"] = {"pairs2": {"teacher": "flow1", "source": "import", "path": "official.zarr",
                               "digest": digest}}  # fmt: skip
    raw["recipes"]["reflow"] |= {"batch": 10}

    def written():
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
        return params.load()

    config = written()
    (tmp_path / "models").mkdir()
    arch = build.architecture(Network(channels=8), (3, SIDE, SIDE), 0)
    metadata = {"architecture": arch, "provenance": {"budget_with_ancestors": 1}}
    flow1 = tmp_path / "models/flow1.safetensors"
    checkpoint.save(flow1, build.field(arch).state_dict(), metadata)
    monkeypatch.setattr(image_store, "metadata", lambda path: {"digest": "of other images"})
    generate.run("pairs2")
    job = training_job.job_of("flow2", config)
    (data,) = job.sets
    assert job.spent[ledger.key("pairs", data.digest)] == N * 35
    buffers = Buffers(tmp_path / "flat", limit=0)
    images, _, coupling = training_data.load(job.sets, job.recipe, False, buffers)
    at = torch.tensor([3, 17])
    _, z, _ = coupling(Batch(images[at].float(), at, None), None)
    np.testing.assert_array_equal(z, noises[at])
    save_tiny(flow1)
    with pytest.raises(UserError, match=r"images of 3x8x8, but the network is of 1x8x8"):
        training_job.job_of("flow2", config)
    conditional = {**arch, "classes": 3}
    checkpoint.save(
        flow1, build.field(conditional).state_dict(), {**metadata, "architecture": conditional}
    )
    with pytest.raises(UserError, match=r"labels of no classes, but the network of 3"):
        training_job.job_of("flow2", config)
    raw["pairs"]["pairs2"]["digest"] = "0" * 64
    written()
    with pytest.raises(UserError, match=r"has digest .*, not 000"):
        generate.run("pairs2")
