"""Shares of a batch that come out even, and process groups that restarted processes find each other in."""

import socket
from dataclasses import replace

import pytest
from torch import distributed

from experiments.systems import build, check, preset
from experiments.training.devices import (
    check_batches,
    check_cuda_graph,
    join_again,
    processes,
    with_global_batch_size,
)
from pyro_lom.errors import UserError
from pyro_lom.training.phase import Phase


def torchrun(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))


def test_torchrun_decides_for_itself(monkeypatch):
    assert processes(3) == (3, 1)
    torchrun(monkeypatch, TORCHELASTIC_RUN_ID="here", LOCAL_WORLD_SIZE=2, WORLD_SIZE=8)
    assert processes(3) == (2, 4)


def test_shares_of_a_batch():
    paper = preset("lom-genesis-v2-objects-room")
    assert with_global_batch_size(paper, None, 4, 1) == paper
    assert with_global_batch_size(paper, 32, 4, 1).train.batch_size == 8
    assert with_global_batch_size(paper, 32, 4, 2).train.batch_size == 8
    with pytest.raises(UserError, match="--global-batch-size is 30: it must be a multiple of 8"):
        with_global_batch_size(paper, 30, 4, 2)


@pytest.mark.parametrize("name", ["demo", "ablation-7-towers", "genesis-v2-towers"])
def test_a_global_batch_is_that_of_every_phase(name):
    config = with_global_batch_size(preset(name), 24, 2, 1)
    phases = config.model.phases(build(config, (3, 32, 32)), config.train)
    assert [phase.batch_size for phase in phases] == [12] * len(phases)
    check(config)


def test_batches_that_cannot_be_had():
    phases = [Phase(10, 32, 1e-3), Phase(10, 24, 1e-3)]
    check_batches(phases, 64, world_size=2, accumulate=8)
    with pytest.raises(UserError, match="--accumulate is 16: it must divide the batch of 24 scenes"):
        check_batches(phases, 64, world_size=1, accumulate=16)
    with pytest.raises(UserError, match="63 training images are fewer than the 64 of one step: lower the batch size"):
        check_batches(phases, 63, world_size=2)


def test_what_cannot_be_accumulated():
    check(preset("lom-genesis-v2-objects-room"), accumulate=2)
    check(preset("demo"), accumulate=1)
    model = preset("demo").model
    all_rendered = replace(model, schedule=replace(model.schedule, ordered_rendered=None))
    check(replace(preset("demo"), model=all_rendered), accumulate=2)
    with pytest.raises(UserError, match="--accumulate does not go with --model.schedule.ordered-rendered"):
        check(preset("demo"), accumulate=2)


def test_what_has_no_cuda_graph():
    check_cuda_graph(on_gpu=True)
    with pytest.raises(UserError, match="--cuda-graph is for one GPU, not for 4 devices"):
        check_cuda_graph(on_gpu=True, num_processes=4)
    with pytest.raises(UserError, match="--cuda-graph needs a GPU, and this is a CPU"):
        check_cuda_graph(on_gpu=False)
    paper = preset("lom-genesis-v2-objects-room")
    check(paper, cuda_graph=True)
    hungarian = replace(paper, model=replace(paper.model, matching="hungarian"))
    check(hungarian)
    with pytest.raises(UserError, match="--cuda-graph does not go with --model.matching hungarian"):
        check(hungarian, cuda_graph=True)


@pytest.fixture
def agent_store(monkeypatch):
    """The store that torchrun keeps while it starts processes anew; the last group is gone afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    torchrun(monkeypatch, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=0, WORLD_SIZE=1, LOCAL_WORLD_SIZE=1)
    torchrun(monkeypatch, TORCHELASTIC_USE_AGENT_STORE="True", CUDA_VISIBLE_DEVICES="")
    yield store
    if distributed.is_initialized():
        distributed.destroy_process_group()


def test_a_restarted_process_meets_nothing_of_the_dead(agent_store, monkeypatch):
    torchrun(monkeypatch, TORCHELASTIC_RESTART_COUNT=1)
    join_again()
    assert (distributed.get_rank(), distributed.get_world_size()) == (0, 1)
    keys = agent_store.list_keys()
    assert keys and all(key.startswith("attempt 1/") for key in keys)


@pytest.mark.parametrize("environment", [{}, {"TORCHELASTIC_RESTART_COUNT": 1, "WORLD_SIZE": 2}])
def test_what_is_left_to_fabric(agent_store, monkeypatch, environment):
    torchrun(monkeypatch, **environment)
    join_again()
    assert not distributed.is_initialized()
