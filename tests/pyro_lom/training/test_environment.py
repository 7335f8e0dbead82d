"""What a run was computed with, and which job it belongs to."""

import os

import msgspec
import pytest
import torch

from pyro_lom.training import environment as module
from pyro_lom.training.environment import Environment, environment, job_name


def test_versions_and_devices():
    found = environment()
    assert found.packages["torch"] == torch.__version__
    assert found.threads == torch.get_num_threads() and found.devices
    assert found.job is None
    assert msgspec.json.decode(msgspec.json.encode(found), type=Environment) == found


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment().commit is None


@pytest.fixture
def as_git(monkeypatch, tmp_path):
    """`as_git(line)` makes a line of the shell the command git."""

    def make(line):
        git = tmp_path / "git"
        git.write_text(f"#!/bin/sh\n{line}\n")
        git.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return make


def test_git_takes_no_lock(as_git):
    """Another git process of the user, at the same moment, would fail."""
    as_git('echo "$@"')
    assert environment().commit == "--no-optional-locks describe --always --dirty"


def test_git_is_not_waited_for(as_git, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    as_git("exec sleep 100")
    assert environment().commit is None


def test_a_git_that_floods_its_output_is_stopped(as_git, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    as_git("exec cat /dev/zero")
    assert environment().commit is None


def test_a_tag_that_is_not_utf_8_is_escaped(as_git):
    as_git(r"printf '\351t\351'")
    assert environment().commit == r"\xe9t\xe9"


def test_a_job_is_named_by_its_id_and_what_starts_it(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert job_name().startswith("none ") and job_name().endswith(f" {os.getppid()}")
    ours = job_name()
    monkeypatch.setattr(os, "getppid", lambda: -1)
    assert job_name() != ours
