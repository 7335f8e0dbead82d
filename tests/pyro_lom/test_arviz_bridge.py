"""Groups of the right shape and content, statistics by hand, and p-values that tell a misfit from a fit."""

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from tiny import (
    COMPONENT_DIM,
    IMAGE_SHAPE,
    LATENTS,
    NUM_SLOTS,
    SCENE_DIM,
    SLOT_DIM,
    WITH_SLOTS,
    Programs,
    tiny_images,
    tiny_pair,
)

from pyro_lom.arviz_bridge import STATISTICS, _from_dict, bayesian_p_values, inference_data, reconstruction_error
from pyro_lom.errors import UserError

B, DRAWS = 3, 4


def shapes_of(system):
    def shape_of(name):
        if name == "s":
            return (SCENE_DIM,)
        if name.startswith("z_component"):
            return (COMPONENT_DIM,)
        return (NUM_SLOTS, SLOT_DIM) if name in ("z", "o") or system == "emorl" else (SLOT_DIM,)

    return {name: (1, DRAWS, B, *shape_of(name)) for name in LATENTS[system]}


def redness(images, segments):
    return images[:, 0].mean((1, 2))


@pytest.fixture(scope="module")
def lom():
    return Programs(*(program.eval() for program in tiny_pair()))


@pytest.fixture(scope="module")
def data(lom):
    torch.manual_seed(0)
    return inference_data(*lom, tiny_images(B), num_draws=DRAWS, statistics=STATISTICS | {"redness": redness})


@pytest.mark.parametrize("system", WITH_SLOTS)
def test_groups_and_shapes(system):
    data = inference_data(*(program.eval() for program in tiny_pair(system)), tiny_images(B), num_draws=DRAWS)
    for group in ("prior", "posterior"):
        shapes = {name: values.shape for name, values in data[group].data_vars.items()}
        assert shapes == shapes_of(system)
    for group in ("prior_predictive", "posterior_predictive"):
        assert {name: values.shape for name, values in data[group].data_vars.items()} == {
            name: (1, DRAWS, B) for name in STATISTICS
        }
    assert {name: values.shape for name, values in data["observed_data"].data_vars.items()} == {
        name: (B,) for name in STATISTICS
    }
    assert data["log_likelihood"]["x"].shape == (1, DRAWS, B)


def test_coordinates_have_names(data):
    assert data["posterior"]["z"].dims == ("chain", "draw", "scene", "slot", "z_dim")
    assert data["posterior"]["s"].dims == ("chain", "draw", "scene", "s_dim")
    assert data["prior_predictive"]["brightness"].dims == ("chain", "draw", "scene")
    assert data["observed_data"]["brightness"].dims == ("scene",)
    assert data["posterior"]["z"].sel(scene=1, slot=2).shape == (1, DRAWS, SLOT_DIM)


def test_values_are_those_of_the_programs(lom):
    images = tiny_images(B)
    torch.manual_seed(5)
    data = inference_data(*lom, images, num_draws=1, statistics={"redness": redness})
    torch.manual_seed(5)
    prior = poutine.trace(lom.model).get_trace(num_scenes=B)
    np.testing.assert_array_equal(data["prior"]["z"][0, 0], prior.nodes["z"]["value"].detach())
    np.testing.assert_allclose(data["prior_predictive"]["redness"][0, 0], mean_red(prior), rtol=1e-5)
    np.testing.assert_allclose(data["observed_data"]["redness"], images[:, 0].mean((1, 2)), rtol=1e-5)
    slots = torch.from_numpy(data["posterior"]["z"].values[0, 0])
    mean = lom.model.render({"z": slots}).image.detach()
    np.testing.assert_allclose(data["posterior_predictive"]["redness"][0, 0], mean[:, 0].mean((1, 2)), rtol=1e-4)
    expected = dist.Normal(mean, 0.7).to_event(3).log_prob(images)
    np.testing.assert_allclose(data["log_likelihood"]["x"][0, 0], expected, rtol=1e-5)


def mean_red(trace):
    return trace.nodes["x"]["fn"].mean.detach()[:, 0, 0].mean((1, 2))


def test_it_survives_the_disk(data, tmp_path):
    path = tmp_path / "scenes.nc"
    data.to_netcdf(path, engine="h5netcdf")
    loaded = az.from_netcdf(path)
    for group in ("prior", "posterior", "prior_predictive", "posterior_predictive", "observed_data", "log_likelihood"):
        for name, values in data[group].data_vars.items():
            np.testing.assert_array_equal(loaded[group][name], values)


def test_arviz_draws_and_summarises_it(data):
    assert "redness" in az.summary(data, group="posterior_predictive", kind="stats").index[-1]


@pytest.mark.skipif(not hasattr(az, "plot_ppc"), reason="ArviZ 1 has other plots")
def test_arviz_plots_the_observed_and_the_predicted_statistics(data):
    """Numbers of slots and objects are integers: ArviZ draws histograms of these, and fails on their densities."""
    for group in ("prior_predictive", "posterior_predictive", "observed_data"):
        for name in STATISTICS:
            kind = "i" if name in ("active_slots", "num_objects") else "f"
            assert data[group][name].dtype.kind == kind
    axes = az.plot_ppc(data, group="prior", var_names=list(STATISTICS), num_pp_samples=2, random_seed=0)
    assert [axis.get_xlabel() for axis in axes.flat if axis.has_data()] == list(STATISTICS)
    plt.close("all")


@pytest.mark.parametrize(
    ("name", "statistic", "message"),
    [
        (
            "mean",
            lambda images, segments: images.mean(),
            r"the statistic mean of 3 images is \(\): return one value per image",
        ),
        ("mean", lambda images, segments: 0.5, "the statistic mean of 3 images is float: return one value per image"),
        ("mean", lambda images, segments: images.mean((2, 3)), r"the statistic mean of 3 images is \(3, 3\): return"),
        ("z", redness, "the statistic z has the name of a site or of a dimension: give it another name"),
        ("scene", redness, "the statistic scene has the name of a site or of a dimension"),
    ],
)
def test_statistics_that_arviz_cannot_hold_are_refused(lom, name, statistic, message):
    with pytest.raises(UserError, match=message):
        inference_data(*lom, tiny_images(B), num_draws=1, statistics={name: statistic})


def test_a_guide_without_masks_is_refused(lom):
    with pytest.raises(UserError, match="AutoNormal has no masks, which statistics need: pass the guide"):
        inference_data(lom.model, AutoNormal(lom.model), tiny_images(B), num_draws=1)
    guide = tiny_pair().guide.eval()
    guide.log_masks = lambda inferred: None
    with pytest.raises(UserError, match="LatentObjectGuide has no masks"):
        inference_data(guide.model.eval(), guide, tiny_images(B), num_draws=1)


def test_reconstruction_error_is_that_of_the_pair(lom):
    images = tiny_images(B)
    torch.manual_seed(5)
    error = reconstruction_error(*lom)(images, torch.zeros(B, 32, 32, dtype=torch.long))
    torch.manual_seed(5)
    explained = lom.model.render({"z": lom.guide(images).slots}).image
    torch.testing.assert_close(error, (explained - images).square().mean((1, 2, 3)).sqrt())


class TestStatistics:
    """A tower of two blocks, 6 rows high in all, in front of a wall and a floor that reach the edges."""

    images = torch.zeros(1, *IMAGE_SHAPE)
    images[:, 0, :20] = 0.6
    segments = torch.zeros(1, 32, 32, dtype=torch.long)
    segments[:, 20:] = 4
    segments[:, 16:19, 10:18] = 1
    segments[:, 19:22, 10:16] = 2
    segments[:, 5, 5] = 3

    def test_by_hand(self):
        values = {name: statistic(self.images, self.segments).item() for name, statistic in STATISTICS.items()}
        red = self.images[0].numpy()
        assert values == pytest.approx(
            {
                "brightness": red.mean(),
                "contrast": red.std(ddof=1),
                "detail": 0.6 * 32 / (3 * 31 * 32),
                "active_slots": 4,
                "num_objects": 2,
                "mask_area": (24 + 18) / 2 / 1024,
                "stack_height": 6 / 32,
            },
            rel=1e-5,
        )

    def test_an_empty_scene(self):
        values = {name: f(self.images, torch.zeros_like(self.segments)).item() for name, f in STATISTICS.items()}
        assert (values["active_slots"], values["num_objects"]) == (1, 0)
        assert (values["mask_area"], values["stack_height"]) == (0, 0)

    @pytest.mark.parametrize("name", STATISTICS)
    def test_a_scene_does_not_depend_on_the_others(self, name):
        images, segments = torch.rand(5, *IMAGE_SHAPE), torch.randint(4, (5, 32, 32))
        segments[0] = 7
        together = STATISTICS[name](images, segments)
        alone = torch.cat([STATISTICS[name](images[b : b + 1], segments[b : b + 1]) for b in range(5)])
        torch.testing.assert_close(together, alone)


class TestPValues:
    def p_values(self, predicted, observed):
        groups = {"prior_predictive": {"height": predicted[None]}, "observed_data": {"height": observed}}
        return bayesian_p_values(_from_dict(groups, {"scene": np.arange(len(observed))}, {"height": ["scene"]}))

    @pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.5), (5.0, 0.0), (-5.0, 1.0)])
    def test_normal_scenes(self, shift, expected):
        rng = np.random.default_rng(0)
        p = self.p_values(rng.normal(size=(200, 50)), rng.normal(size=50) + shift)["height"]
        assert p == pytest.approx(expected, abs=0.08)

    def test_ties_count_half(self):
        assert self.p_values(np.ones((10, 3)), np.ones(3))["height"] == 0.5
