"""A look at images proposes options with reasons; options that are given stay; the run says what happened."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.adapt import ADAPTED, adapt, look
from experiments.systems import check
from experiments.systems.lom import OWN
from experiments.training import verdicts
from pyro_lom.data.hdf5 import write_scenes
from pyro_lom.errors import UserError
from pyro_lom.metrics.binding import Binding

RUN = "00000-lom-genesis-v2-own-seed0"


def discs(num_images=40, size=64, largest=4):
    """Images of 1 to `largest` flat discs on a flat ground, uint8."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:size, :size] / size
    images = np.empty((num_images, size, size, 3), np.uint8)
    for image in images:
        image[:] = rng.integers(90, 110)
        for corner in rng.choice(4, rng.integers(1, largest + 1), replace=False):
            middle = np.array([corner // 2, corner % 2]) / 2 + rng.uniform(0.2, 0.3, 2)
            image[np.hypot(row - middle[0], column - middle[1]) < 0.15] = rng.permutation([250, 120, 20])
    return images


def test_a_look_counts_segments():
    seen = look(discs())
    assert seen.num_images == 40
    assert seen.num_segments in (5, 6)  # four discs and a ground
    assert seen.explained > 0.97 and seen.rmse < 0.04 and 0 < seen.edges < 0.1
    assert look(discs(largest=1)).num_segments < seen.num_segments
    assert look(discs()) == seen
    noise = look(np.random.default_rng(0).integers(256, size=(20, 64, 64, 3), dtype=np.uint8))
    assert noise.explained < 0.4 and 0.55 < noise.edges < 0.65


def test_grey_and_large_images_can_be_looked_at():
    assert look(discs(4)[..., :1]).num_images == 4
    assert look(discs(2, size=128)).num_segments > 1


def test_every_value_has_a_reason():
    config, lines = adapt(OWN, discs())
    assert config.model.num_slots in (6, 7)
    assert (config.model.slot_dim, config.train.steps) == (16, 10_000)
    assert config.model.geco.target_rmse < OWN.model.geco.target_rmse
    assert config.model.geco.relax_at == pytest.approx(0.7 * config.model.first_steps(config.train), abs=1)
    for option in set(ADAPTED) - {"train.preview-every"}:
        value = config
        for name in option.replace("-", "_").split("."):
            value = getattr(value, name)
        assert any(line.startswith(f"--{option} {value}: ") for line in lines)


def test_stripes_are_no_segments_for_the_encoder_of_the_preset():
    assert (OWN.model.orderless.encoder, OWN.model.largest_scale) == ("parts", 1)
    images = discs()
    striped = images - np.uint8(80) * (images.max(-1, keepdims=True) > 110) * (
        np.arange(64)[:, None, None] // 3 % 2 == 1
    )
    regions = replace(OWN, model=replace(OWN.model, orderless=replace(OWN.model.orderless, encoder="regions")))
    (of_parts, _), (of_regions, _) = (adapt(config, striped.astype(np.uint8)) for config in (OWN, regions))
    assert of_parts.model.num_slots < of_regions.model.num_slots


def test_large_images_have_an_earlier_verdict():
    small, large = (adapt(OWN, discs(4, size=size)) for size in (64, 128))
    assert small[0].train.preview_every == OWN.train.preview_every > large[0].train.preview_every > 300
    line = f"--train.preview-every {large[0].train.preview_every}: the verdict on binding after about 4 minutes"
    assert line in large[1] and not any("preview" in line for line in small[1])


@pytest.mark.parametrize("deviation", [0, 8, 25])
def test_noise_is_measured_and_raises_the_target(deviation):
    images = discs()
    rng = np.random.default_rng(1)
    noisy = np.uint8((0.8 * images + rng.normal(20, deviation, images.shape)).round().clip(0, 255))
    assert look(noisy).noise == pytest.approx(deviation / 255, rel=0.1, abs=1e-6)
    clean, target = (adapt(OWN, some)[0].model.geco.target_rmse for some in (np.uint8(0.8 * images + 20), noisy))
    assert target == pytest.approx(np.hypot(clean, deviation / 255), rel=0.15)


def test_images_of_low_contrast_have_a_lower_target():
    images = discs()
    targets = [adapt(OWN, np.uint8(120 + share * images))[0].model.geco.target_rmse for share in (0.1, 0.5)]
    assert targets[0] < 0.003 and targets[0] < targets[1] / 2


def test_images_of_one_colour_have_a_target():
    config, _ = adapt(OWN, np.full((20, 64, 64, 3), 120, np.uint8))
    assert config.model.geco.target_rmse == 0.001
    check(config)


def test_few_images_are_one_batch():
    few, many = (adapt(OWN, images)[0].model.schedule for images in (discs(5), np.repeat(discs(1), 64, axis=0)))
    assert few == replace(OWN.model.schedule, ordered_batch_size=5)
    assert many == OWN.model.schedule


def test_other_options_stay():
    config, lines = adapt(OWN, discs(), ["train.steps"])
    assert config == replace(OWN, train=config.train)
    assert [line.split()[0] for line in lines] == ["looked", "--train.steps"]
    assert adapt(OWN, discs()[:0]) == (OWN, [])


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(UserError, match="^model.num_slots is not adapted to images: choose among model.num-slots, "):
        adapt(OWN, discs(), ["model.num_slots"])
    for size in (16, 100):
        with pytest.raises(UserError, match=f"^images are {size}x{size}, but models need"):
            adapt(OWN, discs(2, size=size))


def test_many_segments_get_more_slots_and_fewer_steps():
    colours = np.random.default_rng(0).integers(256, size=(20, 4, 4, 3), dtype=np.uint8)
    config, _ = adapt(OWN, colours.repeat(16, axis=1).repeat(16, axis=2))
    assert config.model.num_slots > 7 and config.model.slot_dim == 16
    assert config.train.steps < 10_000 and config.train.steps % 1000 == 0


@pytest.fixture
def tiny_own(towers, tmp_path):
    write_scenes(tmp_path / "own.h5", towers, source="tests", seed=3)
    return (
        "lom-genesis-v2-own --data.path own.h5 --data.image-size 32 --train.steps 6 --train.preview-every 2 "
        "--train.batch-size 4 --model.decoder-width 8 "
        "--model.orderless.encoder-width 8 --model.transformer-width 8 --model.num-slots=4"
    ).split()


def test_the_command_adapts_what_is_not_given(fit, tiny_own):
    code, _, err = fit(*tiny_own)
    assert code == 0, err
    config = json.loads(Path(f"runs/{RUN}/config.json").read_text())
    assert (config["model"]["num_slots"], config["train"]["steps"]) == (4, 6)
    assert f"--model.slot-dim {config['model']['slot_dim']}: " in err
    assert f"--model.geco.target-rmse {config['model']['geco']['target_rmse']}: " in err
    assert f"--model.schedule.ordered-batch-size {config['model']['schedule']['ordered_batch_size']}: all images" in err
    assert "--model.num-slots" not in err and "--train.steps" not in err
    relaxed = re.findall(r"by step (\d) the target of the (\w+) pair was relaxed to an RMSE of (0\.\d+)", err)
    (first, of_orderless, rmse), (second, of_ordered, same) = relaxed
    assert (of_orderless, of_ordered) == ("orderless", "ordered") and first < second and same == rmse
    log = Path(f"runs/{RUN}/log.txt").read_text()
    told = [line for line in err.splitlines() if line.startswith(("looked at", "--model", "by step"))]
    assert len(told) >= 4 and all(line in log for line in told)

    code, _, err = fit("--resume", f"runs/{RUN}")
    assert code == 0 and "looked at" not in err, err


@pytest.mark.parametrize(
    ("explained", "line"),
    [(0.9, "after step 2 slots seem to bind: smooth colours in segments explain 90%"), (0.2, "warning: after step 2 ")],
)
def test_the_first_preview_has_a_verdict(explained, line, fit, tiny_own, monkeypatch):
    signs = Binding(largest=0.5, stability=1.0, sameness=0.1, explained=explained, explainable=0.9, scattered=0.1)
    monkeypatch.setattr(verdicts, "signs_of_binding", lambda system, images: signs)
    code, _, err = fit(*tiny_own, "--train.steps", "2")
    assert code == 0 and err.count(line) == 1
    assert ("slots seem to bind" in err) == (explained == 0.9)
