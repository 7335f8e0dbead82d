"""interpolate.py: a strip and GIFs between samples of the prior, held-out scenes or files."""

import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pyro import poutine

from experiments.evaluation.held_out import HeldOut
from experiments.evaluation.reading import posterior_scenes, prior_scenes, render_scenes
from experiments.interpolate import main
from pyro_lom.data.minibatches import float_images


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "mine.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)).save(path)
    return path


def test_nothing_is_drawn_before_all_images_are_checked(run, refusal, monkeypatch):
    shutil.rmtree(run / "figures")
    monkeypatch.setattr(sys.modules["experiments.interpolate"], "random_walk", lambda *_: torch.full((2, 4, 32), 1e38))
    assert refusal(main, run).startswith("the images of the model are NaN or infinite, since its weights are too")
    assert not list(run.glob("figures/*"))


@pytest.mark.parametrize(
    ("options", "names", "paths"),
    [
        (["--num-paths", "2"], ["interpolation.png", "interpolation.gif", "random-walk.gif"], 2),
        (["--between", "3", "mine.png"], ["between.png", "between.gif"], 1),
    ],
)
def test_a_strip_and_gifs(command, run, picture, options, names, paths):
    code, out, err = command(main, run, *options, "--steps", "6", "--frames", "7")
    assert code == 0, err
    assert out.split() == [str(run / "figures" / name) for name in names]
    with Image.open(run / "figures" / names[0]) as strip:
        assert strip.width > 400
    for name in names[1:]:
        with Image.open(run / "figures" / name) as film:
            assert film.size == (32 * 4 * paths, 2 * 32 * 4) and 1 < film.n_frames <= 14


def test_scenes_are_drawn_at_prior_means(finished):
    pair = HeldOut.open(finished).system["ordered"]
    scenes = prior_scenes(pair, 4)
    assert scenes.shape == (4, 32)
    first, again = render_scenes(pair, scenes), render_scenes(pair, scenes)
    assert torch.equal(first.image, again.image)
    expected = pair.model.render({"z": pair.model.slot_prior(pair.model.order_net(scenes)).mean})
    torch.testing.assert_close(first.image, expected.image)


def test_images_are_joined_from_samples_of_the_posterior(finished):
    held_out = HeldOut.open(finished)
    pair, images = held_out.system["ordered"], float_images(held_out.scenes.images)
    torch.manual_seed(1)
    scenes = posterior_scenes(pair, images)
    torch.manual_seed(1)
    q = poutine.trace(pair.guide).get_trace(images).nodes["s"]["fn"]
    deviations = (scenes - q.mean.squeeze(-2)) / q.stddev.squeeze(-2)
    assert deviations.square().mean().item() == pytest.approx(1, abs=0.3)


def test_a_model_without_scenes_is_refused(refusal, alone):
    assert refusal(main, alone) == f"{alone} has no scene latent to interpolate: name a run of a LOM"


def test_mistakes(refusal, run):
    assert refusal(main, run, "--between", "3", "16") == "--between 16: held-out scenes go from 0 to 15"
    assert refusal(main, run, "--between", "3", "9" * 200).startswith("--between 999")
    assert refusal(main, run, "--between", "3", "²").startswith("cannot read image ²")
    assert refusal(main, run, "--frames", "1001") == "--frames is 1001: it must be from 1 to 1000"
    assert refusal(main, run, "--between", "3", "missing.png").startswith("cannot read image missing.png")
    assert refusal(main, run, "--stride", "1.5") == "--stride is 1.5: it must be 0 or more and below 1"
    assert refusal(main, "nowhere").startswith("nowhere is not a run folder")
