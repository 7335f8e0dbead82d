"""GNM with the weights and the draws of the published program has its outputs, losses and gradients.

`oracles/gnm.json` describes the numbers, which the published program computed in float64 on float32 weights.
"""

import json
from pathlib import Path

import pytest
import torch
from pyro import poutine
from safetensors.torch import load_file
from torch import nn

from experiments.systems.published import gnm
from guides.gnm import GnmGuide
from models.gnm import Gnm
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.gnm_elbo import GnmELBO
from pyro_lom.likelihoods import GaussianLikelihood
from pyro_lom.modes import modes
from pyro_lom.networks.gnm import (
    CellNet,
    ConvolutionalLSTM,
    ConvolutionStack,
    Perceptron,
    StructDraw,
    SubPixelDecoder,
    boxes,
)
from pyro_lom.objective import PairLoss
from pyro_lom.system import Pair

FOLDER = Path(__file__).parent / "oracles"
ORACLE = load_file(FOLDER / "gnm.safetensors")
FACTS = json.loads((FOLDER / "gnm.json").read_text(encoding="utf-8"))
NETWORKS = FACTS["configuration"]["arch"]
NUM_CELLS, T, C, G, WHAT, BACKGROUND = 4, 4, 16, 6, 8, 4
STEPS = {kind: FACTS["schedules"][kind]["step"] for kind in ("out", "early")}  # published steps count from 1
SCENE = [f"z_g_{t}" for t in range(1, T + 1)]
CELLS = ("pres", "where", "depth", "what")
NOISE = {
    **{f"z_g_{t}": f"0{t}_global_step_{t}" for t in range(1, T + 1)},
    **dict(z_bg="00_background_q", z_pres="06_pres_uniform", z_where="07_where", z_depth="08_depth", z_what="09_what"),
}
NOISE_OF_SAMPLES = {
    **{f"z_g_{t}": f"sample/0{t - 1}_global_step_{t}" for t in range(1, T + 1)},
    **dict(z_bg="sample/04_background_p", z_pres="sample/05_pres_uniform"),
    **dict(z_where="sample/06_where", z_depth="sample/07_depth", z_what="sample/08_what"),
}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str),
    pytest.mark.parametrize("mode", ["eval", "train"]),
]


@pytest.fixture
def one_thread():
    """As the published program: two threads add in another order, and KLs of z_g then differ by up to 1e-6 of 207."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class WithDraws(poutine.messenger.Messenger):
    """Latents have the oracle's noise."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg):
        name, fn = msg["name"], msg["fn"]
        if name not in self.noise or msg["value"] is not None:
            return
        noise = ORACLE[f"noise/{self.noise[name]}"].to(fn.mean)
        noise = (noise.flatten(2).mT if noise.ndim == 4 else noise).reshape(fn.shape())
        if name == "z_pres":
            relaxed = fn.base_dist
            msg["value"] = ((relaxed.logits + noise.logit()) / relaxed.relaxation).sigmoid()
        else:
            msg["value"] = fn.mean + fn.stddev * noise


def stages(name, factors):
    """Filters, kernels, and strides or factors of the layers."""
    facts = NETWORKS["conv"]
    return [*zip(facts[f"{name}_filters"], facts[f"{name}_kernel_sizes"], facts[f"{name}_{factors}"], strict=True)]


def fixture_pair():
    """The pair of the fixture, with random weights."""
    in_cells, widths = C * NUM_CELLS**2, NETWORKS["mlp"]
    model = Gnm(
        StructDraw(
            Perceptron(G, *widths["p_global_decoder_filters"], is_open=False),
            ConvolutionalLSTM(2 * C, C, NUM_CELLS),
            nn.Conv2d(C, C, 3, padding=1),
        ),
        global_prior=Perceptron(in_cells, *widths["p_global_encoder_filters"]),
        background_prior=Perceptron(T * G, *widths["p_bg_generator_filters"]),
        cells=CellNet(C, {"z_pres": 1, "z_where": 8, "z_depth": 2, "z_what": 2 * WHAT}),
        glimpse_decoder=SubPixelDecoder(WHAT, stages("p_what_decoder", "upscales")),
        background_decoder=SubPixelDecoder(BACKGROUND, stages("p_bg_decoder", "upscales")),
        likelihood=GaussianLikelihood(FACTS["configuration"]["const"]["likelihood_sigma"]),
        num_cells=NUM_CELLS,
        image_size=FACTS["configuration"]["image"],
        what_dim=WHAT,
        background_dim=BACKGROUND,
    )
    guide = GnmGuide(
        model,
        encoder=ConvolutionStack(3, stages("img_encoder", "strides")),
        recurrence=ConvolutionalLSTM(3 * C, C, NUM_CELLS),
        global_posterior=Perceptron(in_cells, *widths["q_global_encoder_filters"]),
        background_posterior=Perceptron(in_cells, *widths["q_bg_encoder_filters"]),
    )
    return Pair(model, guide, GnmELBO(model))


class Fixture:
    """The pair with the published weights at a published step, and the guide with the published draws."""

    def __init__(self, dtype, mode, kind="out"):
        pair = fixture_pair()
        self.loss = PairLoss("model", pair)
        names = [name for name, _ in self.loss.named_parameters()]
        numbers = {name: torch.tensor(number) for number, name in enumerate(names)}
        self.published = {names[number]: name for name, number in gnm(numbers).items()}
        weights = {name.removeprefix("weights/"): ORACLE[name] for name in ORACLE if name.startswith("weights/")}
        assert sorted(self.published.values()) == sorted(weights)
        self.loss.load_state_dict({ours: weights[name] for ours, name in self.published.items()}, strict=False)
        self.loss.to(dtype).train(mode == "train")
        self.images, self.model, self.criterion = ORACLE["images"].to(dtype), pair.model, pair.criterion
        self.encoder, self.recurrence = pair.guide.encoder, pair.guide.recurrence
        self.guide = WithDraws(NOISE)(pair.guide)
        for program in pair[:2]:
            program.step.fill_(STEPS[kind] - 1)

    def traces(self):
        guide = poutine.trace(self.guide).get_trace(self.images)
        return guide, poutine.trace(poutine.replay(self.model, trace=guide)).get_trace(self.images)

    def terms(self):
        return self.criterion.terms(self.model, self.guide, self.images)


def agree(found, kind, names=None):
    """In float64 to 1e-6 of the tensor's size, in float32 to 16 times the published program's own rounding error.

    That error was measured on one CPU. A CPU without AVX-512 adds in another order, and has up to 6 times the error. In
    the first steps, for which it is not known, float32 has 1e-4 of the tensor's size.
    """
    for name in names or found:
        expected, value = ORACLE[f"{kind}/{name}"].double(), found[name]
        assert value.shape == expected.shape, name
        size = expected.abs().max().item()
        tolerance = 1e-6 * size
        if value.dtype == torch.float32:  # at least 16 times the distance of neighbouring numbers
            rounding = FACTS["float32_deviation"].get(f"{kind}/{name}", 6e-6 * size)
            tolerance = 16 * max(rounding, torch.finfo(torch.float32).eps * size)
        assert (value.double() - expected).abs().max().item() <= tolerance, name


def in_rows(values):
    """From our (B, N, D) to (B, D, rows, columns)."""
    return values.mT.unflatten(-1, (NUM_CELLS, NUM_CELLS))


def scene_of(trace, moment=None):
    nodes = [trace.nodes[site] for site in SCENE]
    return torch.cat([getattr(node["fn"], moment) if moment else node["value"] for node in nodes], dim=1)


def moments(guide, model):
    found = {}
    for side, trace in (("q", guide), ("p", model)):
        fns = {name: trace.nodes[f"z_{name}"]["fn"] for name in (*CELLS, "bg")}
        found[f"cells/{side}_pres_logits"] = in_rows(fns["pres"].base_dist.logits)
        for moment, name in (("mean", "mean"), ("stddev", "std")):
            found[f"struct_draw/{side}_{name}"] = scene_of(trace, moment)
            found[f"background/{side}_{name}"] = getattr(fns["bg"], moment).squeeze(1)
            found |= {f"cells/{side}_{part}_{name}": in_rows(getattr(fns[part], moment)) for part in CELLS[1:]}
    return found


def latents(trace):
    values = {f"z_{name}": in_rows(trace.nodes[f"z_{name}"]["value"]) for name in CELLS}
    return values | {"z_where": in_rows(boxes(trace.nodes["z_where"]["value"], NUM_CELLS))}


def layers(model, trace):
    return model.paint({site: trace.nodes[site]["value"] for site in model.slot_sites})._asdict()


def drawings(fixture, guide):
    """The states of both memories and what is added to the canvas, after each step of StructDRAW."""
    features, steps = fixture.encoder(fixture.images), []
    drawing, memory = fixture.model.draw.start(), fixture.recurrence.start()
    for site in SCENE:
        before = drawing.canvas
        memory = fixture.recurrence(memory, features, features - before, drawing.memory.hidden)
        drawing = fixture.model.draw(drawing, guide.nodes[site]["value"].squeeze(1))
        steps.append((*memory, *drawing.memory, drawing.canvas - before))
    names = ("enc_h", "enc_c", "dec_h", "dec_c", "canvas_added")
    by_name = {name: torch.stack(maps, 1) for name, maps in zip(names, zip(*steps, strict=True), strict=True)}
    return {f"struct_draw/{name}": maps for name, maps in (by_name | {"canvas": drawing.canvas}).items()}


def kls(terms):
    found = {"kl/global": torch.stack([terms.kl[site] for site in SCENE], dim=1)}
    for name in (*CELLS, "bg"):
        found |= {f"kl/{name}": terms.kl[f"z_{name}"], f"kl/aux_{name}": terms.kl[f"aux_{name}"]}
    return found


def test_outputs(dtype, mode):
    fixture = Fixture(dtype, mode)
    guide, model = fixture.traces()
    glimpses = fixture.model.glimpse_decoder(guide.nodes["z_what"]["value"]).sigmoid()
    painted = layers(fixture.model, guide)
    found = {
        "image_encoding": fixture.encoder(fixture.images),
        **drawings(fixture, guide),
        **moments(guide, model),
        **{f"cells/{name}": value for name, value in latents(guide).items()},
        "cells/z_where_raw": in_rows(guide.nodes["z_where"]["value"]),
        "struct_draw/z": scene_of(guide),
        "cells/glimpse_colours": glimpses[:, :, :3],
        "cells/glimpse_alpha": glimpses[:, :, 3:],
        **{f"render/{name}": painted[name] for name in ("importance", "image", "foreground", "alpha", "background")},
    }
    terms = fixture.terms()
    found |= kls(terms) | {"log_likelihood": terms.log_likelihood["x"], "total_loss": fixture.criterion.combine(terms)}
    sampled = TraceScene_ELBO(analytic_kl=False, num_kl_samples=1).terms(fixture.model, fixture.guide, fixture.images)
    found |= {f"log_importance/{name}": -sampled.kl[f"z_{name}"] for name in (*CELLS, "bg")}
    found["log_importance/global"] = -sum(sampled.kl[site] for site in SCENE)
    others = ("out/sample", "out/gradients")
    assert {f"out/{name}" for name in found} == {n for n in ORACLE if n[:4] == "out/" and not n.startswith(others)}
    agree(found, "out")


def test_outputs_in_the_first_steps(dtype, mode):
    fixture = Fixture(dtype, mode, "early")
    guide, _ = fixture.traces()
    painted = layers(fixture.model, guide)
    assert torch.all(painted["alpha"] == torch.tensor(0.9, dtype=dtype))
    terms = fixture.terms()
    found = {
        **kls(terms),
        **{f"render/{name}": painted[name] for name in ("image", "foreground", "alpha")},
        "cells/z_pres": latents(guide)["z_pres"],
        "log_likelihood": terms.log_likelihood["x"],
        "total_loss": fixture.criterion.combine(terms),
    }
    assert {f"early/{name}" for name in found} == {n for n in ORACLE if n[:6] == "early/" and "gradients" not in n}
    agree(found, "early")


@pytest.mark.parametrize("kind", STEPS)
def test_gradients(dtype, mode, kind):
    fixture = Fixture(dtype, mode, kind)
    fixture.criterion.combine(fixture.terms()).backward()
    found = {f"gradients/{fixture.published[name]}": p.grad for name, p in fixture.loss.named_parameters()}
    agree(found, kind, [name for name in found if f"{kind}/{name}" in ORACLE])


@pytest.mark.parametrize("by_modes", [False, True])
def test_samples(dtype, mode, by_modes):
    fixture = Fixture(dtype, mode)
    with WithDraws(NOISE_OF_SAMPLES), modes(*fixture.model.mode_sites if by_modes else ()):
        trace = poutine.trace(fixture.model).get_trace(num_scenes=2)
    painted = layers(fixture.model, trace)
    found = {**latents(trace), "z_global": scene_of(trace)}
    found |= {name: painted[name] for name in ("image", "foreground", "alpha", "background")}
    torch.testing.assert_close(trace.nodes["x"]["fn"].mean.squeeze(1), found["image"])
    agree(found, "out/sample_of_modes" if by_modes else "out/sample")


@pytest.mark.parametrize("kind", STEPS)
def test_schedules(dtype, mode, kind):
    fixture, facts = Fixture(dtype, mode, kind), FACTS["schedules"][kind]
    step, annealing, betas = fixture.model.step, fixture.criterion.annealing, facts["betas"]
    found = {
        "tau": (fixture.model.relaxation.at(step), facts["tau"]),
        "presence": (annealing.presence.at(step + 1), facts["aux_pres_prior"]),
        "global": (annealing.global_weight.at(step), betas["global"]),
        "where": (annealing.where_weight.at(step), betas["aux_where"]),
        "bg": (annealing.background_weight.at(step), betas["aux_bg"]),
    }
    for name, (value, expected) in found.items():
        assert value.item() == pytest.approx(expected, rel=1e-6), name
