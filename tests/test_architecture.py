"""The tree keeps its layers, a system is two files of one name, and what serves every system names none."""

import ast
from pathlib import Path

import jaxtyping
import pytest
import torch
from tiny import tiny_pair

from experiments.systems import PRESETS, SYSTEMS, preset
from pyro_lom.matching import permute

ROOT = Path(__file__).parents[1]
LAYERS = ("pyro_lom", "models", "guides", "experiments")
FILES = [path.relative_to(ROOT) for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]

COMMANDS = {"fit", "evaluate", "sample", "interpolate", "retrieve", "report", "benchmark", "ablate"}
SHARED = {
    *("pyro_lom/training", "pyro_lom/objective.py", "pyro_lom/system.py", "pyro_lom/figures.py"),
    *("experiments", "experiments/training", "experiments/evaluation", "experiments/benchmarks"),
}
OPTION_NAMES = "experiments/options.py"  # a table of old and new names of options
FOR_EVERY_SYSTEM = [path for path in FILES if {str(path), str(path.parent)} & SHARED and str(path) != OPTION_NAMES]
PAIRS = ("orderless", "ordered")  # and "model", which is a role as well
NAMES = sorted({*PAIRS, "lom-", *(kind.kind for kind in SYSTEMS)})


def syntax_of(path):
    return ast.parse((ROOT / path).read_text())


def imported_by(path):
    """Top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(syntax_of(path)):
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


# No branch on a system's name or class.


def strings_of(tree):
    """String constants and their lines, those of f-strings included; no docstrings, and no help texts below fields."""
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            yield node.value, node.lineno


def classes_of(*folders):
    """Names of the classes that the files of a folder define."""
    paths = [path for path in FILES if str(path.parent) in folders]
    return {node.name for path in paths for node in ast.walk(syntax_of(path)) if isinstance(node, ast.ClassDef)}


def classes_referred_to(tree):
    """Names and attributes in a syntax tree, and what is imported, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.name, node.lineno) for alias in node.names)


def named_systems(tree):
    return [f"line {line}: {text!r}" for text, line in strings_of(tree) if text.startswith(tuple(NAMES))]


def named_classes(tree):
    return [f"line {line}: {name}" for name, line in classes_referred_to(tree) if name in SYSTEM_CLASSES]


SYSTEM_CLASSES = classes_of("models", "guides", "experiments/systems") - {"SystemOptions"}


def test_the_names_and_the_files_are_found():
    assert {"lom", "genesis-v2", "emorl", "autoregressive", "scene-autoregressive", "sri"} <= set(NAMES)
    assert {"LatentObjectModel", "EfficientMorlGuide", "Lom", "GenesisV2", "SlotOptions"} <= SYSTEM_CLASSES
    assert {path.parent.name for path in FOR_EVERY_SYSTEM} >= {"training", "evaluation", "benchmarks", "experiments"}
    assert {path.stem for path in FOR_EVERY_SYSTEM} >= {*COMMANDS, "trainer", "step", "objective", "system", "figures"}
    assert all(any(name.startswith(start) for name in PRESETS) for start in ("lom-", "genesis-v2", "emorl"))


@pytest.mark.parametrize("path", FOR_EVERY_SYSTEM, ids=str)
def test_what_serves_every_system_names_none(path):
    assert not named_systems(syntax_of(path))


@pytest.mark.parametrize("path", FOR_EVERY_SYSTEM, ids=str)
def test_what_serves_every_system_tests_for_no_class_of_one(path):
    assert not named_classes(syntax_of(path))


@pytest.mark.parametrize(
    "line", ['system["orderless"]', 'name.startswith("lom-")', 'f"ordered/{site}"', 'kind == "genesis-v2"']
)
def test_a_name_would_be_found(line):
    assert named_systems(ast.parse(f'def f(system):\n    """ordered, lom"""\n    return {line}'))


@pytest.mark.parametrize(
    "line", ["isinstance(model, LatentObjectModel)", "hasattr(models.lom.LatentObjectModel, name)", "type(a) is Lom"]
)
def test_a_class_would_be_found(line):
    assert named_classes(ast.parse(line))


# The tests check shapes and types.


@pytest.mark.parametrize(
    "call",
    [
        lambda pair: permute(torch.zeros(2, 3, 4), torch.zeros(2, 5, dtype=torch.long)),
        lambda pair: pair.model(torch.zeros(3, 32, 32)),
        lambda pair: pair.guide(torch.zeros(3, 32, 32)),
        lambda pair: preset(3),
    ],
    ids=LAYERS,
)
def test_wrong_shapes_and_types_are_found(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call(tiny_pair())
