"""However minibatches come to the device, they are those of `Minibatches`, bit for bit."""

import threading

import numpy as np
import pytest
import torch

from pyro_lom.data import device_minibatches
from pyro_lom.data.device_minibatches import Loaded, Prefetched, Resident, on_device
from pyro_lom.data.minibatches import Minibatches
from pyro_lom.errors import UserError

IMAGES = np.random.default_rng(0).integers(256, size=(13, 4, 4, 3), dtype=np.uint8)
CPU = torch.device("cpu")
EVERY_WAY = {"loaded": lambda batches, _: Loaded(batches), "resident": Resident, "prefetched": Prefetched}
every_way = pytest.mark.parametrize("way", EVERY_WAY.values(), ids=EVERY_WAY)


def minibatches(images=IMAGES):
    return Minibatches(images, 2, seed=3, rank=1, world_size=2)


def assert_those_of_minibatches(found, steps, device=CPU):
    expected = minibatches()
    for step in steps:
        images, rows = found(step)
        assert images.device.type == rows.device.type == device.type
        assert torch.equal(images.cpu(), expected(step))
        assert torch.equal(rows.cpu(), torch.from_numpy(expected.indices(step)))
        assert images.is_contiguous(memory_format=torch.channels_last)


@every_way
def test_they_are_the_same(way):
    assert_those_of_minibatches(way(minibatches(), CPU), range(10))  # three epochs and a step


@every_way
def test_they_are_the_same_after_a_jump(way):
    """A run is resumed at any step; steps may come twice, or backwards."""
    assert_those_of_minibatches(way(minibatches(), CPU), [7, 8, 9, 9, 2, 3, 11])


def test_the_next_one_is_read_ahead():
    class Watched(np.ndarray):
        reads = []

        def __getitem__(self, index):
            self.reads.append((threading.current_thread().name, tuple(index)))
            return np.asarray(self)[index]

    batches = minibatches(IMAGES.view(Watched))
    prefetched = Prefetched(batches, CPU)
    prefetched(4)
    prefetched._next[1].result()  # reading step 5, which nobody asked for yet
    assert [rows for _, rows in Watched.reads] == [tuple(minibatches().indices(step)) for step in (4, 5)]
    assert all(name.startswith("minibatches") for name, _ in Watched.reads)


def test_an_error_of_the_reader_arrives_at_its_step():
    class Damaged(np.ndarray):
        def __getitem__(self, index):
            if set(index) & set(minibatches().indices(1)):
                raise UserError("images are damaged")
            return np.asarray(self)[index]

    prefetched = Prefetched(minibatches(IMAGES.view(Damaged)), CPU)
    prefetched(0)
    with pytest.raises(UserError, match="damaged"):
        prefetched(1)


def test_a_cpu_reads_when_it_is_asked():
    assert isinstance(on_device(minibatches(), CPU), Loaded)


@pytest.mark.parametrize(("free", "chosen"), [(4 * IMAGES.nbytes, "Resident"), (4 * IMAGES.nbytes - 1, "Prefetched")])
def test_a_gpu_keeps_what_fits(monkeypatch, free, chosen):
    def way(*_):
        return Loaded(minibatches())

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**9))
    for name in ("Resident", "Prefetched"):
        monkeypatch.setattr(device_minibatches, name, way if name == chosen else None)
    assert_those_of_minibatches(on_device(minibatches(), torch.device("cuda")), range(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@every_way
def test_they_are_the_same_on_a_gpu(way):
    device = torch.device("cuda", 0)
    if way is EVERY_WAY["loaded"]:
        pytest.skip("for a CPU")
    found = way(minibatches(), device)
    found(0)  # a stream and pinned memory are made
    torch.cuda.set_sync_debug_mode("error")
    try:
        ahead = [found(step) for step in range(10)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_those_of_minibatches(ahead.__getitem__, range(10), device)
