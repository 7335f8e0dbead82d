"""Versions in pyproject.toml, environment.yml, constraints.txt and CITATION.cff agree; every package is installed."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import pyro_lom

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_TO_PIP = {"pytorch": "torch"}


def ranges(lines):
    """Name -> range of each requirement."""
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r.specifier for r in requirements}


DECLARED = ranges(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
PINS = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_conda_has_the_same_ranges():
    text = (ROOT / "environment.yml").read_text().partition("dependencies:\n")[2]
    conda = ranges(re.findall(r"^ +- ([\w.-]+[<>=].*)$", text, re.MULTILINE))
    conda = {CONDA_TO_PIP.get(name, name): specifier for name, specifier in conda.items()}
    assert conda == DECLARED | ranges([f"python{PROJECT['requires-python']}"])


@pytest.mark.parametrize("name", DECLARED)
def test_the_pin_is_inside_the_range(name):
    pins = {canonicalize_name(pinned): Version(version) for pinned, version in PINS}
    assert name in pins, f"constraints.txt does not pin {name}"
    assert pins[name] in DECLARED[name]


def test_every_line_of_the_constraints_is_one_exact_public_version():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == [f"{name}=={version}" for name, version in PINS]
    assert len({canonicalize_name(name) for name, _ in PINS}) == len(PINS)
    assert not [name for name, version in PINS if Version(version).local]


def test_the_citation_has_the_version():
    assert f"\nversion: {pyro_lom.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_folder_of_code_is_a_package():
    """Installation finds packages only: a folder without __init__.py would be left out."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {path.parent for pattern in patterns for path in ROOT.glob(f"{pattern.rstrip('*')}/**/*.py")}
    assert len(folders) > 10 and [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_no_tracked_file_names_a_path_of_one_machine():
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    machine_path = re.compile(rb"(?<![\w.~-])/(work|root|tmp/lab)\b/?")
    files = [ROOT / name.decode() for name in listing.split(b"\0") if name]
    found = {
        str(path.relative_to(ROOT)): match.group().decode()
        for path in files
        if path.is_file() and (match := machine_path.search(path.read_bytes()))
    }
    assert not found
