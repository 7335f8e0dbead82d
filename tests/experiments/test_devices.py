"""Shares of a batch that come out even, and process groups that restarted processes find each other in."""

import socket
from dataclasses import replace

import pytest
from torch import distributed

from experiments.devices import check_cuda_graph, join_again, processes, shared_out
from experiments.presets import preset
from pyro_lom.errors import UserError


def torchrun(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))


def test_torchrun_decides_for_itself(monkeypatch):
    assert processes(3) == (3, 1)
    torchrun(monkeypatch, TORCHELASTIC_RUN_ID="here", LOCAL_WORLD_SIZE=2, WORLD_SIZE=8)
    assert processes(3) == (2, 4)


def test_shares_of_a_batch():
    paper = preset("lom-genesis-v2-objects-room")
    assert shared_out(paper, None, 4, 1) == paper
    assert shared_out(paper, 32, 4, 1).train.batch_size == 8
    assert shared_out(paper, 32, 4, 2).train.batch_size == 8
    with pytest.raises(UserError, match="--global-batch-size is 30: it must be a multiple of 8"):
        shared_out(paper, 30, 4, 2)
    with pytest.raises(UserError, match="--accumulate is 3: it must divide the batch of 32 scenes"):
        shared_out(paper, None, 1, 3)
    with pytest.raises(UserError, match="--train.ordered-rendered"):
        shared_out(preset("demo"), None, 1, 2)


def test_what_has_no_cuda_graph():
    paper = preset("lom-genesis-v2-objects-room")
    check_cuda_graph(paper, on_gpu=True)
    with pytest.raises(UserError, match="--cuda-graph is for one GPU, not for 4 devices"):
        check_cuda_graph(paper, on_gpu=True, num_processes=4)
    with pytest.raises(UserError, match="--cuda-graph is for a GPU, and this is for the CPU"):
        check_cuda_graph(paper, on_gpu=False)
    hungarian = replace(paper, model=replace(paper.model, matching="hungarian"))
    with pytest.raises(UserError, match="--cuda-graph does not go with --model.matching hungarian"):
        check_cuda_graph(hungarian, on_gpu=True)


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
