"""Run folders hold whole files or none, refuse what is damaged in one line, and never run code they load."""

import errno
import json
import os
import pickle
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors import SafetensorError

from pyro_lom.errors import UserError
from pyro_lom.files import replacing
from pyro_lom.training import runs
from pyro_lom.training.runs import Progress, Run, load_weights

WEIGHTS = {"linear.weight": torch.arange(6.0).view(2, 3), "linear.bias": torch.ones(2), "updates": torch.tensor(3)}
OPTIMIZER = {"linear.weight/exp_avg": torch.full((2, 3), 0.5)}


def save(run, step, weights=WEIGHTS):
    return run.save_checkpoint(Progress(step, 1.5, 4 * step), weights, OPTIMIZER)


def files_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Folders.


def test_runs_are_numbered(tmp_path):
    folders = [
        Run.create(tmp_path / "runs", name, {}).folder.name for name in ("demo-seed0", "demo-seed1", "demo-seed0")
    ]
    assert folders == ["00000-demo-seed0", "00001-demo-seed1", "00002-demo-seed0"]
    (tmp_path / "runs" / "00041-other").mkdir()
    (tmp_path / "runs" / "99999notes").mkdir()
    assert Run.create(tmp_path / "runs", "demo", {}).folder.name == "00042-demo"


def test_a_run_begins_with_its_configuration_and_environment(tmp_path):
    config = {"preset": "demo", "train": {"steps": 3, "clip_norm": None}}
    run = Run.create(tmp_path, "demo", config)
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json", "environment.json"]
    assert Run.open(run.folder).read_json("config.json") == config
    environment = run.read_json("environment.json")
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()


def test_a_machine_without_git_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Run.create(tmp_path, "demo", {}).read_json("environment.json")["commit"] is None


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/file/runs: Not a directory$"):
        Run.create(tmp_path / "file" / "runs", "demo", {})
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_no_run_is_not_opened(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path} is not a run folder: it has no config.json; name one like runs/"):
        Run.open(tmp_path)
    with pytest.raises(UserError, match="is not a run folder"):
        Run.open(tmp_path / "nowhere")


def test_a_restarted_job_finds_the_run_that_it_began(tmp_path, monkeypatch):
    alone = Run.create(tmp_path, "alone", {"seed": 0})
    assert Run.restarted(tmp_path, {"seed": 0}) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert Run.restarted(tmp_path, {"seed": 0}) is None
    run = Run.create(tmp_path, "job", {"seed": 0})
    for name, content in (("damaged", "{"), ("old", "{}")):
        (Run.create(tmp_path, name, {"seed": 0}).folder / "environment.json").write_text(content)
    assert Run.restarted(tmp_path, {"seed": 0}).folder == run.folder != alone.folder
    assert Run.restarted(tmp_path, {"seed": 1}) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert Run.restarted(tmp_path, {"seed": 0}) is None


@pytest.mark.parametrize("content", [b"", b'{"preset": "de', b"\xff\xfe\x00"])
def test_damaged_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/config.json cannot be read: "):
        Run.open(tmp_path).read_json("config.json")


# Checkpoints.


def test_a_checkpoint_comes_back(tmp_path):
    run = Run(tmp_path)
    transposed = {"m": torch.arange(6.0).view(2, 3).T, "scalar": torch.tensor(2.0)}
    save(run, 7, transposed)
    progress, weights, optimizer = run.load_checkpoint()
    assert all(torch.equal(weights[name], transposed[name]) for name in transposed | weights)
    assert all(torch.equal(optimizer[name], OPTIMIZER[name]) for name in OPTIMIZER | optimizer)
    assert progress == Progress(step=7, seconds=1.5, images_seen=28)


def test_the_last_two_checkpoints_are_kept_as_safetensors_and_json(tmp_path):
    run = Run(tmp_path)
    for step in (5, 10, 999, 100_000):
        folder = save(run, step)
        assert run.checkpoints()[-1] == folder
    assert [path.name for path in run.checkpoints()] == ["step-00000999", "step-00100000"]
    assert run.load_checkpoint()[0].step == 100_000
    for folder in run.checkpoints():
        assert {path.name for path in folder.iterdir()} == {
            "weights.safetensors",
            "optimizer.safetensors",
            "state.json",
        }


def test_what_a_kill_left_half_written_is_ignored_and_cleaned(tmp_path):
    run = Run(tmp_path)
    save(run, 5)
    for step in (6, 10):
        leftover = tmp_path / "checkpoints" / f"step-{step:08d}.tmp"
        leftover.mkdir()
        (leftover / "weights.safetensors").write_bytes(b"half")
    assert [path.name for path in run.checkpoints()] == ["step-00000005"]
    assert run.load_checkpoint()[0].step == 5
    save(run, 10)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000005", "step-00000010"]
    assert run.load_checkpoint()[0].step == 10


FULL_DISKS = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL_DISKS, ids=["ENOSPC", "EDQUOT", "safetensors"])
@pytest.mark.parametrize("name", ["weights", "optimizer"])
def test_a_full_disk_leaves_the_checkpoints_as_they_were(tmp_path, monkeypatch, error, name):
    run = Run(tmp_path)
    save(run, 5)
    before, save_file = files_in(tmp_path), runs.save_file

    def fill(tensors, path):
        if path.stem != name:
            return save_file(tensors, path)
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(runs, "save_file", fill)
    full = f"^cannot write {tmp_path}/checkpoints/step-00000010: the disk is full; make room and resume the run$"
    with pytest.raises(UserError, match=full):
        save(run, 10)
    assert files_in(tmp_path) == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


@contextmanager
def no_room():
    """No file can grow beyond 100 bytes; lifted before pytest writes to a log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_writes_that_really_fail(tmp_path):
    run = Run.create(tmp_path, "demo", {})
    save(run, 5)
    run.log_metrics({"step": 5, "loss": 1.0})
    before = files_in(run.folder)
    large = {"content": "x" * 200}
    for write in (
        lambda: save(run, 10),
        lambda: run.write_json("summary.json", large),
        lambda: run.write_json("config.json", large),
        lambda: run.log_metrics({"step": 6} | large),
        lambda: Run.create(tmp_path, "demo", large),
    ):
        with no_room(), pytest.raises(UserError, match=f"^cannot write {tmp_path}/.*: .*[Ff]ile too large"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == [run.folder.name]
    after = files_in(run.folder)
    log = after.pop(next(path for path in after if path.name == "metrics.jsonl"))
    assert log.startswith(b'{"step": 5, "loss": 1.0}\n{"step": 6,')
    assert after.items() <= before.items() and len(after) == len(before) - 1
    assert run.metrics() == [{"step": 5, "loss": 1.0}]  # not the half line


def test_there_may_be_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path} has no checkpoint to start from$"):
        Run(tmp_path).load_checkpoint()


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing"])
def test_damaged_checkpoints(tmp_path, file, damage):
    run = Run(tmp_path)
    save(run, 5)
    path = save(run, 10) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "garbage": os.urandom(99)}[damage])
    with pytest.raises(UserError) as refusal:
        run.load_checkpoint()
    line = str(refusal.value)
    assert line.startswith(f"the checkpoint {path.parent} is damaged (") and "\n" not in line
    assert line.endswith("; remove it to go on from the one before")


@pytest.mark.parametrize("state", [{}, {"step": 10}, [], None, {"step": "x", "seconds": 1, "images_seen": 4}], ids=str)
def test_a_state_that_is_json_but_no_progress(tmp_path, state):
    run = Run(tmp_path)
    (save(run, 10) / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"step-00000010 is damaged \(.*\); remove it to go on from the one before$"):
        run.load_checkpoint()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize(
    "dump", [lambda bomb, path: torch.save(bomb, path), lambda b, p: p.write_bytes(pickle.dumps(b))]
)
def test_no_checkpoint_can_run_code(tmp_path, file, dump):
    run = Run(tmp_path)
    dump(Bomb(str(tmp_path / "boom")), save(run, 5) / file)
    with pytest.raises(UserError, match="is damaged"):
        run.load_checkpoint()
    assert not (tmp_path / "boom").exists()


def test_weights_of_another_architecture(tmp_path):
    module = torch.nn.Linear(3, 2)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for weights, found in (
        (
            {**own, "weight": torch.zeros(2, 4)},
            r"'weight' the model has shape \(2, 3\), the checkpoint shape \(2, 4\);",
        ),
        ({"weight": own["weight"]}, r"'bias' the model has shape \(2,\), the checkpoint nothing;"),
        ({**own, "extra": torch.zeros(1)}, r"'extra' the model has nothing, the checkpoint shape \(1,\);"),
    ):
        with pytest.raises(UserError, match=f"^the checkpoint in {tmp_path} is of another architecture: at {found}"):
            load_weights(module, weights, tmp_path)
        assert all(torch.equal(tensor, own[name]) for name, tensor in module.state_dict().items())
    load_weights(module, {name: tensor + 1 for name, tensor in own.items()}, tmp_path)
    assert torch.equal(module.bias, own["bias"] + 1)


# Other files.


def test_replacing_is_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_are_one_json_object_a_line(tmp_path):
    run = Run(tmp_path)
    assert run.metrics() == []
    rows = [{"step": step, "loss": 1 / step} for step in (2, 4, 6)]
    for row in rows:
        run.log_metrics(row)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rows
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a kill came here
    assert run.metrics() == rows
    run.truncate_metrics(4)
    assert run.metrics() == rows[:2]
    run.log_metrics(rows[2])
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rows


def test_the_log_grows_line_by_line(tmp_path):
    run = Run(tmp_path)
    run.log("one")
    run.log("two")
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n"
