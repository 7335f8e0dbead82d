"""A checkpoint is whole or refused in one line: its files belong together, its numbers are finite, and none is code."""

import errno
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pyro_lom.errors import UserError
from pyro_lom.training import checkpoints
from pyro_lom.training.checkpoints import Progress, check_data, fingerprint
from pyro_lom.training.runs import Run, load_weights

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")
WEIGHTS = {"linear.weight": torch.arange(6.0).view(2, 3), "linear.bias": torch.ones(2), "updates": torch.tensor(3)}
OPTIMIZER = {"linear.weight/exp_avg": torch.full((2, 3), 0.5)}


def save(run, step, weights=WEIGHTS, optimizer=OPTIMIZER):
    return run.save_checkpoint(Progress(step, 1.5, 4 * step, "data"), weights, optimizer)


def files_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def refusal(run):
    with pytest.raises(UserError) as refused:
        run.load_checkpoint()
    line = str(refused.value)
    assert line.startswith(f"the checkpoint {run.checkpoints()[-1]} is damaged (") and "\n" not in line
    assert line.endswith("); remove it to go on from the one before")
    return line


def test_a_checkpoint_of_someone_else_is_not_called_damaged(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    run = Run(tmp_path)
    folder = save(run, 7)
    monkeypatch.setattr(checkpoints, "open_own", denied)
    for read in (run.progress, run.load_checkpoint):
        with pytest.raises(UserError) as refused:
            read()
        assert str(refused.value) == f"the checkpoint {folder} cannot be read: Permission denied; ask its owner"


# Writing.


def test_a_checkpoint_comes_back(tmp_path):
    run = Run(tmp_path)
    transposed = {"m": torch.arange(6.0).view(2, 3).T, "scalar": torch.tensor(2.0)}
    save(run, 7, transposed)
    progress, weights, optimizer = run.load_checkpoint()
    assert all(torch.equal(weights[name], transposed[name]) for name in transposed | weights)
    assert all(torch.equal(optimizer[name], OPTIMIZER[name]) for name in OPTIMIZER | optimizer)
    assert progress == Progress(step=7, seconds=1.5, images_seen=28, data="data")


def test_the_last_two_checkpoints_are_kept_as_safetensors_and_json(tmp_path):
    run = Run(tmp_path)
    for step in (5, 10, 999, 99_999_999, 100_000_000):
        folder = save(run, step)
        assert run.checkpoints()[-1] == folder
    assert names_in(tmp_path / "checkpoints") == ["step-100000000", "step-99999999"]
    assert run.load_checkpoint()[0].step == 100_000_000
    for folder in run.checkpoints():
        assert {path.name for path in folder.iterdir()} == set(FILES)


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    run = Run(tmp_path)
    save(run, 5)
    save(run, 5, WEIGHTS | {"linear.bias": torch.zeros(2)})
    assert torch.equal(run.load_checkpoint()[1]["linear.bias"], torch.zeros(2))
    assert names_in(tmp_path / "checkpoints") == ["step-00000005"]


@pytest.mark.parametrize("step", [5, 10, 15])
def test_a_half_removed_checkpoint_does_not_count(tmp_path, monkeypatch, step):
    """A kill within any removal leaves no folder with the name of a checkpoint from which a file is missing."""
    run = Run(tmp_path)
    for number in (5, 10):
        save(run, number)

    def killed_after_one_file(folder, **_):
        if any(folder.glob("*.safetensors")):
            (folder / "weights.safetensors").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed_after_one_file)
        save(run, step)
    for folder in run.checkpoints():
        assert {path.name for path in folder.iterdir()} == set(FILES)
    assert run.load_checkpoint()[0].step == (10 if step == 5 else 5 if step == 10 else 15)


def test_what_a_kill_left_is_ignored_and_removed(tmp_path):
    run = Run.create(tmp_path, "demo", {})
    save(run, 5)
    for name in ("step-00000006.tmp", "step-00000010.tmp", "step-00000003.old.tmp"):
        leftover = run.folder / "checkpoints" / name
        leftover.mkdir()
        (leftover / "weights.safetensors").write_bytes(b"half")
    assert [path.name for path in run.checkpoints()] == ["step-00000005"]
    assert run.load_checkpoint()[0].step == 5
    save(run, 10)
    with run.locked():
        pass
    assert names_in(run.folder / "checkpoints") == ["step-00000005", "step-00000010"]


def test_a_checkpoint_too_many_is_removed_when_the_run_is_resumed(tmp_path, monkeypatch):
    run = Run.create(tmp_path, "demo", {})
    with monkeypatch.context() as patch:
        patch.setattr(run, "_keep_two_checkpoints", lambda: None)  # killed before it
        for step in (5, 10, 15):
            save(run, step)
    assert len(run.checkpoints()) == 3
    with run.locked():
        assert [path.name for path in run.checkpoints()] == ["step-00000010", "step-00000015"]


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
    before = files_in(tmp_path)

    def fill(tensors, path):
        if path.stem != name:
            return save_file(tensors, path)
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoints, "save_file", fill)
    full = f"^cannot write {tmp_path}/checkpoints/step-00000010: the disk is full; make room, then resume or repeat$"
    with pytest.raises(UserError, match=full):
        save(run, 10)
    assert files_in(tmp_path) == before
    assert names_in(tmp_path / "checkpoints") == ["step-00000005"]


# Reading.


def test_there_may_be_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path} has no checkpoint to start from$"):
        Run(tmp_path).load_checkpoint()


@pytest.mark.parametrize("name", ["step-00000005.tmp", "step-5", "step-", "step-00000005 (copy)", "step-0000000a"])
def test_other_folders_are_no_checkpoints(tmp_path, name):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert Run(tmp_path).checkpoints() == []


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing", "one bit", "huge"])
def test_damaged_files(tmp_path, file, damage):
    run = Run(tmp_path)
    save(run, 5)
    path = save(run, 10) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "huge":  # sparse: reading it would take hours
        os.truncate(path, 10**13)
    else:
        flipped = content.replace(b'"step": 10', b'"step": 11') if file == "state.json" else content[:-1] + b"\x41"
        path.write_bytes(
            {"truncated": content[: len(content) // 2], "empty": b"", "garbage": os.urandom(99)}.get(damage, flipped)
        )
        assert path.read_bytes() != content
    refusal(run)


def edited(folder, **values):
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({k: v for k, v in (state | values).items() if v != "missing"}))


NOT_COUNTS = [-5, "15", 15.5, 1e30, 10**400, True, None, [], {}, "missing", float("nan"), float("inf"), 2**53 + 1]


@pytest.mark.parametrize("value", NOT_COUNTS, ids=lambda value: str(value)[:9])
@pytest.mark.parametrize("key", ["step", "seconds", "images_seen", "data", "digest"])
def test_a_state_of_other_values(tmp_path, key, value):
    run = Run(tmp_path)
    edited(save(run, 10), **{key: value})
    refusal(run)


@pytest.mark.parametrize(
    "content", ["null", "[]", "3", "{}", '{"step": 10}', "[" * 100_000, '{"a":' * 100_000], ids=len
)
def test_a_state_of_another_form(tmp_path, content):
    run = Run(tmp_path)
    (save(run, 10) / "state.json").write_text(content)
    refusal(run)


def test_an_unknown_entry_of_the_state(tmp_path):
    run = Run(tmp_path)
    edited(save(run, 10), more=1)
    assert "more" in refusal(run)


@pytest.mark.parametrize("file", FILES)
def test_files_of_another_checkpoint(tmp_path, file):
    run = Run(tmp_path)
    older = save(
        run, 5, {name: tensor + 1 for name, tensor in WEIGHTS.items()}, {"linear.weight/exp_avg": torch.ones(2, 3)}
    )
    shutil.copy(older / file, save(run, 10) / file)
    assert "its files do not belong together" in refusal(run)


def test_a_checkpoint_under_the_name_of_another_step(tmp_path):
    run = Run(tmp_path)
    os.rename(save(run, 5), tmp_path / "checkpoints" / "step-00000006")
    assert "its files do not belong together" in refusal(run)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_numbers_that_are_not_finite(tmp_path, value, dtype):
    run = Run(tmp_path)
    bad = torch.tensor([1.0, value]).to(dtype)
    save(run, 5, WEIGHTS | {"linear.bias": bad})
    assert "linear.bias is NaN or infinite" in refusal(run)
    save(run, 6, WEIGHTS, {"linear.bias/exp_avg": bad})
    assert "linear.bias/exp_avg is NaN or infinite" in refusal(run)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.complex64, torch.int8], ids=str)
def test_types_that_no_checkpoint_has(tmp_path, dtype):
    run = Run(tmp_path)
    save(run, 5, WEIGHTS | {"linear.bias": torch.ones(2).to(dtype)})
    assert f"linear.bias has the type {dtype}" in refusal(run)


def test_a_file_is_not_read_if_it_is_much_larger_than_the_weights(tmp_path, monkeypatch):
    run, module = Run(tmp_path), torch.nn.Linear(100, 100)
    save(run, 5, WEIGHTS | {"linear.bias": torch.ones(500_000)})
    assert run.load_checkpoint()[0].step == 5
    monkeypatch.setattr(checkpoints, "load_file", lambda path: pytest.fail("it was read"))
    with pytest.raises(UserError, match="weights.safetensors has 2[0-9]{6} bytes, which is too many"):
        run.load_checkpoint(module)
    os.truncate(run.checkpoints()[-1] / "state.json", 2 << 20)
    with pytest.raises(UserError, match="state.json has 2097152 bytes, which is too many"):
        run.progress()


def test_negative_variances(tmp_path):
    run, weights = Run(tmp_path), {"norm.running_mean": torch.tensor([-1.0]), "norm.running_var": torch.zeros(2)}
    save(run, 1, weights)
    assert run.load_checkpoint()[1].keys() == weights.keys()
    save(run, 2, weights | {"norm.running_var": torch.tensor([1, -1e-9])})
    assert "norm.running_var is a variance and negative" in refusal(run)


def test_large_numbers_are_finite(tmp_path):
    run = Run(tmp_path)
    save(run, 5, {"weight": torch.tensor(1e300, dtype=torch.float64)})
    assert run.load_checkpoint()[1]["weight"] == 1e300


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "dump", [lambda bomb, path: torch.save(bomb, path), lambda b, p: p.write_bytes(pickle.dumps(b))]
)
def test_no_checkpoint_can_run_code(tmp_path, file, dump):
    run = Run(tmp_path)
    dump(Bomb(str(tmp_path / "boom")), save(run, 5) / file)
    refusal(run)
    assert not (tmp_path / "boom").exists()


# Weights and a model.


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"weight": torch.zeros(2, 4)}, r"'weight' there is float32 \(2, 4\), but float32 \(2, 3\) is expected"),
        ({"bias": None}, r"'bias' there is nothing, but float32 \(2,\) is expected"),
        ({"extra": torch.zeros(1)}, r"'extra' there is float32 \(1,\), but nothing is expected"),
        *(
            (
                {"bias": torch.zeros(2, dtype=dtype)},
                f"'bias' there is {str(dtype)[6:]} .2,., but float32 .2,. is expect",
            )
            for dtype in (torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
        ),
        ({"bias": torch.zeros(2, dtype=torch.complex64)}, r"'bias' there is complex64 \(2,\), but float32"),
    ],
)
def test_weights_of_another_architecture(tmp_path, changed, found):
    module = torch.nn.Linear(3, 2)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights = {name: tensor for name, tensor in (own | changed).items() if tensor is not None}
    with pytest.raises(UserError, match=f"^the checkpoint in {tmp_path} is of another architecture: at {found}"):
        load_weights(module, weights, tmp_path)
    assert all(torch.equal(tensor, own[name]) for name, tensor in module.state_dict().items())


def test_weights_of_16_bits_become_weights_of_32_bits(tmp_path):
    module = torch.nn.Linear(3, 2)
    load_weights(module, {name: tensor.half() + 1 for name, tensor in module.state_dict().items()}, tmp_path)
    assert module.bias.dtype == torch.float32
    torch.testing.assert_close(module.bias, module.bias.half().float(), rtol=0, atol=0)


def test_weights_that_fit(tmp_path):
    module = torch.nn.Linear(3, 2)
    weights = {name: tensor + 1 for name, tensor in module.state_dict().items()}
    load_weights(module, weights, tmp_path)
    assert torch.equal(module.bias, weights["bias"])


# Data.


def test_a_fingerprint_is_of_the_shape_and_of_images_over_all_the_data(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(2000, 4, 4, 3), dtype=np.uint8)
    ours = fingerprint(images)
    assert ours == fingerprint(images.copy()) == fingerprint(np.asfortranarray(images))
    assert ours != fingerprint(images[:-1]) != fingerprint(images.reshape(2000, 2, 8, 3)) != ours
    for row in (0, 1999):
        other = images.copy()
        other[row, 0, 0, 0] ^= 1
        assert fingerprint(other) != ours
    assert fingerprint(images[::-1]) != ours
    few = images[:10].copy()
    few[4] ^= 1
    assert fingerprint(few) != fingerprint(images[:10])


def test_other_data_are_refused(tmp_path):
    images = np.zeros((5, 4, 4, 3), np.uint8)
    progress = Progress(1, 1.0, 1, fingerprint(images))
    check_data(progress, images, tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path} was trained on other images than those at its data path now: "):
        check_data(progress, images + 1, tmp_path)
