"""A run between two sets of images: what its trainings read, its pairs, its evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import yaml

from pipeline import artifacts
from pipeline.stages import evaluate, network, prepare, reference, train
from pipeline.work import (
    domain_job,
    evaluation_job,
    pair_job,
    training_data,
    training_job,
    training_run,
)
from pipeline.workers import tasks
from rfpp_core.config import build, params
from rfpp_core.errors import UserError
from rfpp_core.images import sources
from rfpp_core.images import store as image_store
from rfpp_core.images.buffers import MEMORY, Buffers
from rfpp_core.images.pixels import to_float
from rfpp_core.pairs.store import PairStore
from rfpp_core.pairs.verify import verify
from rfpp_core.rng import StepRNG
from rfpp_core.runtime import Rank
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.sampling.transfer import Transfer, with_source
from tests.helpers import SMOKE

SOURCE, TARGET = (0, 1), (2, 3)
DOMAINS = {"source": [0, 1], "target": [2, 3]}
CPU = torch.device("cpu")


def write(**changes) -> params.Params:
    """Params of two flows between digits, with other values of single rows."""
    raw = yaml.safe_load(SMOKE)
    raw["networks"]["unet"] |= {"channels": 8}
    raw["features"] |= {"nets": ["pixels"]}
    raw["recipes"]["pretrain"] |= {"batch": 8, "steps": 10, **changes.get("recipe", {})}
    raw["recipes"]["reflow"] |= {"batch": 8, "steps": 10}
    raw["pairs"]["pairs2"] = {"teacher": "flow1", "source": "domain", "solver": "midpoint",
                              "nfe": 8, "shard": 20, "micro_batch": 10}  # fmt: skip
    raw["flows"]["flow1"] |= {"domains": changes.get("domains", DOMAINS)}
    raw["evaluate"] |= {"nfe": [1], "many_nfe": 3, "straightness_n": 5, "neighbours": 2,
                        **changes.get("evaluate", {})}  # fmt: skip
    artifacts.PARAMS.write_text(yaml.safe_dump(raw))
    return params.load()


@pytest.fixture
def config(tmp_path, monkeypatch) -> params.Params:
    """In a folder with 300 digits, 60 of them held out, and the network's initial weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RFPP_DEVICE", "cpu")
    (tmp_path / ".dvc").mkdir()
    found = write()
    digits = sources.digits().take(np.arange(300))
    image_store.write(artifacts.IMAGES, digits, np.arange(300) % 5 == 0)
    network.run("unet")
    return found


def of(labels: tuple[int, ...], part: image_store.Split = "train") -> torch.Tensor:
    """Images with some labels, uint8, found one by one."""
    whole = image_store.read(artifacts.IMAGES, part)
    return torch.from_numpy(np.stack([image for image, y in zip(*whole, strict=True)
                                      if y in labels]))  # fmt: skip


def members(images: torch.Tensor, of_set: torch.Tensor) -> torch.Tensor:
    """Whether each image is one of a set, bool (B,)."""
    return (images[:, None] == of_set[None]).flatten(2).all(2).any(1)


@pytest.mark.parametrize("limit", [float("inf"), 0])
def test_some_labels_of_a_split_are_read_in_their_order(config, tmp_path, monkeypatch, limit):
    """In memory, and in files; the digest of the whole split is checked either way."""
    buffers = Buffers(tmp_path / "flat", limit)
    found = image_store.read(artifacts.IMAGES, "train", buffers, TARGET)
    assert torch.equal(torch.from_numpy(np.array(found.images)), of(TARGET))
    assert set(found.labels.tolist()) == set(TARGET)
    rows = image_store.rows_of(artifacts.IMAGES, "train", TARGET)
    monkeypatch.setattr(image_store, "CHUNK", 7)  # several of them
    some = image_store.read_rows(artifacts.IMAGES, "train", rows[3:9])
    np.testing.assert_array_equal(some.images, found.images[3:9])
    np.testing.assert_array_equal(some.labels, found.labels[3:9])


def test_a_training_pairs_target_images_with_source_images(config):
    job = training_job.job_of("flow1", config)
    loaded = training_data.load(job.sets, job.recipe, False, MEMORY)
    assert torch.equal(loaded.images, of(TARGET))
    assert loaded.labels is None
    batches = training_run.prepare(job, loaded, CPU, Rank()).batches(0)
    for step, batch in enumerate(islice(batches, 4)):
        x, z, y = loaded.coupling(batch, StepRNG(job.seed, step, 8))
        assert y is None
        assert bool(members(x, to_float(of(TARGET))).all())
        assert bool(members(z, to_float(of(SOURCE))).all())


def test_the_identity_has_the_domains_and_their_coupling_where_there_are_any(config):
    [part] = training_job.job_of("flow1", config).identity()["data"]
    assert part["domains"] == DOMAINS
    assert part["coupling"] == "transfer"
    assert part["n"] == len(of(TARGET))
    document = training_job.job_of("flow1", config).identity()
    assert training_job.code_now(document) == document["code"]
    couplings = {module for module in document["code"] if ".couplings." in module}
    assert couplings == {"rfpp_core.training.couplings.transfer"}
    other = training_job.job_of("flow1", write(domains={"source": [0], "target": [2, 3]}))
    assert other.identity() != document


def test_the_identity_of_a_flow_from_noise_has_no_domains(config):
    raw = yaml.safe_load(artifacts.PARAMS.read_text())
    del raw["flows"]["flow1"]["domains"]
    raw["pairs"]["pairs2"] = {"teacher": "flow1", "n": 20, "shard": 20, "micro_batch": 10}
    document = training_job.job_of("flow1", params.parse(raw)).identity()
    [part] = document["data"]
    assert set(part) == {"digest", "n", "coupling", "purpose"}
    assert not {module for module in document["code"] if "transfer" in module}


def test_classes_that_are_not_there_are_refused(config):
    with pytest.raises(UserError, match=r"no training images of the classes 12 \(domains.target"):
        training_job.job_of("flow1", write(domains={"source": [0], "target": [12]}))


def translated(config: params.Params, order: list[int]) -> PairStore:
    """The pairs of the trained flow1, made in this process and published."""
    job = pair_job.job_of("pairs2", config)
    store = PairStore.create(artifacts.work() / f"{order[0]}.zarr", job.spec, job.n)
    for shard in order:
        tasks.make_shard(str(store.path), *job.arguments, shard)
    return PairStore.open(store.path)


@pytest.fixture
def trained(config) -> params.Params:
    tasks._flow.cache_clear()
    train.run("flow1")
    return config


def test_the_model_file_says_between_which_domains(trained):
    flow = build.load_flow(artifacts.model("flow1"))
    assert isinstance(flow, Transfer)
    assert flow.domains == DOMAINS


def test_pairs_are_the_source_images_and_their_translations(trained):
    """In the order of the set, whatever the order of the shards; regenerated without a
    difference."""
    shards = range(-(-len(of(SOURCE)) // 20))
    one, other = translated(trained, [*shards]), translated(trained, [*reversed(shards)])
    assert one.digest() == other.digest()
    assert verify(one) == []
    images, labels, noise = one.read_all()
    assert torch.equal(torch.from_numpy(noise), to_float(of(SOURCE)))
    assert labels.tolist() == [-1] * len(images)
    flow = build.load_flow(artifacts.model("flow1"))
    expected = flow.decode(to_float(of(SOURCE)), SamplerConfig("midpoint", 8))
    gap = (torch.from_numpy(images) / 127.5 - 1) - expected.clamp(-1, 1)
    assert float(gap.abs().max()) <= 1.01 / 127.5
    job = pair_job.job_of("pairs2", trained)
    again = tasks.regenerate(str(one.path), *job.arguments, 1)
    assert (again.share, again.levels, again.same_machine) == (0.0, 0.0, True)


def test_a_spec_of_other_pairs_has_no_domain(trained):
    spec = pair_job.job_of("pairs2", trained).spec
    assert (spec.domain, spec.source_labels, spec.seed) == ("0,1", SOURCE, 0)
    assert "domain" not in replace(spec, domain="").identity


def test_reflow_learns_from_the_translations(trained):
    store = translated(trained, [*range(-(-len(of(SOURCE)) // 20))])
    store.publish(artifacts.pairs("pairs2"), store.n)
    job = training_job.job_of("flow2", trained)
    [part] = job.identity()["data"]
    assert (part["coupling"], part["purpose"], part["n"]) == ("stored", "reflow", store.n)
    assert part["domains"] == DOMAINS
    train.run("flow2")
    assert build.load_flow(artifacts.model("flow2")).metadata["domains"] == DOMAINS


def test_a_teacher_whose_file_is_from_noise_is_refused(config):
    artifacts.model("flow1").write_bytes(artifacts.model("unet").read_bytes())
    with pytest.raises(UserError, match=r"starts from noise, and pairs\.pairs2\.source is domain"):
        pair_job.job_of("pairs2", config)


def test_an_evaluation_translates_each_held_out_source_image_once(trained):
    """And compares with the target alone; floor and held-out rows are of the target, too."""
    reference.run()
    evaluate.run("flow1")
    table = artifacts.table("flow1").read_text().splitlines()
    columns = [dict(zip(table[0].split(","), row.split(","), strict=True)) for row in table[1:]]
    held_out = len(of(SOURCE, "held_out"))
    assert {(row["n"], row["seeds"]) for row in columns} == {(str(held_out), "1")}
    metrics = json.loads(artifacts.metrics("flow1").read_text())
    assert metrics["noise"] == {"norm2": None, "norm2_std": None, "correlation": None}
    assert (artifacts.samples("flow1") / "source.png").exists()
    real = evaluate.Reference(trained.features)
    flow = build.load_flow(artifacts.model("flow1"))
    found = domain_job.evaluated("flow1", flow, real, trained)
    x = found.flow.states(3, torch.arange(held_out))
    assert bool(members(to_float(of(SOURCE, "held_out")), x).all())
    assert len(found.real.real["pixels"].train) == len(of(TARGET))
    assert torch.equal(torch.from_numpy(found.held_out.images), of(TARGET, "held_out"))
    assert found.real.digests != real.digests
    assert real.real["pixels"].train.shape[0] == 240  # the whole reference is as it was
    floor = evaluation_job.rounded(found.real.rows["pixels"]["floor"][:, 0].mean())
    assert metrics["fd_pixels"]["floor"] == floor


def test_an_evaluation_of_fewer_samples_has_its_seeds(trained):
    reference.run()
    few = write(evaluate={"n": 5, "seeds": 2})
    real = evaluate.Reference(few.features)
    used = domain_job.evaluated("flow1", build.load_flow(artifacts.model("flow1")), real, few)
    assert used.config.evaluate.n == 5
    assert used.config.flows["flow1"].seeds is None


def test_measurements_are_cached_by_domains_and_source_images(trained):
    flow = build.load_flow(artifacts.model("flow1"))
    assert isinstance(flow, Transfer)
    sampler, images = SamplerConfig("euler", 1), to_float(of(SOURCE, "held_out"))
    keys = [evaluation_job.key_of("x", with_source(flow, some), sampler, ["paths"])
            for some in (images, images[1:])]  # fmt: skip
    assert keys[0]["domains"] == {**DOMAINS, "images": keys[0]["domains"]["images"]}
    assert keys[0] != keys[1]
    from_noise = build.load_flow(artifacts.model("unet"))
    assert "domains" not in evaluation_job.key_of("x", from_noise, sampler, ["paths"])


def test_a_model_file_of_other_domains_than_its_row_is_refused(trained):
    reference.run()
    other = write(domains={"source": [4], "target": [2, 3]})
    with pytest.raises(UserError, match=r"flows\.flow1 of .* run `dvc repro train@flow1`"):
        evaluate.run("flow1")
    assert other.domains_of("flow1")


def lacking(config: params.Params) -> list[str]:
    source = sources.digits().take(np.arange(300))
    held_out = np.arange(300) % 5 == 0
    labels = source.labels[~held_out], source.labels[held_out]
    return list(domain_job.problems(config, len(source.classes), *labels))


def test_preflight_names_what_the_domains_lack(config):
    assert lacking(config) == []
    [line] = lacking(write(domains={"source": [0], "target": [12]}))
    assert "flows.flow1 is of class 12 (domains), and the images have 10 classes, 0 to 9" in line
    n = len(of(TARGET))
    [line] = lacking(write(recipe={"batch": n + 1}))
    assert f"batch is {n + 1} but there are only {n} training images of the target" in line
    assert "raise dataset.held_out" in lacking(write(evaluate={"neighbours": 20}))[0]
    assert prepare.trained_on_images(config) == {"pretrain": 8}
