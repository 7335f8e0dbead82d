"""What a run was computed with, and which job it belongs to."""

import os

import msgspec
import torch

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


def test_git_takes_no_lock(monkeypatch, tmp_path):
    """Another git process of the user, at the same moment, would fail."""
    git = tmp_path / "git"
    git.write_text('#!/bin/sh\necho "$@"\n')
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert environment().commit == "--no-optional-locks describe --always --dirty"


def test_a_job_is_named_by_its_id_and_what_starts_it(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert job_name().startswith("none ") and job_name().endswith(f" {os.getppid()}")
    ours = job_name()
    monkeypatch.setattr(os, "getppid", lambda: -1)
    assert job_name() != ours
