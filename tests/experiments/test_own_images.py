"""Images that a person brings: what the commands say about them, and arrays that are passed in Python."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import evaluate, load_run
from experiments.config import Data
from experiments.data import main as data_main
from experiments.evaluate import main as evaluate_main
from experiments.fit import fit as train
from experiments.fit import main as fit_main
from experiments.fit import parse
from experiments.loading import read_data, remarks
from pyro_lom.data.arrays import scenes_of
from pyro_lom.data.hdf5 import read_scenes, write_scenes
from pyro_lom.errors import UserError
from pyro_lom.training.runs import Run

TINY = (
    "genesis-v2-towers --train.steps 2 --train.batch-size 4 --train.checkpoint-every 1 --model.num-slots 3 "
    "--model.decoder-width 8 --model.encoder-width 8"
).split()
FEW = "warning: 18 scenes to train on are few: below 1,000, a model may learn them by heart; see the gap"


@pytest.fixture
def folder(tmp_path, towers):
    """Images that are not square, with transparent corners, masks and depth maps beside them."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for k in range(20):
        image = Image.fromarray(towers.images[k]).resize((60, 45)).convert("RGBA")
        image.paste((0, 0, 0, 0), (0, 0, 9, 9))
        image.save(folder / f"S_{k:03d}.png")
        Image.fromarray(towers.labels[k]).resize((60, 45), 0).save(folder / f"S_{k:03d}_flat.png")
        Image.new("L", (60, 45)).save(folder / f"S_{k:03d}_depth.png")
    return folder


def lines(err):
    return [line for line in err.replace("\r", "\n").splitlines() if line.startswith(("mine", "warning", "note"))]


def test_a_folder_is_trained_on_and_told(command, folder):
    code, out, err = command(fit_main, *TINY, "--data.path", "mine", "--data.image-size", "32", "--data.fit", "pad")
    assert code == 0, err
    found = lines(err)
    assert found[:3] == [
        "mine: 20 *.png as images; masks *_flat.png; left out: 20 *_depth.png; masks are offered as labels: "
        "python experiments/data.py import images mine FILE.h5",
        "mine: images of 45x60 (height x width) are padded with black to 32x32",
        "mine: 20 images have transparent pixels, which are laid on white",
    ]
    few, missed = found[3:]
    assert few.startswith(FEW) and missed.startswith("warning: the RMSE of the model pair is ")
    assert "training minus held-out ELBO ↓, nats per scene  model " in out
    (run,) = Path("runs").iterdir()
    assert isinstance(Run(run).read_json("summary.json")["elbo_gap_model"], float)
    assert load_run(run)[2].images.shape == (20, 32, 32, 3)
    log = (run / "log.txt").read_text()
    assert all(line in log for line in found)


def test_its_masks_become_labels(command, folder):
    code, out, err = command(data_main, "import", "images", "mine", "mine.h5", "--size", "32")
    assert code == 0, err
    assert lines(err) == [
        "mine: 20 *.png as images; masks *_flat.png; left out: 20 *_depth.png",
        "mine: a label is the value of the mask; labels below 1 are background",
        "note: mine: images of 45x60 (height x width) are cropped and resized to 32x32",
        "note: mine: 20 images have transparent pixels, which are laid on white",
    ]
    scenes = read_scenes("mine.h5")
    assert scenes.num_background == 1 and scenes.labels.shape == (20, 32, 32)


def test_background_without_objects_is_told(command, folder):
    code, out, err = command(data_main, "import", "images", "mine", "mine.h5", "--size", "32", "--num-background", "9")
    scenes = read_scenes("mine.h5")
    complaint = f"warning: no pixel is an object: labels are 0 to {scenes.labels.max()}, and num_background is 9, so "
    assert code == 0 and [line for line in lines(err) if line.startswith(complaint)]
    code, out, err = command(data_main, "info", "mine.h5")
    assert code == 0 and err.startswith(complaint)
    assert remarks(scenes)[-1].startswith("warning: no pixel is an object: labels are 0 to ")


def test_a_file_of_another_size_is_brought_to_it(data, towers):
    scenes = read_data(Data(path=str(data), image_size=48))
    assert scenes.images.shape == (64, 48, 48, 3) and scenes.labels.shape == (64, 48, 48)
    assert remarks(scenes)[0] == f"{data}: images of 32x32 (height x width) are resized to 48x48"
    assert scenes.name == "towers at 48x48"  # the rule for standing towers is for pixels of 32x32
    np.testing.assert_array_equal(read_data(Data(path=str(data))).images, towers.images)


def test_what_is_no_data_set(command, folder, refusal):
    for path, line in {
        "mine/S_001.png": "mine/S_001.png is one picture, not a data set: name the folder of your pictures",
        "https://a.org/b.h5": "https://a.org/b.h5 is an address, and nothing is downloaded: download it, and name the",
    }.items():
        assert refusal(fit_main, *TINY, "--data.path", path).startswith(line)
        assert refusal(data_main, "import", "images", path, "out.h5").startswith(line.replace("https://", "https:/"))
    line = refusal(data_main, "import", "images", "mine/S_001.png", "out.h5")
    assert line.startswith("mine/S_001.png is one picture")
    np.savez("a.npz", images=np.zeros((20, 40, 40, 3), np.uint8))
    line = "a.npz is an .npz file: python experiments/data.py import images a.npz FILE.h5 makes an HDF5 file of it"
    assert refusal(fit_main, *TINY, "--data.path", "a.npz") == line
    line = refusal(data_main, "import", "objects-room", "a.npz", "out.h5")
    assert line == "a.npz is an .npz file, but objects-room is read from a TFRecord file or an HDF5 file"
    line = refusal(data_main, "import", "images", "a.npz", "out.h5", "--num-background", "2")
    assert line.startswith("there are no masks for --num-background: leave it out, or add masks (a.npz: images (20, 40")
    line = refusal(data_main, "import", "images", "a.npz", "out.h5", "--masks", "mine")
    assert line == "--masks is for a folder of images, and a.npz is a file: leave it out"
    assert command(data_main, "import", "images", "a.npz", "out.h5", "--size", "32")[0] == 0
    assert read_scenes("out.h5").images.shape == (20, 32, 32, 3)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return parse(TINY).config


def test_arrays_train_as_a_file_of_them_does(config, towers, capfd):
    images = towers.images[:20]
    write_scenes("same.h5", scenes_of(images), source="tests", seed=0)
    from_file = train(replace(config, data=replace(config.data, path="same.h5")))
    expected = (from_file.checkpoints()[-1] / "weights.safetensors").read_bytes()
    run = train(config, scenes=torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert (run.checkpoints()[-1] / "weights.safetensors").read_bytes() == expected
    assert FEW in capfd.readouterr().err


def test_a_run_on_arrays_is_given_them_again(config, towers, refusal):
    run = train(config, scenes=towers.images[:20]).folder
    stored = (
        rf"^{run} was trained on scenes that were passed to fit and are not stored \(of the shape \(20, 32, 32, 3\)\)"
    )
    for again in (lambda: load_run(run), lambda: evaluate(run), lambda: train(config, resume=run)):
        with pytest.raises(UserError, match=stored):
            again()
    assert re.match(stored, refusal(evaluate_main, run))
    assert re.match(stored, refusal(fit_main, "--resume", run))
    assert len(load_run(run, scenes=towers.images[:20])[2].images) == 20
    assert "rmse_model" in evaluate(run, metrics=["reconstruction"], scenes=towers.images[:20])
    other = towers.images[:20].copy()
    other[0] = 0
    with pytest.raises(UserError, match="was trained on other images than those"):
        load_run(run, scenes=other)
    for later in Run(run).checkpoints()[1:]:
        for path in (*later.iterdir(), later):
            path.rmdir() if path.is_dir() else path.unlink()
    assert train(config, scenes=towers.images[:20], resume=run).folder == run


@pytest.mark.parametrize("num_background", [2, 9])
def test_labels_and_sizes_of_arrays(config, towers, capfd, num_background):
    masks = towers.labels[:20, None] == np.arange(6)[:, None, None]
    scenes = scenes_of(towers.images[:20], masks, num_background=num_background)
    run = train(replace(config, data=replace(config.data, image_size=48)), scenes=scenes)
    err = capfd.readouterr().err
    assert "scenes: images of 32x32 (height x width) are resized to 48x48" in err
    assert ("warning: no pixel is an object" in err) == (num_background == 9)
    found = evaluate(run.folder, metrics=["ari"], scenes=scenes)
    assert isinstance(found["ari_all_encoder"], float)
    assert (found["ari_fg_encoder"] == "no objects in the labels") == (num_background == 9)
    assert (run.read_json("summary.json")["ari_fg_encoder"] is None) == (num_background == 9)


def test_arrays_for_a_run_that_has_data(alone, config, towers):
    with pytest.raises(UserError, match="was trained on data of its own configuration: leave scenes out"):
        load_run(alone, scenes=towers.images)
    with pytest.raises(UserError, match="images in scenes has values from -0.87.* to 1; expected 0 to 1: rescale them"):
        train(config, scenes=towers.images / 127.5 - 1)
