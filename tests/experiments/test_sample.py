"""sample.py: pictures slot by slot, and a sweep whose distances are not computed twice."""

import json
import shutil
import sys

import pytest
from PIL import Image

from experiments.evaluation.words import QUANTITIES
from experiments.sample import main


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


def test_pictures(command, run, alone, tmp_path):
    other = shutil.copytree(alone, tmp_path / "alone")
    code, out, _ = command(main, run, other, "--num-scenes", "5")
    assert code == 0
    names = ["samples-ordered-slots", "samples-orderless-slots", "reconstructions-slots"]
    expected = [run / "figures" / f"{name}.png" for name in names]
    expected += [other / "figures" / f"{name}.png" for name in ("samples-model-slots", "reconstructions-slots")]
    assert out.split() == [str(path) for path in expected]
    for path in expected:
        with Image.open(path) as image:
            assert image.width > 400 and len(image.convert("L").getcolors()) > 20


@pytest.mark.slow
def test_a_sweep(command, run, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    code, out, err = command(main, run, "--sweep", "--output", tmp_path / "sweep.png")
    assert code == 0, err
    found = json.loads((run / "evaluation.json").read_text())["sweep-efficientnet"]
    assert list(found["values"]) == ["0.6", "0.7", "0.8", "0.9", "1"]
    assert all(value > 0 for value in found["values"].values())
    assert f"**{QUANTITIES['fd_efficientnet'].title} of samples by temperature**" in out and "tau = 0.6" in out
    with Image.open(tmp_path / "sweep.png") as image:
        image.verify()
    monkeypatch.setattr(
        sys.modules["experiments.sample"], "frechet_distances", lambda *_: pytest.fail("computed twice")
    )
    assert command(main, run, "--sweep", "--output", tmp_path / "sweep.png")[:2] == (0, out)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "name one or more run folders: sample.py runs/00000-..."),
        (["nowhere"], "nowhere is not a run folder: it has no config.json; name one like runs/00000-..."),
        (["--temperature", "0"], "--temperature is 0.0: it must be a finite number above 0, at most 1e30"),
        (["--num-scenes", "101"], "--num-scenes is 101: it must be from 1 to 100"),
    ],
)
def test_mistakes(arguments, line, refusal):
    assert refusal(main, *arguments) == line


def test_weights_that_render_no_images(refusal, huge):
    assert refusal(main, huge).startswith("the images of the model are NaN or infinite, since its weights are too")


def test_pictures_are_drawn_after_all_checks(refusal, filled):
    run = filled("ordered.guide.order_net.", 3e38)  # samples are finite, reconstructions are not
    shutil.rmtree(run / "figures")
    assert refusal(main, run).startswith("the images of the model are NaN or infinite, since its weights are too")
    assert not list(run.glob("figures/*"))


def test_a_sweep_with_nowhere_to_go_is_refused_before_it_starts(refusal, run):
    line = refusal(main, run, "--sweep", "--output", "missing/sweep.png")
    assert line == "--output missing/sweep.png: name a file in a folder that exists"


def test_modes_that_have_no_effect_are_refused(refusal, run):
    line = refusal(main, run, "--sweep", "--no-modes")
    assert line == "--no-modes has no effect on --sweep, whose samples are those of tables: leave it out"
    line = refusal(main, run, "--no-modes")
    assert line == f"{run}: --no-modes has no effect, since this system draws all latents anyway: leave it out"
