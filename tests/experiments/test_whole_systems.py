"""Systems that are one pair, under the whole tool: they train, resume, are evaluated and are drawn."""

import json
import math
import os
import signal
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from experiments import evaluate, fit, load_run, sample_scenes
from experiments.config import Data, Train
from experiments.evaluation.held_out import HeldOut
from experiments.systems import build, preset
from pyro_lom.data.hdf5 import write_scenes
from pyro_lom.data.towers import make_towers
from pyro_lom.geco import FreeNatsELBO
from pyro_lom.likelihoods import GaussianLikelihood
from pyro_lom.scene_priors import NormalMixture
from pyro_lom.training.runs import Run
from pyro_lom.training.trainer import Interrupted

SMALL = {
    "genesis-towers": dict(num_slots=3, mask_dim=6, component_dim=4, encoder_width=8, decoder_width=8),
    "vae-towers": dict(scene_dim=6, encoder_width=8, decoder_width=8),
    "gnm-towers": dict(encoder_width=8, decoder_width=8, num_draws=2, global_dim=4, what_dim=4, background_dim=2),
    "nvae-towers": dict(width=2, groups=(1, 2), latent_channels=2),
    "genesis-v2-mog-towers": dict(num_slots=3, encoder_width=8, decoder_width=8, recurrence_width=8),
    "genesis-v2-g-towers": dict(num_slots=3, encoder_width=8, decoder_width=8, recurrence_width=8),
}
LATENTS = {
    "genesis-towers": {f"z_{part}_{k}" for part in ("mask", "component") for k in (1, 2, 3)},
    "vae-towers": {"s"},
    "gnm-towers": {"z_g_1", "z_g_2", "z_bg", "z_pres", "z_where", "z_depth", "z_what", "aux_pres", "aux_where"},
    "nvae-towers": {"z_1", "z_2", "z_3"},
    **dict.fromkeys(("genesis-v2-mog-towers", "genesis-v2-g-towers"), {"o_1", "o_2", "o_3"}),
}
WITH_SCENES = ("vae-towers", "nvae-towers", "gnm-towers")
WITHOUT_SLOTS = ("vae-towers", "nvae-towers")
every_system = pytest.mark.parametrize("name", SMALL)


def small(name, data):
    config = preset(name)
    train = Train(steps=4, batch_size=4, learning_rate=1e-3, log_every=2, checkpoint_every=2, preview_every=1)
    return replace(config, model=replace(config.model, **SMALL[name]), data=Data(path=str(data)), train=train)


@pytest.fixture
def without_pictures(monkeypatch):
    """The end of a run without numbers and pictures, which take seconds."""
    monkeypatch.setattr(sys.modules["experiments.fit"], "draw", lambda *_, **options: [])
    monkeypatch.setattr(sys.modules["experiments.fit"], "summarise", lambda held_out: {})


def weights_of(run):
    return load_file(run.checkpoints()[-1] / "weights.safetensors")


@every_system
def test_it_trains_comes_back_and_is_sampled(name, data, tmp_path, without_pictures):
    run = fit(small(name, data), runs_dir=tmp_path)
    [*_, row] = run.metrics()
    assert row["step"] == 4 and math.isfinite(row["loss"])
    assert {f"model/{site}" for site in LATENTS[name]} <= set(row)
    config, system, _ = load_run(run.folder)
    assert config == small(name, data) and list(system) == ["model"]
    samples = sample_scenes(system["model"], 3, 0.8)
    assert samples.image.shape == (3, 3, 32, 32) and torch.isfinite(samples.image).all()
    assert (samples.log_masks is None) == (name in WITHOUT_SLOTS)


def test_another_likelihood_keeps_the_estimate_of_the_kl():
    """The pair then minimises a plain ELBO, whose KL has one sample as before."""
    config = small("genesis-v2-g-towers", "towers.h5")
    [pair] = build(config, (3, 32, 32), likelihood=GaussianLikelihood(0.1)).values()
    assert type(pair.criterion) is FreeNatsELBO
    assert (pair.criterion.analytic_kl, pair.criterion.num_kl_samples) == (False, 1)


def test_a_vae_takes_another_scene_prior():
    [pair] = build(small("vae-towers", "towers.h5"), (3, 32, 32), scene_prior=NormalMixture(6, 3)).values()
    assert isinstance(pair.model.scene_prior, NormalMixture)
    terms = pair.criterion.terms(pair.model, pair.guide, torch.rand(4, 3, 32, 32))
    assert terms.kl["s"].shape == (4,) and torch.isfinite(terms.kl["s"]).all()


@pytest.mark.slow
@every_system
def test_a_stopped_run_ends_in_the_same_weights(name, data, tmp_path, monkeypatch, without_pictures):
    whole = fit(small(name, data), runs_dir=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop = lambda *_, step, **options: step == 2 and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        patch.setattr(sys.modules["experiments.fit"], "draw", stop)
        with pytest.raises(Interrupted):
            fit(small(name, data), runs_dir=tmp_path / "stopped")
    [folder] = (tmp_path / "stopped").iterdir()
    assert Run(folder).load_checkpoint()[0].step == 3
    fit(small(name, data), resume=folder)
    here, there = weights_of(Run(folder)), weights_of(whole)
    assert here.keys() == there.keys() and here
    assert not [tensor for tensor in here if not torch.equal(here[tensor], there[tensor])]


@pytest.mark.slow
@pytest.mark.timeout(600)
@every_system
def test_all_numbers_and_pictures(name, tmp_path):
    towers = replace(make_towers(88, seed=3), splits={"train": range(48), "test": range(48, 88)})
    data = tmp_path / "towers.h5"
    write_scenes(data, towers, source="tests", seed=3)
    run = fit(small(name, data), runs_dir=tmp_path / "runs")
    figures = {path.name for path in run.figures.iterdir()}
    assert figures >= {"reconstructions.png", "samples.png", "curves.png"}
    assert ("interpolation.png" in figures) == (name in WITH_SCENES)
    summary = json.loads((run.folder / "summary.json").read_text())
    numbers = ("rmse_model", "kl_model", "structure_samples")
    assert all(math.isfinite(summary[key]) for key in numbers)
    values = evaluate(run.folder, likelihood_images=2, likelihood_samples=2)
    assert all(math.isfinite(values[key]) for key in (*numbers, "elbo_model", "log_likelihood_model"))
    if name in WITHOUT_SLOTS:
        assert math.isfinite(values["dci_disentanglement"])
        assert 0 < values["kl_scene"] <= values["kl_model"] + 1e-6 and "kl_slots" not in values
        assert values["ari_fg_model"] == values["binding_largest"] == values["slot_order"] == "no masks"
        assert values["ari_fg_untrained"] == "no slots"
    else:
        assert ("kl_scene" in values) == (name in WITH_SCENES)
        assert values["kl_slots"] + values.get("kl_scene", 0.0) == pytest.approx(values["kl_model"])
        assert all(math.isfinite(values[key]) for key in ("ari_fg_model", "ari_fg_encoder", "slot_order"))


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_SCENES)
def test_the_commands_draw(name, data, tmp_path, command, without_pictures):
    import experiments.interpolate
    import experiments.retrieve
    import experiments.sample

    run = fit(small(name, data), runs_dir=tmp_path)
    code, out, err = command(experiments.interpolate.main, run.folder, "--frames", "2", "--steps", "3")
    assert code == 0, err
    code, out, err = command(experiments.sample.main, run.folder, "--num-scenes", "3")
    assert code == 0, err
    assert {"interpolation.gif", "samples-model-slots.png", "reconstructions-slots.png"} <= {
        path.name for path in run.figures.iterdir()
    }
    has_modes = name == "gnm-towers"
    code, out, err = command(experiments.sample.main, run.folder, "--num-scenes", "3", "--no-modes")
    assert (code == 0) == has_modes and ("--no-modes has no effect" in err) != has_modes
    code, out, err = command(experiments.retrieve.main, run.folder, "--queries", "0", "--num-scenes", "12")
    assert (code == 0) == has_modes, err


def test_samples_take_modes_unless_all_is_to_be_drawn():
    config = small("gnm-towers", "towers.h5")
    pair = build(config, (3, 32, 32))["model"]

    def latents(**options):
        torch.manual_seed(0)
        shown = []
        pair.model.render = lambda latents: shown.append(latents) or type(pair.model).render(pair.model, latents)
        sample_scenes(pair, 4, 1.0, **options)
        return shown[-1]

    by_modes, drawn = latents(), latents(by_modes=False)
    assert set(by_modes["z_pres"].unique().tolist()) <= {0.0, 1.0}
    assert 0 < drawn["z_pres"].min() and drawn["z_pres"].max() < 1


def test_batch_statistics_are_readjusted_on_a_copy(data, tmp_path, command, refusal, without_pictures):
    import experiments.sample

    run = fit(small("nvae-towers", data), runs_dir=tmp_path / "runs")
    code, out, err = command(experiments.sample.main, run.folder, "--num-scenes", "3", "--readjust", "2")
    assert code == 0, err
    held_out = HeldOut.open(run.folder, readjust=2)
    before = {name: tensor.clone() for name, tensor in held_out.final.model.state_dict().items()}
    [cold], [warm] = (list(held_out.samples(held_out.final, tau, "", num_scenes=4)) for tau in (0.7, 1.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in held_out.final.model.state_dict().items())
    held_out.readjust = 0
    [cold_before], [warm_before] = (list(held_out.samples(held_out.final, tau, "", num_scenes=4)) for tau in (0.7, 1.0))
    assert torch.equal(warm.image, warm_before.image) and not torch.equal(cold.image, cold_before.image)
    vae = fit(small("vae-towers", data), runs_dir=tmp_path / "runs")
    line = "--readjust has no effect on Vae, which normalises no batches"
    assert refusal(experiments.sample.main, vae.folder, "--readjust", "2") == line
