"""retrieve.py: an index on disk that is built once, queries that are printed and drawn."""

import shutil
import sys

import pytest
from PIL import Image

from experiments.evaluation.held_out import checksum
from experiments.retrieve import main
from pyro_lom.retrieval import Index


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


def test_an_index_is_built_once(command, run, towers, monkeypatch):
    code, out, err = command(main, run)
    assert code == 0, err
    index, about = Index.load(run / "retrieval.safetensors")
    assert index.scenes.shape == (48, 32) and index.slots.shape == (48, 3, 8) and index.components.shape == (6, 32)
    assert about == {"checkpoint": "step-00000006", "data": checksum(towers.split("train")), "num_scenes": "48"}
    assert out.startswith("48 scenes; variance of s along the components: ") and " ms)" in out
    with Image.open(run / "figures" / "retrieval.png") as image:
        assert image.width > 400

    def printed(text):
        return [line.partition(" (")[0] for line in text.splitlines()]

    monkeypatch.setattr(Index, "build", lambda *_: pytest.fail("built twice"))
    again = command(main, run)
    assert again[0] == 0 and printed(again[1]) == printed(out)


def test_another_size_is_another_index(command, run):
    command(main, run)
    assert command(main, run, "--num-scenes", "20", "--queries", "15", "--slot", "2")[0] == 0
    assert len(Index.load(run / "retrieval.safetensors")[0].scenes) == 20


def test_a_half_built_index_is_never_left(command, run, monkeypatch):
    monkeypatch.setattr(
        sys.modules["experiments.retrieve"], "_latents", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert command(main, run)[0] == 130
    assert not list(run.glob("retrieval*"))


@pytest.mark.parametrize("part", ["ordered.guide.scene_posterior.", "orderless.guide."])
@pytest.mark.parametrize("number", [1e20, 1e38])
def test_weights_of_useless_latents(refusal, filled, part, number):
    run = filled(part, number)
    assert refusal(main, run).startswith("the latents of the model are NaN, infinite or too large, since its weights")
    assert not list(run.glob("retrieval*"))


def test_weights_that_render_no_images(command, huge):
    code, _, err = command(main, huge)
    assert code == 2 and err.splitlines()[-1].startswith("error: the images of the model are NaN or infinite, since")


def test_mistakes(refusal, run, alone):
    assert refusal(main, run, "--queries", "16") == "--queries 16: held-out scenes go from 0 to 15"
    assert refusal(main, run, "--queries") == "--queries needs one or more numbers of held-out scenes, from 0 to 15"
    assert refusal(main, run, "--slot", "3") == "--slot 3: places go from 0 to 2"
    assert refusal(main, run, "--num-scenes", "0") == "--num-scenes is 0: it must be from 1 to 1000000000"
    assert refusal(main, alone) == f"{alone} has no scene latent and slots to search by: name a run of a LOM"
    assert refusal(main, run, "--num-scenes", "3").startswith("6 principal components need as many scenes")
