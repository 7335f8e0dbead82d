"""The tree keeps its layers: experiments -> guides -> models -> pyro_lom, and a system is two files of one name."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("pyro_lom", "models", "guides", "experiments")
FILES = [path.relative_to(ROOT) for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported_by(path):
    """Top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno} is a relative import"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_layer_imports_a_higher_one(path):
    higher = LAYERS[LAYERS.index(path.parts[0]) + 1 :]
    assert not {*higher, "tests"} & set(imported_by(path))


def test_models_and_guides_have_the_same_file_names():
    models, guides = ({path.name for path in (ROOT / layer).iterdir() if path.suffix == ".py"} for layer in LAYERS[1:3])
    assert models == guides


@pytest.mark.parametrize("name", ["utils", "util", "common", "misc", "helpers"])
def test_every_file_says_what_it_holds(name):
    assert name not in {path.stem for path in FILES}
