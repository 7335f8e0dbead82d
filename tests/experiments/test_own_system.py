"""A system that the package does not contain trains, is evaluated and is drawn by the same code as the others."""

import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from experiments import evaluate, fit, load_run, sample_scenes
from experiments.config import Config, Count, Data, Train, from_dict, to_dict
from experiments.systems import PRESETS, SYSTEMS, own_systems, preset
from experiments.systems.options import SystemOptions
from pyro_lom.data.hdf5 import write_scenes
from pyro_lom.data.towers import make_towers
from pyro_lom.distributions import GaussianHead
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.errors import UserError
from pyro_lom.likelihoods import GaussianLikelihood, observed
from pyro_lom.program import Guide, Model
from pyro_lom.system import Pair
from pyro_lom.training.runs import Run
from pyro_lom.training.trainer import Interrupted
from pyro_lom.types import Rendering

ROOT = Path(__file__).parents[2]

# The system: one latent per scene and a linear decoder. This file is also the module that commands import.


class ToyModel(Model):
    def __init__(self, image_shape, dim):
        super().__init__()
        self.image_shape, self.dim = image_shape, dim
        self.decoder = nn.Linear(dim, math.prod(image_shape))
        self.likelihood = GaussianLikelihood(0.3)

    def forward(self, images=None, *, num_scenes=1):
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            latent = pyro.sample("s", dist.Normal(torch.zeros(self.dim), 1.0).to_event(1))
            image = self.decoder(latent.squeeze(-2)).unflatten(-1, self.image_shape)
            pyro.sample("x", self.likelihood(Rendering(image)), obs=observed(images))


class ToyGuide(Guide):
    def __init__(self, model):
        super().__init__()
        self.borrow("model", model)
        self.posterior = GaussianHead(math.prod(model.image_shape), model.dim)

    def forward(self, images, *, inferred=None):
        with pyro.plate("scenes", len(images), dim=-2):
            pyro.sample("s", self.posterior(images.flatten(1).unsqueeze(-2)))


@dataclass(frozen=True)
class Toy(SystemOptions):
    kind: ClassVar[str] = "toy"

    dim: Count = 3
    """Dimensions of the latent."""

    def build(self, image_shape, train):
        model = ToyModel(image_shape, self.dim)
        return {"model": Pair(model, ToyGuide(model), TraceScene_ELBO())}


class SceneModel(ToyModel):
    scene_sites = ("s",)


@dataclass(frozen=True)
class SceneToy(SystemOptions):
    """The same system, whose model names its latent as that of a scene."""

    kind: ClassVar[str] = "scene-toy"

    def build(self, image_shape, train):
        model = SceneModel(image_shape, 4)
        return {"model": Pair(model, ToyGuide(model), TraceScene_ELBO())}


OWN = [Toy, SceneToy]
TRAIN = Train(steps=8, batch_size=8, learning_rate=1e-2, log_every=2, checkpoint_every=4)
OPTIONS = "--train.steps 8 --train.batch-size 8 --train.learning-rate 0.01 --train.log-every 2".split()
NAME = "00000-toy-seed0"
CHEAP = "ari baselines covering binding reconstruction kl likelihood structure fd-pca64 slot-order".split()


@pytest.fixture(scope="module")
def towers_path(tmp_path_factory):
    """64 scenes to train on, and 72 held-out ones: enough for 64 principal components."""
    towers = replace(make_towers(136, seed=4), splits={"train": range(64), "test": range(64, 136)})
    path = tmp_path_factory.mktemp("own") / "towers.h5"
    write_scenes(path, towers, source="tests", seed=4)
    return path


@pytest.fixture(scope="module")
def config(towers_path):
    return Config(preset="toy", model=Toy(), data=Data(path=str(towers_path)), train=TRAIN)


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    return fit(config, systems=[Toy], runs_dir=tmp_path_factory.mktemp("runs")).folder


@pytest.fixture(scope="module")
def trained_scenes(config, tmp_path_factory):
    """The folder of a run of the system with a scene latent."""
    config = replace(config, preset="scene-toy", model=SceneToy())
    return fit(config, systems=[SceneToy], runs_dir=tmp_path_factory.mktemp("runs")).folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "runs" / trained.name)


@pytest.fixture
def scene_run(trained_scenes, tmp_path):
    return shutil.copytree(trained_scenes, tmp_path / "runs" / trained_scenes.name)


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    """The name of a module in the folder in which commands run; this process has not imported it yet."""
    shutil.copy(__file__, tmp_path / "my_module.py")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    importlib.invalidate_caches()
    yield "my_module"
    sys.modules.pop("my_module", None)


def main_of(command):
    return importlib.import_module(f"experiments.{command}").main


def weights_of(folder):
    return load_file(Run(folder).checkpoints()[-1] / "weights.safetensors")


# The functions.


def test_a_run_has_everything_but_what_needs_slots(trained):
    assert trained.name == NAME
    figures = {path.name for path in (trained / "figures").iterdir()}
    assert figures == {"reconstructions.png", "samples.png", "curves.png"}
    assert json.loads((trained / "config.json").read_text())["model"] == {"kind": "toy", "dim": 3}
    summary = json.loads((trained / "summary.json").read_text())
    numbers = ("rmse_model", "explained_variance_model", "kl_model", "structure_samples", "fd_pca64_samples")
    assert all(math.isfinite(summary[key]) for key in (*numbers, "train_minutes", "parameters"))
    without = {key for key, value in summary.items() if value is None}
    assert without == {"ari_fg_model", "ari_all_model", "ari_fg_kmeans_rgb", "ari_fg_untrained", "binding_largest"}
    assert not any("slots" in key or "scene" in key for key in summary)
    rows = Run(trained).metrics()
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert {"loss", "model/x", "model/s"} <= set(rows[-1]) and "model/multiplier" not in rows[-1]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["model/x"] + rows[-1]["model/s"])  # a plain ELBO


def test_training_lowers_the_loss(config, tmp_path):
    run = fit(replace(config, train=replace(TRAIN, steps=60)), systems=[Toy], runs_dir=tmp_path)
    losses = [row["loss"] for row in run.metrics()]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_stopped_run_ends_in_the_same_weights(stop_at, config, trained, tmp_path, monkeypatch):
    config = replace(config, train=replace(TRAIN, preview_every=1))
    with monkeypatch.context() as patch:
        stop = lambda *_, step, **options: step == stop_at and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        patch.setattr(sys.modules["experiments.fit"], "draw", stop)
        with pytest.raises(Interrupted, match=f"^stopped by SIGTERM after step {stop_at + 1}, and saved"):
            fit(config, systems=[Toy], runs_dir=tmp_path)
    folder = tmp_path / NAME
    assert not (folder / "summary.json").exists()
    assert Run(folder).load_checkpoint()[0].step == stop_at + 1
    monkeypatch.setattr(sys.modules["experiments.fit"], "draw", lambda *_, **options: [])
    fit(config, systems=[Toy], resume=folder)
    here, there = weights_of(folder), weights_of(trained)
    assert here.keys() == there.keys() and here
    assert not [name for name in here if not torch.equal(here[name], there[name])]
    assert (folder / "summary.json").exists()


def test_a_run_comes_back(trained, config):
    found, system, scenes = load_run(trained, systems=[Toy])
    assert found == config and list(system) == ["model"] and len(scenes.images) == 136
    assert torch.equal(system["model"].model.decoder.weight, weights_of(trained)["pairs.model.model.decoder.weight"])
    assert not system["model"].model.training and int(system["model"].guide.step) == 8
    assert from_dict(json.loads(json.dumps(to_dict(config))), [*SYSTEMS, Toy]) == config


def test_samples_are_means_of_the_image(trained):
    pair = load_run(trained, systems=[Toy])[1]["model"]
    samples = sample_scenes(pair, 5, 0.8)
    assert samples.image.shape == (5, 3, 32, 32)
    assert samples.components is None and samples.log_masks is None
    bias = pair.model.decoder.bias.unflatten(0, (3, 32, 32))
    assert torch.allclose(sample_scenes(pair, 5, 1e-6).image, bias.expand(5, -1, -1, -1), atol=1e-4)
    latents = torch.randn(2, 1, 3)  # a model that draws no latents of its own is run with the ones that are given
    image = pair.model.decoder(latents.squeeze(-2)).unflatten(-1, (3, 32, 32))
    assert torch.allclose(pair.model.render({"s": latents}).image, image)


def test_numbers_of_a_system_without_masks(run):
    values = evaluate(run, systems=[Toy], num_images=72, likelihood_images=4, likelihood_samples=2)
    sets = ("samples", "samples_tau1")
    numbers = ["rmse_model", "kl_model", "elbo_model", "log_likelihood_model"]
    numbers += [f"{name}_{of}" for name in ("structure", "fd_pca64") for of in sets]
    assert all(math.isfinite(values[key]) for key in (*numbers, "structure_real", "structure_cut_and_paste"))
    assert values["structure_real"] == 1
    masks = ("ari_fg_model", "ari_all_model", "mean_iou_model", "sc_model", "msc_model", "binding_largest")
    assert {values[key] for key in (*masks, "slot_order")} == {"no masks"}
    slots = ("ari_fg_kmeans_rgb", "ari_fg_untrained", "dci_disentanglement")
    assert {values[key] for key in slots} == {"no slots"}
    assert not {"kl_scene", "kl_slots", "structure_shuffled_posterior", "fd_pca64_shuffled_posterior"} & set(values)
    found = json.loads((run / "evaluation.json").read_text())
    assert found["ari"]["values"] == {"ari_fg_model": "no masks", "ari_all_model": "no masks"}
    assert evaluate(run, systems=[Toy], num_images=72, likelihood_images=4, likelihood_samples=2) == values


def test_few_images_leave_out_principal_components(run, capfd):
    values = evaluate(run, systems=[Toy], num_images=16, likelihood_images=4, likelihood_samples=2)
    assert "fd_pca64_samples" not in values and math.isfinite(values["rmse_model"])
    assert f"{run}: fd-pca64 not computed: 64 principal components need at least 65 images" in capfd.readouterr().err


def test_a_scene_latent_has_a_kl_of_its_own(scene_run):
    values = evaluate(scene_run, systems=[SceneToy], metrics=["kl"])
    assert values["kl_scene"] == pytest.approx(values["kl_model"]) and "kl_slots" not in values
    assert (scene_run / "figures" / "interpolation.png").exists()


def test_the_kind_is_a_preset():
    assert preset("toy", OWN) == Config(preset="toy", model=Toy())
    with pytest.raises(UserError, match="^there is no preset 'nope'; choose one of toy, scene-toy, lom-genesis-v2-t"):
        preset("nope", OWN)
    assert "toy" not in PRESETS and Toy not in SYSTEMS


# The commands.


def test_the_command_trains_a_system_of_ones_own(command, my_module, towers_path, trained):
    arguments = ["toy", "--systems", my_module, "--data.path", towers_path, *OPTIONS]
    code, out, err = command(main_of("fit"), *arguments, "--train.checkpoint-every", "4")
    assert code == 0, err
    assert re.search(r"^RMSE ↓, per pixel and channel +model \d\.\d{3}$", out, re.MULTILINE)
    assert "None" not in out and "nan" not in out and "ARI" not in out
    here, there = weights_of(Path("runs") / NAME), weights_of(trained)
    assert not [name for name in there if not torch.equal(here[name], there[name])]
    assert json.loads((Path("runs") / NAME / "config.json").read_text())["model"] == {"kind": "toy", "dim": 3}
    assert "my_module" not in (Path("runs") / NAME / "config.json").read_text()

    (Path("runs") / NAME / "summary.json").unlink()
    code, out, err = command(main_of("fit"), "--resume", f"runs/{NAME}", "--systems", my_module)
    assert code == 0, err
    assert (Path("runs") / NAME / "summary.json").exists()


def test_options_of_ones_own(command, refusal, my_module, towers_path):
    toy = ["toy", f"--systems={my_module}", "--data.path", towers_path]
    code, out, err = command(main_of("fit"), *toy, "--model.dim", "7", "--dry-run")
    assert (code, err) == (0, "")
    assert json.loads(out.partition("\n\n")[0])["model"] == {"kind": "toy", "dim": 7}
    assert "model guide.posterior" in out
    assert refusal(main_of("fit"), *toy, "--model.dim", "0") == "--model.dim is 0: it must be from 1 to 1000000000"
    assert refusal(main_of("fit"), *toy, "--model.num-slots", "3").startswith(
        "--model.num-slots is no option of toy: it belongs to the systems autoregressive, emorl, genesis, genesis-v2, "
    )
    code, out, _ = command(main_of("fit"), *toy, "--help")
    assert code in (0, None) and "--model.dim" in out and "Dimensions of the latent." in out


def test_cells_without_masks_have_the_reason(command, run, my_module):
    options = ["--systems", my_module, "--likelihood-images", "4", "--likelihood-samples", "2"]
    code, out, err = command(main_of("evaluate"), run, *options, "--metrics", *CHEAP)
    assert code == 0, err
    tables = out.partition("**Made by**")[0]
    for head, column, cell in (
        ("Samples and segmentation", "ARI-FG ↑, model decoder", "no masks"),
        ("Samples and segmentation", "FD-PCA64 ↓, samples", None),
        ("Reconstruction", "RMSE ↓, model (per pixel and channel)", None),
        ("Structure", "structure ↑, samples", None),
        ("Likelihood", "log p(x) ↑, model", None),
        ("KL", "KL, model", None),
        ("Segmentation", "ARI ↑, model decoder", "no masks"),
    ):
        table = re.search(rf"\*\*{head}.*?\*\*\n\n(.*?)(\n\n|$)", tables, re.DOTALL).group(1).splitlines()
        names, _, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
        found = dict(zip(names, cells, strict=True))
        assert (found["model"], found["runs"], found["images (N)"]) == ("toy", "1", "72")
        if cell is None:
            assert re.fullmatch(r"-?[\d,]+\.\d+", found[column]), found
        else:
            assert found[column] == cell
    assert f"python experiments/evaluate.py {run} " in out and "--systems my_module" in out


def test_the_page_of_a_run(command, run):
    evaluate(run, systems=[Toy], metrics=["ari", "reconstruction"])
    code, out, err = command(main_of("report"), run)
    assert code == 0, err
    page = (run / "report.html").read_text()
    assert out.startswith(f"{run}/report.html") and "no masks" in page and "RMSE ↓, model" in page
    assert page.count("<img") == 3 and "toy" in page


def test_pictures_without_slots(command, run, my_module):
    code, out, err = command(main_of("sample"), run, "--systems", my_module, "--num-scenes", "3")
    assert code == 0, err
    names = [Path(line).name for line in out.splitlines()]
    assert names == ["samples-model-slots.png", "reconstructions-slots.png"]
    for name in names:
        Image.open(run / "figures" / name).load()


def test_a_sweep_over_temperatures(command, run, my_module):
    options = ["--systems", my_module, "--sweep", "--features", "pca64"]
    code, out, err = command(main_of("sample"), run, *options)
    assert code == 0, err
    assert "| toy " in out and Path("temperature-sweep.png").exists()


def test_there_is_no_scene_to_interpolate(refusal, run, my_module):
    line = refusal(main_of("interpolate"), run, "--systems", my_module)
    assert line == f"{run} has no scene latent to interpolate: name a run of a LOM"
    line = refusal(main_of("retrieve"), run, "--systems", my_module)
    assert line == f"{run} has no scene latent and slots to search by: name a run of a LOM"


def test_a_sheet_of_stacks_needs_masks(command, run, my_module):
    options = ["--systems", my_module, "--metrics", "kl", "--sheet", "3"]
    code, out, err = command(main_of("evaluate"), run, *options)
    assert (code, out) == (2, "") and err.endswith(f"error: {run}: --sheet needs masks, and this system has none\n")
    assert not (run / "stacks.csv").exists()


def test_a_scene_latent_is_interpolated(command, scene_run, my_module):
    options = ["--systems", my_module, "--frames", "3", "--num-paths", "2"]
    code, out, err = command(main_of("interpolate"), scene_run, *options)
    assert code == 0, err
    names = [Path(line).name for line in out.splitlines()]
    assert names == ["interpolation.png", "interpolation.gif", "random-walk.gif"]
    with Image.open(scene_run / "figures" / "interpolation.gif") as film:
        assert film.width == 2 * film.height  # two paths side by side, and no masks below
    code, out, err = command(main_of("interpolate"), scene_run, *options, "--between", "0", "3")
    assert code == 0, err
    assert [Path(line).name for line in out.splitlines()] == ["between.png", "between.gif"]


@pytest.mark.parametrize("name", ["evaluate", "sample", "interpolate", "retrieve"])
def test_without_its_module_a_run_is_refused(name, refusal, run):
    line = refusal(main_of(name), run)
    assert line.startswith(f"{run}/config.json: model: there is no system 'toy'; pass its class by systems=[...]")


def test_without_its_module_nothing_else_goes(refusal, run, towers_path):
    line = f"{run}/config.json: model: there is no system 'toy'; pass its class by systems=[...]"
    with pytest.raises(UserError, match=re.escape(line)):
        load_run(run)
    with pytest.raises(UserError, match=re.escape(line)):
        load_run(run, systems=[SceneToy])
    with pytest.raises(UserError, match=re.escape(line)):
        evaluate(run)
    assert refusal(main_of("fit"), "--resume", run).startswith(line)
    assert refusal(main_of("fit"), "toy").startswith("there is no preset 'toy'; choose one of lom-genesis-v2-towers, ")


def test_modules_that_are_none(refusal, run, tmp_path):
    for arguments in ((main_of("fit"), "toy"), (main_of("evaluate"), run), (main_of("sample"), run)):
        line = refusal(*arguments, "--systems", "not_there")
        assert line.startswith("--systems not_there cannot be imported: No module named 'not_there'; run in the ")
        line = refusal(*arguments, "--systems", "json")
        assert line == "--systems json: the module defines no subclass of SystemOptions with a kind"
    assert own_systems(None) == ()


@pytest.mark.parametrize("name", ["", ".x", "..", "a b", "json."])
def test_names_that_no_module_has(refusal, name):
    assert refusal(main_of("fit"), "toy", "--systems", name).startswith(f"--systems {name} cannot be imported: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"1 / 0", "ZeroDivisionError: division by zero ({place}:1)"),
        (b"\n\nraise OSError('no')", "OSError: no ({place}:3)"),
        (b"def f(:", "SyntaxError: "),
        (b"x = '\xff'", "SyntaxError: "),
        (b"import torch.nothing_here", "No module named 'torch.nothing_here'"),
    ],
)
def test_modules_that_fail(refusal, tmp_path, monkeypatch, text, reason):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing.py").write_bytes(text)
    line = refusal(main_of("fit"), "toy", "--systems", "failing")
    assert line.startswith(f"--systems failing cannot be imported: {reason.format(place=tmp_path / 'failing.py')}")


def test_systems_of_a_module_are_its_own(my_module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert [kind.__name__ for kind in own_systems(my_module)] == ["Toy", "SceneToy"]  # nothing that it imports


@pytest.mark.slow
def test_the_file_of_the_command_finds_the_module(my_module, towers_path, trained, tmp_path):
    """Python looks for modules where the script is, not where it was started."""

    def process(name, *arguments):
        command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *map(str, arguments)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    process("fit", "toy", "--systems", my_module, "--data.path", towers_path, *OPTIONS)
    folder = tmp_path / "runs" / NAME
    assert weights_of(folder).keys() == weights_of(trained).keys()
    assert "RMSE" in process("evaluate", folder, "--systems", my_module, "--metrics", "reconstruction")
