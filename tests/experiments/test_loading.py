"""A run's folder is enough to have its trained system again."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from experiments import loading
from experiments.config import Data
from experiments.loading import load_run
from pyro_lom.errors import UserError
from pyro_lom.objective import Objective
from pyro_lom.training.runs import Run


@pytest.mark.parametrize(
    ("data", "ours"),
    [
        (Data(), True),
        (Data(path="data/towers-64.h5", image_size=64), True),
        (Data(path="data/towers-64.h5"), False),
        (Data(path="./data/towers.h5"), False),
        (Data(path="mine.h5"), False),
        (Data(image_size=64), False),
    ],
)
def test_only_our_own_data_set_is_ever_made(data, ours, towers, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "ensure_towers", lambda path, size: towers)
    if ours:
        assert loading.read_data(data) is towers
    else:
        with pytest.raises(UserError, match=f"^no such file or folder: {data.path.removeprefix('./')}$"):
            loading.read_data(data)


def test_a_run_comes_back(finished, towers):
    config, system, scenes = load_run(finished)
    assert config.preset == "lom-genesis-v2-towers" and config.train.steps == 6
    assert (scenes.images == towers.images).all()
    parts = [part for pair in system.values() for part in (pair.model, pair.guide, pair.criterion)]
    assert not any(part.training for part in parts if isinstance(part, nn.Module))
    assert {int(pair.model.step) for pair in system.values()} == {6}
    weights = load_file(Run(finished).checkpoints()[-1] / "weights.safetensors")
    loaded = Objective(system).state_dict()
    assert loaded.keys() == weights.keys()
    assert not [name for name, tensor in loaded.items() if not torch.equal(tensor, weights[name])]


def test_what_is_missing_is_named(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match=f"^{folder} has no checkpoint to start from$"):
        load_run(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=f"^{folder} is not a run folder"):
        load_run(folder)
