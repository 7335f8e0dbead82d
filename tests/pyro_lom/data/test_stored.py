"""Arrays on disk: opened by each process for itself, whatever their layout."""

import multiprocessing
import os
import pickle
import time

import h5py
import numpy as np
import pytest

from pyro_lom.data import stored
from pyro_lom.data.hdf5 import read_scenes
from pyro_lom.data.minibatches import Minibatches, float_images
from pyro_lom.data.stored import ChunkedArray, MemoryMap
from pyro_lom.errors import UserError

LAYOUTS = {
    "contiguous": {},
    "compact": {"chunks": (1, 6, 5, 3), "compression": "lzf"},
    "chunks of 7": {"chunks": (7, 4, 5, 2), "compression": "gzip"},
}


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(params=LAYOUTS)
def on_disk(request, tmp_path, images, monkeypatch):
    """The images in a file that is too large for memory, as `Scenes`."""
    monkeypatch.setattr(stored, "IN_MEMORY", 100)
    with h5py.File(tmp_path / "scenes.h5", "w") as file:
        file.create_dataset("images", data=images, **LAYOUTS[request.param])
    return read_scenes(tmp_path / "scenes.h5")


@pytest.mark.parametrize("largest", [5, 1 << 20])
def test_a_chunk_of_several_scenes_is_kept_if_memory_suffices(tmp_path, images, monkeypatch, largest):
    monkeypatch.setattr(stored, "IN_MEMORY", 100)
    monkeypatch.setattr(stored, "_LARGEST_CACHE", largest)
    with h5py.File(tmp_path / "scenes.h5", "w") as file:
        file.create_dataset("images", data=images, **LAYOUTS["chunks of 7"])
    found = read_scenes(tmp_path / "scenes.h5").images
    np.testing.assert_array_equal([found[row] for row in range(40)], images)
    num_slots, _, _ = found._dataset.id.get_access_plist().get_chunk_cache()
    assert (num_slots == 10_007) == (largest > 5)


INDICES = [
    3,
    -1,
    slice(4, 9),
    slice(None),
    slice(30, 99),
    slice(2, 2),
    slice(1, 20, 3),
    np.array([7, 7, 0, 39]),
    [5, 2],
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing(on_disk, images, index):
    found = on_disk.images[index]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, images[index])
    np.testing.assert_array_equal(on_disk.split("test").images[:][:2], images[36:38])


def test_boolean_indexing(on_disk, images):
    chosen = np.arange(40) % 3 == 1
    np.testing.assert_array_equal(on_disk.images[chosen], images[chosen])


def test_what_the_rest_asks_of_an_array(on_disk, images):
    test = on_disk.split("test", at_most=3)
    assert (len(test.images), test.images.shape, test.images.dtype, test.images.ndim) == (3, (3, 6, 5, 3), np.uint8, 4)
    assert test.splits == {"test": range(3)}
    np.testing.assert_array_equal(np.asarray(test.images), images[36:39])
    np.testing.assert_array_equal(np.array(test.images, dtype=int), images[36:39])
    assert float_images(test.images).shape == (3, 3, 6, 5)
    batch = Minibatches(on_disk.images, batch_size=8, seed=1)(2)
    assert (batch == Minibatches(images, batch_size=8, seed=1)(2)).all()


def test_nothing_is_read_on_opening(on_disk):
    assert isinstance(on_disk.images, (MemoryMap, ChunkedArray))
    assert on_disk.image_shape == (3, 6, 5)


@pytest.mark.parametrize("name", ["train", "test"])
def test_pickles_hold_no_data(on_disk, images, name):
    on_disk.images[0]
    split = on_disk.split(name)
    pickled = pickle.dumps(split)
    assert len(pickled) < 1500
    np.testing.assert_array_equal(pickle.loads(pickled).images[:], split.images[:])
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(split)).images), np.asarray(split.images))


def test_pickles_of_parts(tmp_path, images):
    with h5py.File(tmp_path / "scenes.h5", "w") as file:
        file["images"] = images
    mapped = read_scenes(tmp_path / "scenes.h5").images
    for part in (mapped[3:9], mapped[3:9][2:4], mapped[::2], mapped[:, 1], mapped[[3, 4]], mapped + 1, mapped[5]):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)), part)


def digest(scenes, queue):
    queue.put((os.getpid(), int(np.asarray(scenes.images[[1, 30]]).astype(int).sum())))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_other_processes(on_disk, images, method):
    expected = int(images[[1, 30]].astype(int).sum())
    assert int(np.asarray(on_disk.images[[1, 30]]).astype(int).sum()) == expected  # opened here already
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=digest, args=(on_disk, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=100) for _ in workers]
    for worker in workers:
        worker.join()
    assert {total for _, total in found} == {expected}
    assert len({process for process, _ in found}) == 2


def test_small_compressed_arrays_are_in_memory(tmp_path, images):
    with h5py.File(tmp_path / "scenes.h5", "w") as file:
        file.create_dataset("images", data=images, **LAYOUTS["compact"])
    assert type(read_scenes(tmp_path / "scenes.h5").images) is np.ndarray


def test_damage_shows_when_it_is_read(tmp_path, images, monkeypatch):
    monkeypatch.setattr(stored, "IN_MEMORY", 100)
    path = tmp_path / "scenes.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, **LAYOUTS["chunks of 7"])
        chunk = file["images"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    damaged = read_scenes(path).images
    np.testing.assert_array_equal(damaged[20], images[20])
    with pytest.raises(UserError, match=f"^cannot read {path}: .* damaged .*; make or fetch it again$"):
        damaged[0]


def test_arrays_that_were_never_written(tmp_path):
    with h5py.File(tmp_path / "hollow.h5", "w") as file:
        file.create_dataset("images", (10**8, 64, 64, 3), np.uint8)
    with pytest.raises(UserError, match="^images in .*hollow.h5 was never written: make or fetch the file again$"):
        read_scenes(tmp_path / "hollow.h5")


def test_chunks_that_would_fill_the_memory(tmp_path):
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("images", (64, 4096, 4096, 3), np.uint8, chunks=(64, 4096, 4096, 1), compression="gzip")
    with pytest.raises(
        UserError, match=r"^images in .*bomb.h5 has chunks of \(64, 4096, 4096, 1\): store it with small"
    ):
        read_scenes(tmp_path / "bomb.h5")


@pytest.mark.slow
def test_minibatches_at_the_speed_of_memory(tmp_path):
    """200,000 images a second where nothing else runs; a quarter of it here."""
    with h5py.File(tmp_path / "rooms.h5", "w") as file:
        file["images"] = np.random.default_rng(0).integers(0, 256, (50_000, 64, 64, 3), dtype=np.uint8)
    batches = Minibatches(read_scenes(tmp_path / "rooms.h5").images, batch_size=32, seed=0)
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        for step in range(1000):
            batches(step)
        best = max(best, 32_000 / (time.perf_counter() - start))
    assert best > 50_000
