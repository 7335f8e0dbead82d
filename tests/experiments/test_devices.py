"""Shares of a batch that come out even, and process groups that restarted processes find each other in."""

import os
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from lightning_fabric import Fabric
from torch import distributed

from experiments.systems import build, check, preset
from experiments.training.devices import (
    check_batches,
    check_cuda_graph,
    check_number,
    join_again,
    one_report,
    processes,
    with_global_batch_size,
)
from pyro_lom.errors import UserError
from pyro_lom.training.phase import Phase

ROOT = Path(__file__).parents[2]


def torchrun(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))


def test_torchrun_decides_for_itself(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert processes(3) == (3, 1)
    torchrun(monkeypatch, TORCHELASTIC_RUN_ID="here", LOCAL_WORLD_SIZE=2, WORLD_SIZE=8)
    assert processes(3) == (2, 4)


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "WORLD_SIZE", "LOCAL_RANK", "RANK", "GROUP_RANK", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["x", "", "-1", "9" * 30, "\x1b"])
def test_variables_of_torchrun_are_numbers(monkeypatch, name, value):
    torchrun(monkeypatch, **{"TORCHELASTIC_RUN_ID": "here", "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 8, name: value})
    with pytest.raises(UserError, match=f"^the environment variable {name} is '.*' and no number: start"):
        processes(1)


@pytest.mark.parametrize("sizes", [{}, {"WORLD_SIZE": 2}, {"WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 2}])
def test_sizes_of_torchrun_fit(monkeypatch, sizes):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    torchrun(monkeypatch, TORCHELASTIC_RUN_ID="here", **sizes)
    with pytest.raises(UserError, match="^the environment variables LOCAL_WORLD_SIZE = . and WORLD_SIZE = . clash"):
        processes(1)


@pytest.mark.parametrize(("cores", "most"), [(8, 8), (1, 2), (None, 2)])
def test_no_more_processes_than_cores(monkeypatch, cores, most):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    check_number("--devices", most)
    for number in (most + 1, 10**9):
        with pytest.raises(UserError, match=f"^--devices is {number}: this machine runs at most {most} processes, one"):
            check_number("--devices", number)


# One report of a run of several processes.


def process(rank, world_size=2):
    return Mock(spec=Fabric, is_global_zero=rank == 0, world_size=world_size)


@pytest.fixture
def shared_store(monkeypatch):
    store = distributed.HashStore()
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_store", lambda: store)


LOST = [
    RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
    distributed.DistNetworkError("lost"),
]


@pytest.mark.parametrize("lost", LOST)
def test_an_error_of_another_process_is_reported_by_the_first(shared_store, lost):
    with pytest.raises(SystemExit) as leaving, one_report(process(1)):
        raise UserError("images in x.h5 are damaged")
    assert leaving.value.code is None
    with pytest.raises(UserError, match="^images in x.h5 are damaged$"), one_report(process(0)):
        raise lost
    with pytest.raises(SystemExit), one_report(process(1)):
        raise lost


@pytest.mark.parametrize("lost", LOST)
def test_a_process_that_ends_without_a_word(shared_store, lost):
    with pytest.raises(UserError, match="^another process of this run ended without a message"):
        with one_report(process(0)):
            raise lost


@pytest.mark.parametrize("error", [UserError("full disk"), MemoryError(), RuntimeError("a mistake of ours")])
@pytest.mark.parametrize("fabric", [process(0), process(0, 1)], ids=["two", "one"])
def test_the_first_process_reports_its_own_errors(shared_store, error, fabric):
    with pytest.raises(type(error)) as raised, one_report(fabric):
        raise error
    assert raised.value is error


def test_only_the_first_process_reports_a_signal(shared_store):
    with pytest.raises(KeyboardInterrupt), one_report(process(0)):
        raise KeyboardInterrupt(15)
    with pytest.raises(SystemExit), one_report(process(1)):
        raise KeyboardInterrupt(15)


def test_a_mistake_of_ours_has_a_traceback(shared_store):
    with pytest.raises(ZeroDivisionError), one_report(process(1)):
        raise ZeroDivisionError


RANK = """
import sys
from experiments import cli
from experiments.fit import main
from pyro_lom.data.minibatches import Minibatches
from pyro_lom.errors import UserError

indices = Minibatches.indices

def damaged(self, step):
    if self._first > 0 and step == 3:
        raise UserError("images of the second process are damaged")
    return indices(self, step)

Minibatches.indices = damaged
cli.run(main)
"""


def two_processes(*arguments, folder, limit=""):
    """Run a training of two processes that fails, and return what the two print after their start."""
    command = shlex.join([sys.executable, *map(str, arguments), "--devices", "2"])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["sh", "-c", limit + command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False), done.stderr
    return re.findall("^error: .*", done.stderr, re.MULTILINE)


@pytest.mark.slow
def test_two_processes_report_a_folder_that_cannot_be_made_once(tiny, tmp_path):
    (tmp_path / "file").touch()
    fit = ROOT / "experiments" / "fit.py"
    errors = two_processes(fit, *tiny, "--runs-dir", "file/runs", folder=tmp_path)
    assert errors == ["error: cannot write file/runs: Not a directory"]


@pytest.mark.slow
def test_two_processes_report_a_full_disk_once(tiny, tmp_path):
    """Files of 100 kB are the largest: the configuration has room, the weights do not."""
    [error] = two_processes(ROOT / "experiments" / "fit.py", *tiny, folder=tmp_path, limit="ulimit -f 200; ")
    assert re.match(r"error: cannot write runs/\S+/checkpoints/step-\S+: .*File too large", error)


@pytest.mark.slow
def test_two_processes_report_an_error_of_the_second_once(tiny, tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    errors = two_processes("rank.py", *tiny, folder=tmp_path)
    assert errors == ["error: images of the second process are damaged"]


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
    check(preset("genesis-towers"), accumulate=1)
    with pytest.raises(UserError, match="--accumulate is 2, but the networks of genesis normalise whole batches"):
        check(preset("genesis-towers"), accumulate=2)


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
