"""Nearest neighbours as a brute-force search finds them, re-ranked by a slot; an index that survives the disk."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file as save_torch_file
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from pyro_lom.errors import UserError
from pyro_lom.retrieval import Index

N, DS, K, DZ = 200, 12, 3, 4


@pytest.fixture
def index():
    rng = np.random.default_rng(0)
    scales = np.linspace(3, 0.1, DS)
    scenes = (rng.normal(size=(N, DS)) * scales).astype(np.float32)
    return Index.build(scenes, rng.normal(size=(N, K, DZ)).astype(np.float32))


def test_as_scikit_learn_finds_them(index):
    pca = PCA(6, svd_solver="full").fit(index.scenes)
    neighbours = NearestNeighbors(n_neighbors=5).fit(pca.transform(index.scenes))
    for query in np.random.default_rng(1).normal(size=(20, DS)).astype(np.float32):
        expected = neighbours.kneighbors(pca.transform(query[None]), return_distance=False)[0]
        assert index.nearest(query).tolist() == expected.tolist()
    assert index.explained == pytest.approx(pca.explained_variance_ratio_, abs=1e-6)


def test_a_scene_is_nearest_to_itself(index):
    assert [index.nearest(scene)[0] for scene in index.scenes] == list(range(N))


def test_reranking_is_a_permutation_with_the_match_first(index):
    rows = np.array([7, 3, 11, 2, 9])
    ranked, matched = index.rerank(rows, index.slots[2, 1] + 1e-3)
    assert sorted(ranked) == sorted(rows)
    assert (ranked[0], matched[0]) == (2, 1)
    distances = [np.linalg.norm(index.slots[row] - index.slots[2, 1] - 1e-3, axis=-1) for row in ranked]
    assert [d.argmin() for d in distances] == matched.tolist()
    assert np.all(np.diff([d.min() for d in distances]) >= 0)


def test_fewer_scenes_than_asked_for(index):
    few = index._replace(scenes=index.scenes[:3], slots=index.slots[:3], projected=index.projected[:3])
    assert sorted(few.nearest(index.scenes[0])) == [0, 1, 2]


def test_it_survives_the_disk(index, tmp_path):
    path = tmp_path / "index.safetensors"
    index.save(path, {"checkpoint": "step-1"})
    loaded, about = Index.load(path)
    assert about == {"checkpoint": "step-1"}
    assert all((one == other).all() for one, other in zip(index, loaded, strict=True))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"no index at all"])
def test_a_damaged_file_is_named(content, tmp_path):
    path = tmp_path / "index.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} is damaged .*; remove it to build it again$"):
        Index.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"scenes": np.zeros((N, DS + 1), np.float32)},
        {"slots": np.zeros((N + 1, K, DZ), np.float32)},
        {"slots": np.zeros((N, K), np.float32)},
        {"projected": np.zeros((N, 5), np.float32)},
        {"mean": np.zeros((1, DS), np.float32)},
        {"components": np.zeros(DS, np.float32)},
        {"mean": np.full(DS, np.nan, np.float32)},
        {"scenes": np.zeros((N, DS), np.int64)},
    ],
    ids=lambda change: " ".join(f"{name} {part.dtype} {part.shape}" for name, part in change.items()),
)
def test_parts_that_do_not_fit_together(index, tmp_path, change):
    path = tmp_path / "index.safetensors"
    index._replace(**change).save(path, {})
    with pytest.raises(UserError, match=f"^{path} is damaged .*; remove it to build it again$"):
        Index.load(path)


def test_no_link_and_no_pipe_is_read(index, tmp_path):
    index.save(tmp_path / "other", {})
    (tmp_path / "link").symlink_to("other")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(UserError, match=f"^{tmp_path}/{name} is damaged"):
            Index.load(tmp_path / name)


@pytest.mark.parametrize(("num", "dim"), [(5, 12), (50, 4)])
def test_too_little_to_project_is_refused(num, dim):
    with pytest.raises(UserError, match=f"^6 principal components need .*, not {num} scenes of {dim}: index more"):
        Index.build(np.zeros((num, dim), np.float32), np.zeros((num, K, DZ), np.float32))


def test_types_that_numpy_does_not_have(tmp_path):
    path = tmp_path / "index.safetensors"
    tensors = {name: torch.zeros(64, 64).to(torch.float8_e4m3fn) for name in Index._fields}
    save_torch_file(tensors, path)
    with pytest.raises(UserError, match=f"^{path} is damaged .*; remove it to build it again$"):
        Index.load(path)
    os.truncate(path, 2 << 30)
    with pytest.raises(UserError, match="it has 2147483648 bytes"):
        Index.load(path)
