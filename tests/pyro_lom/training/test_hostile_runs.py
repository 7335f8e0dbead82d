"""Generated damage to every file of a run: it is read as it was written, or refused in one line and left as it is."""

import json
import math
import os
import shutil
import stat
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_trainer import Killed, kill, make_trainer

from pyro_lom.errors import UserError
from pyro_lom.training import checkpoints
from pyro_lom.training.checkpoints import Progress
from pyro_lom.training.environment import Environment
from pyro_lom.training.runs import Run

pytestmark = pytest.mark.slow
CASES = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
STATE, TENSORS = "state.json", ("weights.safetensors", "optimizer.safetensors")
COUNTERS = ("step", "seconds", "images_seen", "data")

numbers = st.integers() | st.integers(-(10**400), 10**400) | st.floats()
leaves = st.none() | st.booleans() | numbers | st.text(max_size=20)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner), max_leaves=9)
deep = st.integers(500, 200_000).map(lambda depth: "[" * depth + "]" * depth)
dtypes = st.sampled_from(
    [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]
    + [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.int8]
)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run that was killed in its second phase, with a checkpoint at step 6."""
    run = Run.create(tmp_path_factory.mktemp("runs"), "demo", {"preset": "demo"})
    with pytest.raises(Killed):
        make_trainer(run.folder, at={8: kill}).fit()
    return run.folder


@pytest.fixture(scope="module")
def trainer(begun):
    return make_trainer(begun)


def is_refused(folder, read, right=None):
    """Whether `read` refuses, in one line that names the folder. Otherwise it returns `right`. No file changes."""
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    refusal = None
    try:
        assert read() == right
    except UserError as error:
        refusal = str(error)
        assert refusal.isprintable() and str(folder) in refusal
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before
    return refusal is not None


@contextmanager
def replaced(path, content):
    """Replace the content of a file within a block."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content.encode(errors="surrogatepass") if isinstance(content, str) else content)
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@st.composite
def damaged(draw, content):
    """Other bytes: some of them changed, cut off, repeated, or put in between."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 40)) | st.just(len(content)))
    other = content[:start] + draw(st.binary(max_size=40)) + content[end:]
    return other if other != content else content + b"\0"


@CASES
@given(data=st.data(), name=st.sampled_from([STATE, *TENSORS]))
def test_bytes_of_a_checkpoint(begun, data, name):
    run = Run(begun)
    right, path = run.load_checkpoint()[0], run.checkpoints()[-1] / name
    with replaced(path, data.draw(damaged(path.read_bytes()))):
        refused = is_refused(begun, lambda: run.load_checkpoint()[0], right)
        assert refused or name == STATE  # white space in JSON, for example


@CASES
@given(key=st.sampled_from(["step", "seconds", "images_seen", "data", "digest", "more"]), value=values)
def test_values_of_a_state(begun, key, value):
    run = Run(begun)
    path = run.checkpoints()[-1] / STATE
    state = json.loads(path.read_text())
    with replaced(path, json.dumps(state | {key: value})):
        assert is_refused(begun, run.load_checkpoint)


@CASES
@given(key=st.sampled_from(["step", "seconds", "images_seen"]), value=numbers | leaves)
def test_counters_with_their_digest(begun, tmp_path_factory, key, value):
    """Also with a right digest, counters have their types and bounds."""
    folder = tmp_path_factory.mktemp("crafted") / "step-00000006"
    shutil.copytree(Run(begun).checkpoints()[-1], folder)
    state = json.loads((folder / STATE).read_text()) | {key: value}
    with suppress(OverflowError, UnicodeEncodeError):  # values that have no digest
        state["digest"] = checkpoints._digest(folder, Progress(**{name: state[name] for name in COUNTERS}))
    (folder / STATE).write_text(json.dumps(state))
    is_right = type(value) in ((int, float) if key == "seconds" else (int,)) and 0 <= value <= 2**53
    is_right = is_right and (key != "step" or value == 6) and (key != "seconds" or value <= 1e12)
    assert is_refused(folder, lambda: checkpoints.load(folder)[0].step, 6) or is_right


@st.composite
def other_tensors(draw, tensors):
    """The tensors, with one of them left out, added, or of another dtype, shape or value."""
    name = draw(st.sampled_from(sorted(name for name in tensors if tensors[name].is_floating_point())))
    tensor, kind = tensors[name], draw(st.sampled_from(["missing", "more", "dtype", "shape", "value"]))
    if kind == "missing":
        return {key: other for key, other in tensors.items() if key != name}
    if kind == "more":
        return tensors | {name + draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)): tensor.clone()}
    if kind == "dtype":
        return tensors | {name: tensor.to(draw(dtypes))}
    if kind == "shape":
        shape = draw(st.lists(st.integers(0, 5), max_size=5).map(tuple).filter(lambda shape: shape != tensor.shape))
        return tensors | {name: torch.zeros(shape)}
    bad = tensor.clone().flatten()
    bad[draw(st.integers(0, bad.numel() - 1))] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    return tensors | {name: bad.view(tensor.shape)}


@CASES
@given(data=st.data(), which=st.sampled_from(["weights", "optimizer"]))
def test_tensors_that_belong_together(begun, trainer, data, which):
    run = Run(begun)
    progress, weights, optimizer = right = run.load_checkpoint()
    tensors = {"weights": weights, "optimizer": optimizer}
    tensors[which] = data.draw(other_tensors(tensors[which]))
    run.save_checkpoint(progress, **tensors)
    try:
        assert is_refused(begun, trainer.resume)
    finally:
        run.save_checkpoint(*right)


@CASES
@given(line=values.map(json.dumps) | deep | st.text(max_size=40) | st.binary(max_size=40))
def test_lines_of_metrics(begun, line):
    run, path = Run(begun), begun / "metrics.jsonl"
    rows, line = run.metrics(), line.encode(errors="surrogatepass") if isinstance(line, str) else line
    with replaced(path, path.read_bytes() + line + b"\n"):
        is_refused(begun, lambda: run.metrics()[: len(rows)], rows)


@CASES
@given(content=values.map(json.dumps) | deep | st.binary(max_size=40))
@pytest.mark.parametrize("name", ["config.json", "environment.json", "summary.json", "evaluation.json"])
def test_json_files(begun, name, content):
    run = Run(begun)
    with replaced(begun / name, content):
        with suppress(ValueError, RecursionError):
            is_refused(begun, lambda: run.read_json(name), json.loads(content))
        assert is_refused(begun, lambda: run.read_json(name, Environment))


@CASES
@given(data=st.data(), kind=st.sampled_from(["link", "broken", "loop", "folder", "pipe", "socket"]))
def test_entries_of_a_run_folder(begun, tmp_path_factory, data, kind):
    places = [path.relative_to(begun) for path in begun.rglob("*")] + [Path("figures"), Path("a/b")]
    outside = tmp_path_factory.mktemp("outside")
    (outside / "mine").write_text("mine")
    folder = shutil.copytree(begun, outside / "run")
    path = folder / data.draw(st.sampled_from(places))
    path.parent.mkdir(exist_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.symlink_to({"link": outside / "mine", "broken": outside / "no", "loop": path, "folder": outside}[kind])
    assert is_refused(folder, lambda: Run.open(folder))
    assert (outside / "mine").read_text() == "mine"
