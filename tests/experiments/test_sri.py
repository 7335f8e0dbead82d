"""SRI with the whole tool: a run trains, goes on bit for bit, is evaluated and sampled."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from safetensors.torch import load_file

from experiments import load_run, sample_scenes
from experiments.evaluate import main as evaluate_main
from experiments.interpolate import main as interpolate_main
from experiments.sample import main as sample_main
from pyro_lom.data.minibatches import float_images
from pyro_lom.training.runs import Run

RUN = "00000-sri-towers-seed0"
OPTIONS = (
    "--train.steps 6 --train.batch-size 4 --train.log-every 2 --train.checkpoint-every 2 --train.preview-every 0 "
    "--model.num-slots 3 --model.decoder-width 8 --model.token-width 8 --model.recurrence-width 16 "
    "--model.orderless.encoder-width 8 --model.schedule.orderless-first 0.5 --model.schedule.ordered-batch-size 4"
).split()


def tensors_of(checkpoint):
    return {name: tensor for path in checkpoint.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.fixture
def run(fit, data):
    code, _, err = fit("sri-towers", "--data.path", data, *OPTIONS)
    assert code == 0, err
    return Run(Path("runs") / RUN)


def test_a_run(run):
    """All numbers are finite. The metrics of the ordered pair contain both KLs of each slot."""
    summary = run.read_json("summary.json")
    for name in ("rmse_orderless", "rmse_ordered", "kl_scene", "kl_slots", "kl_slots_other_scene", "ari_fg_encoder"):
        assert math.isfinite(summary[name]), name
    # The plain ELBO is reported: the KL of the pair is that of the scene and of the slots.
    assert summary["kl_ordered"] == pytest.approx(summary["kl_scene"] + summary["kl_slots"])
    last = run.metrics()[-1]
    assert last["step"] == 6
    for k in (1, 2, 3):
        assert last[f"ordered/z_{k}"] > 0 and last[f"ordered/rollout_{k}"] > 0
    assert last["ordered/rollout_1"] == pytest.approx(last["ordered/z_1"])


@pytest.mark.slow
def test_it_goes_on_bit_for_bit(run, fit):
    [*_, checkpoint] = run.checkpoints()
    whole = tensors_of(checkpoint)
    shutil.rmtree(checkpoint)
    assert fit("--resume", run.folder)[0] == 0
    again = tensors_of(run.checkpoints()[-1])
    assert again.keys() == whole.keys() and any("recurrence" in name for name in whole)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_from_python(run):
    config, system, scenes = load_run(run.folder)
    pair, images = system["ordered"], float_images(scenes.split("test").images[:3])
    assert sample_scenes(pair, num_scenes=2, tau=0.8).image.shape == (2, 3, 32, 32)
    posterior = Predictive(poutine.uncondition(pair.model), guide=pair.guide, num_samples=2)(images)
    assert pair.model.render(posterior).image.shape == (2, 3, 3, 32, 32)
    assert torch.isfinite(posterior["x"]).all()


@pytest.mark.slow
def test_every_metric_and_picture(run, command):
    code, out, err = command(evaluate_main, run.folder, "--likelihood-images", "3", "--likelihood-samples", "2")
    assert code == 0, err
    assert "KL of the slots, other scene" in out and "Likelihood, nats" in out
    values = json.loads((run.folder / "evaluation.json").read_text())
    assert {"ari", "kl", "slot-order"} <= set(values)
    assert command(sample_main, run.folder, "--num-images", "2")[0] == 0
    assert command(interpolate_main, run.folder)[0] == 0
