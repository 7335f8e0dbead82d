"""The notebooks run on the pretrained demo, and the committed files contain the outputs of one clean run."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from experiments import load_run
from pyro_lom.arviz_bridge import STATISTICS, bayesian_p_values, inference_data, reconstruction_error
from pyro_lom.data.minibatches import float_images
from pyro_lom.data.towers import make_towers
from pyro_lom.metrics.ari import mean_ari
from pyro_lom.system import infer

FOLDER = Path(__file__).parents[2] / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RUN = "pretrained/lom-genesis-v2-towers"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder in which notebooks may write."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, folder):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": folder}}).execute()
    assert all(cell.execution_count for cell in code_cells(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_with_the_outputs_of_one_pass(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)


@pytest.fixture(scope="module")
def shipped():
    return load_run(RUN)


def test_the_shipped_run_finds_its_blocks(shipped):
    _, system, scenes = shipped
    test = scenes.split("test", at_most=64)
    segments = infer(system, float_images(test.images))["orderless"].log_masks.argmax(-4).squeeze(-3)
    assert mean_ari(segments, torch.from_numpy(np.array(test.labels)).long(), test.num_background) > 0.95


def test_p_values_pass_a_fit_and_find_a_planted_misfit(shipped):
    _, system, scenes = shipped
    model, guide = system["ordered"].model, system["ordered"].guide
    statistics = STATISTICS | {"reconstruction_error": reconstruction_error(model, guide)}
    tall = make_towers(100, seed=1, max_blocks=5)

    def p_values(images):
        torch.manual_seed(0)
        return bayesian_p_values(
            inference_data(model, guide, float_images(images[:32]), num_draws=8, statistics=statistics)
        )

    fit = p_values(scenes.split("test").images)
    misfit = p_values(tall.images[tall.factors["present"].sum(1) == 5])
    assert all(0.1 < p < 0.9 for p in fit.values()), fit
    assert misfit["reconstruction_error"] < 0.05
    assert misfit["detail"] < 0.15
