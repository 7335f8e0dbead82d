"""A run that is killed at any write goes on, ends in the same weights and metrics, and leaves no partial file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

TRAIN = """
import json, os, shutil, signal, sys
from pathlib import Path

import pyro, torch

from pyro_lom.training.runs import Run, numbered
from test_trainer import final_weights, make_trainer, untimed_metrics

pyro.enable_validation(False)
torch.set_num_threads(1)  # a fork has only the thread that forks


def train(runs_dir):
    begun = numbered(runs_dir)
    run = Run.open(runs_dir / begun[0][1]) if begun else Run.create(runs_dir, "demo", {})
    with run.locked():
        trainer = make_trainer(run.folder, checkpoint_every=4, log_every=3, preview_every=None)
        if begun:
            trainer.resume()
        trainer.fit()
        run.write_json("summary.json", {})


def until(number, runs_dir):
    '''Train in a process of its own, which is killed before its write of this number. Return the number of writes.'''
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def about_to_write(event, arguments):
            nonlocal count
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "fsync"):
                if str(runs_dir) in str(arguments[0]) or event == "fsync":
                    count += 1
                    if count == number:
                        os.kill(os.getpid(), signal.SIGKILL)

        fsync = os.fsync
        os.fsync = lambda descriptor: (about_to_write("fsync", (descriptor,)), fsync(descriptor))
        sys.addaudithook(about_to_write)
        try:
            train(runs_dir)
            os.write(writer, str(count).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader) as pipe:
        return int(pipe.read() or 0)


def state(runs_dir):
    [(_, name)] = numbered(runs_dir)
    weights = {key: tensor.tolist() for key, tensor in final_weights(runs_dir / name).items()}
    return weights, untimed_metrics(runs_dir / name), sorted(str(p.relative_to(runs_dir)) for p in runs_dir.rglob("*"))


os.mkdir("whole")
num_writes, wrong = until(0, Path("whole")), []
whole = state(Path("whole"))
for number in range(1, num_writes + 1):
    os.mkdir("killed")
    finished = until(number, Path("killed")) or until(0, Path("killed"))
    if not finished or state(Path("killed")) != whole:
        wrong.append(number)
    shutil.rmtree("killed")
json.dump({"writes": num_writes, "wrong": wrong, "files": whole[2]}, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_is_killed_at_any_write_goes_on(tmp_path):
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (ROOT, here, here.parents[1])))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", TRAIN], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == [] and found["writes"] > 60
    assert found["files"] == [
        "00000-demo",
        "00000-demo/checkpoints",
        *(
            f"00000-demo/checkpoints/step-{step:08d}{name}"
            for step in (8, 10)
            for name in ("", "/optimizer.safetensors", "/state.json", "/weights.safetensors")
        ),
        *(f"00000-demo/{name}" for name in ("config.json", "environment.json", "metrics.jsonl", "summary.json")),
    ]
