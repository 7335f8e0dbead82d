"""Run folders hold whole files or none, belong to one process, and refuse what is damaged in one line."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pyro_lom.errors import UserError
from pyro_lom.files import replacing
from pyro_lom.training import runs
from pyro_lom.training.checkpoints import Progress
from pyro_lom.training.runs import Run, numbered

ROOT = Path(__file__).parents[3]


def save(run, step):
    tensors = {"weight": torch.arange(60.0)}
    return run.save_checkpoint(Progress(step, 1.5, 4 * step, "data"), tensors, tensors)


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
    (tmp_path / "runs" / "20250101-backup").mkdir()
    assert Run.create(tmp_path / "runs", "demo", {}).folder.name == "00042-demo"


def test_numbers_of_six_digits(tmp_path):
    (tmp_path / "99999-x").mkdir()
    assert [Run.create(tmp_path, "demo", {}).folder.name for _ in range(2)] == ["100000-demo", "100001-demo"]
    assert [number for number, _ in numbered(tmp_path)] == [100_001, 100_000, 99_999]
    (tmp_path / "999999-x").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path} is full: its last run has the number 999999; name another"):
        Run.create(tmp_path, "demo", {})
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_hundred_thousand_runs_cost_no_time(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    run = Run.create(tmp_path, "demo", {})
    environment = run.environment()
    names = [f"{number:05d}-old" for number in range(100_000)]
    read = []
    monkeypatch.setattr(runs.os, "listdir", lambda folder: [run.folder.name, *names])
    monkeypatch.setattr(Run, "environment", lambda self: read.append(self.folder) or environment)
    began = time.process_time()
    assert Run.create(tmp_path, "demo", {}).folder.name == "100000-demo"
    assert Run.restarted(tmp_path, {"seed": 1}) is None
    assert time.process_time() - began < 2
    assert [path.name for path in read] == [f"{number:05d}-old" for number in range(99_999, 98_999, -1)]


def test_runs_that_begin_at_once_have_different_numbers(tmp_path):
    with ThreadPoolExecutor(8) as pool:  # a lock is of an open file, so threads exclude each other as processes do
        folders = list(pool.map(lambda number: Run.create(tmp_path, f"seed{number}", {}).folder.name, range(24)))
    assert sorted(int(name[:5]) for name in folders) == list(range(24))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(folders)


@pytest.mark.parametrize("step", ["write", "sync", "rename"])
def test_a_run_whose_creation_is_killed_does_not_exist(tmp_path, monkeypatch, step):
    """The kill is a fork that ends within, so that nothing of the program answers it."""
    end = lambda *_, **__: os._exit(9)  # noqa: E731
    child = os.fork()
    if child == 0:
        target = {"write": (Path, "write_bytes"), "sync": (runs, "sync"), "rename": (os, "rename")}[step]
        setattr(*target, end)
        Run.create(tmp_path, "killed", {})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert numbered(tmp_path) == []
    assert Run.create(tmp_path, "demo", {}).folder.name == "00000-demo"
    assert [path.name for path in tmp_path.iterdir()] == ["00000-demo"]


def test_a_folder_of_the_user_is_not_removed(tmp_path):
    mine = tmp_path / ".unfinished.tmp" / "mine"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/00000-demo: Directory not empty$"):
        Run.create(tmp_path, "demo", {})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("mine")
    mine.unlink()
    mine.parent.rmdir()
    mine.parent.symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/00000-demo: File exists$"):
        Run.create(tmp_path, "demo", {})
    assert files_in(elsewhere) == {Path("config.json"): b"mine"}


@pytest.mark.parametrize("name", ["a\0b", "\udcff"])
def test_names_that_are_no_text(tmp_path, name):
    for use in (lambda folder: Run.create(folder, "demo", {}), Run.open):
        with pytest.raises(UserError, match="^the name '.*' is not a text in UTF-8 without NUL: choose another one$"):
            use(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert Run.create(tmp_path / "läufe\u3000", "demo", {}).folder.exists()


@pytest.mark.parametrize("length", [300, 5000])
def test_names_that_are_too_long(tmp_path, length):
    with pytest.raises(UserError, match="^cannot write .*: File name too long$"):
        Run.create(tmp_path / ("a" * length), "demo", {})
    with pytest.raises(UserError, match="is not a run folder"):
        Run.open(tmp_path / ("a" * length))


def test_a_run_begins_with_its_configuration_and_environment(tmp_path):
    config = {"preset": "demo", "train": {"steps": 3, "clip_norm": None}}
    run = Run.create(tmp_path, "demo", config)
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json", "environment.json"]
    assert Run.open(run.folder).read_json("config.json") == config
    environment = run.read_json("environment.json")
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert run.environment().processes == 1


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


# Links and devices.

PLACES = ["log.txt", "metrics.jsonl", "summary.json.tmp", "figures", "figures/a.png", "checkpoints", "more/deep/x"]


@pytest.mark.parametrize("kind", ["link", "broken link", "link to a folder", "pipe"])
@pytest.mark.parametrize("place", PLACES)
def test_links_and_devices_are_refused(tmp_path, place, kind):
    run = Run.create(tmp_path / "runs", "demo", {})
    path, outside = run.folder / place, tmp_path / "outside"
    path.parent.mkdir(parents=True, exist_ok=True)
    outside.mkdir()
    (outside / "mine").write_text("mine")
    targets = {"link": outside / "mine", "broken link": outside / "none", "link to a folder": outside}
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(targets[kind])
    with pytest.raises(UserError, match=f"^{path} is a link or a device, which no run folder contains: remove it$"):
        Run.open(run.folder)
    assert files_in(outside) == {Path("mine"): b"mine"}


def test_a_pipe_for_a_configuration_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="is not a run folder"):
        Run.open(tmp_path)


def test_what_another_process_removes_meanwhile_is_no_device(tmp_path, monkeypatch):
    run = Run.create(tmp_path, "demo", {})
    (run.folder / "checkpoints").mkdir()
    listed = [(str(run.folder), ["checkpoints"], [".summary.json.0a1b2c3d.partial"])]
    monkeypatch.setattr(runs.os, "walk", lambda folder: listed)
    assert Run.open(run.folder).folder == run.folder


def test_a_link_to_a_run_is_opened(tmp_path):
    run = Run.create(tmp_path, "demo", {"seed": 1})
    (tmp_path / "latest").symlink_to(run.folder)
    assert Run.open(tmp_path / "latest").read_json("config.json") == {"seed": 1}


# One process for each run.


def test_only_one_holds_a_run(tmp_path):
    run = Run.create(tmp_path, "demo", {})
    in_use = f"^{run.folder} is in use by another process: stop it, or wait for its end$"
    with run.locked():
        for _ in range(2):
            with pytest.raises(UserError, match=in_use), Run.open(run.folder).locked():
                pass
        assert run.read_json("config.json") == {}
        with Run.create(tmp_path, "demo", {}).locked():  # another run is free
            pass
    with run.locked():
        pass
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json", "environment.json"]


HOLD = """
import sys, time
from pyro_lom.training.runs import Run
with Run.open(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_nothing(tmp_path):
    run = Run.create(tmp_path, "demo", {})
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(run.folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is in use by another process"), run.locked():
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with run.locked():
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(runs.fcntl, "flock", no_locks)
    with Run.create(tmp_path, "demo", {}).locked():
        pass


# Files.


@pytest.mark.parametrize("content", [b"", b'{"preset": "de', b"\xff\xfe\x00", b'"\xff"', b"[]", b"null", b"3", b"NaN"])
def test_damaged_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/config.json cannot be read: ") as refusal:
        Run.open(tmp_path).read_json("config.json")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content", ['{"a": ' * 100_000, '{"a": [' + "[" * 100_000, f'{{"a": 1{"0" * 5000}}}', '{"a": 1e999}']
)
def test_json_that_python_cannot_hold(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/summary.json cannot be read: "):
        Run(tmp_path).read_json("summary.json")


def test_a_file_without_end(tmp_path):
    path = tmp_path / "summary.json"
    path.touch()
    os.truncate(path, 10**13)
    with pytest.raises(UserError, match=f"^{path} cannot be read: it has 10000000000000 bytes$"):
        Run(tmp_path).read_json("summary.json")


WRONG = {"commit": 3, "python": None, "packages": [], "threads": "2", "processes": 0, "devices": "cpu", "job": []}


@pytest.mark.parametrize("key", WRONG)
def test_an_environment_of_other_values(tmp_path, key):
    run = Run.create(tmp_path, "demo", {})
    run.write_json("environment.json", run.read_json("environment.json") | {key: WRONG[key]})
    with pytest.raises(UserError, match=rf"^{run.folder}/environment.json cannot be read: .* - at `\$.{key}`$"):
        run.environment()


def test_an_environment_of_an_older_version(tmp_path):
    run = Run.create(tmp_path, "demo", {})
    older = {k: v for k, v in run.read_json("environment.json").items() if k not in ("job", "processes")}
    run.write_json("environment.json", older)
    assert run.environment().processes == 1


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
    run.log("zwölf \udcff")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "one\nzwölf \\udcff\n"


NOT_METRICS = [
    "3",
    "[]",
    "null",
    '"step"',
    "{}",
    '{"loss": 1.0}',
    '{"step": "5"}',
    '{"step": 5.5}',
    '{"step": -5}',
    '{"step": true}',
    '{"step": 5, "loss": null}',
    '{"step": 5, "loss": [1]}',
    '{"step": 5, "loss": 1e999}',
    f'{{"step": 5, "loss": {"9" * 400}}}',
    f'{{"step": 5, "loss": -{"9" * 310}}}',
    f'{{"step": 1{"0" * 5000}}}',
    "[" * 100_000,
    '{"step": 5, ' + ", ".join(f'"{name}": 1' for name in range(1000)) + "}",
]


@pytest.mark.parametrize("line", NOT_METRICS, ids=lambda line: line[:20])
def test_lines_that_are_no_metrics(tmp_path, line):
    run, path = Run(tmp_path), tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 2}}\n{line}\n')
    for read in (run.metrics, lambda: run.truncate_metrics(9)):
        with pytest.raises(UserError, match=f"^{path}: line 2 contains no metrics .*: remove it$") as refusal:
            read()
        assert "\n" not in str(refusal.value)
    assert path.read_text() == f'{{"step": 2}}\n{line}\n'


@pytest.mark.parametrize("line", [b'{"step": 8, "lo', b"\xff\xfe", bytes(100), b'{"step": 8{"step": 9}', b"\x1b[2J"])
def test_a_line_that_is_cut_off_is_the_last_one(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2}\n' + line)
    assert Run(tmp_path).metrics() == [{"step": 2}]
    path.write_bytes(b'{"step": 2}\n' + line + b'\n{"step": 4}\n')
    with pytest.raises(UserError, match=f"^{path}: line 2 contains no metrics .*: remove it$"):
        Run(tmp_path).metrics()


def test_metrics_are_read_up_to_32_mb(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    os.truncate(tmp_path / "metrics.jsonl", (32 << 20) + 1)
    with pytest.raises(UserError, match="metrics.jsonl cannot be read: it has 33554433 bytes"):
        Run(tmp_path).metrics()


def test_metrics_that_are_a_folder(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path}/metrics.jsonl cannot be read: Is a directory$"):
        Run(tmp_path).metrics()


def test_a_derived_run_is_complete_or_nothing(tmp_path):
    run = Run.create(tmp_path / "runs", "tiny", {"a": 1})
    (tmp_path / "others").mkdir()

    def fill(packed):
        packed.write_json("summary.json", {"b": 2.0})

    def fail(packed):
        fill(packed)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.derive(tmp_path / "others" / "small", {"a": 3}, fill=fail)
    assert not list((tmp_path / "others").iterdir())
    derived = run.derive(tmp_path / "others" / "small", {"a": 3}, fill=fill)
    assert derived.read_json("config.json") == {"a": 3} and derived.read_json("summary.json") == {"b": 2.0}
    assert derived.environment() == run.environment()
