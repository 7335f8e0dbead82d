"""README.md and docs/: snippets run, commands parse, links lead to files, and names of options are those of today."""

import contextlib
import importlib
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from torch.distributed.run import get_args_parser

from experiments import cli, fit
from experiments.config import Data, check_bounds, option_fields
from experiments.systems import PRESETS, check
from pyro_lom.data.hdf5 import read_scenes, write_scenes
from pyro_lom.data.towers import make_towers

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BASH = shutil.which("bash")
_PLACEHOLDERS = {"PRESET": "demo", "[PRESET]": "demo", "[options]": None, "--help": None}

of_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def other_blocks(page: Path) -> list[list[str]]:
    """The lines of indented blocks and of fenced blocks that are not Python."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    blocks = [content.splitlines() for language, content in fenced if language != "python"]
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE):
        blocks.append([line.removeprefix("    ") for line in block.splitlines()])
    return blocks


# Snippets


def is_excerpt(code: str) -> bool:
    """Whether the code is a part of a model or a guide, line by line."""
    files = [file.read_text(encoding="utf-8") for layer in ("models", "guides") for file in (ROOT / layer).glob("*.py")]
    return any(textwrap.indent(code, " " * depth) in file for depth in (0, 4, 8) for file in files)


def tiny_demo():
    """The demo with small networks and batches, on the data set that it expects."""
    base = _DEMO
    model = replace(
        base.model,
        num_slots=3,
        decoder_width=8,
        transformer_width=8,
        orderless=replace(base.model.orderless, encoder_width=8),
        schedule=replace(base.model.schedule, orderless_first=0.5, ordered_batch_size=4, ordered_rendered=2),
    )
    train = replace(base.train, steps=4, batch_size=4, log_every=2)
    return replace(base, model=model, train=train)


_DEMO = PRESETS["demo"]


@pytest.fixture(scope="module")
def with_a_run(tmp_path_factory):
    """A folder with a run of a tiny demo and its data set.

    Trainings that begin in it take two steps per phase, and end without numbers and pictures.
    """
    folder = tmp_path_factory.mktemp("docs")
    scenes = replace(make_towers(160, seed=3), splits={"train": range(144), "test": range(144, 160)})
    write_scenes(folder / Data.path, scenes, source="tests", seed=3)
    module = sys.modules["experiments.fit"]

    def short_trainer(fabric, objective, images, phases, *args, trainer=module.Trainer, **options):
        phases = [replace(phase, steps=min(phase.steps, 2)) for phase in phases]
        return trainer(fabric, objective, images, phases, *args, **options)

    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(module, "Trainer", short_trainer)
        patch.setattr(module, "summarise", lambda held_out: {})
        patch.setattr(module, "draw", lambda *args, **options: [])
        patch.setattr("experiments.loading.ensure_towers", lambda path, size: read_scenes(path))
        patch.setitem(PRESETS, "demo", tiny_demo())
        fit(tiny_demo())
        yield folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if python_blocks(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_snippets_of_a_page_run_in_order(page, with_a_run, tmp_path, monkeypatch):
    shutil.copytree(with_a_run, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    namespace = {"__name__": "snippets"}
    monkeypatch.setitem(sys.modules, "snippets", type(sys)("snippets"))  # dataclasses look their module up
    for code in python_blocks(page):
        if not is_excerpt(code):
            exec(compile(code, f"{page.name}, snippet {code.splitlines()[0]!r}", "exec"), namespace)


# Commands

_RECORD = """
exec 3>&1
record() { { printf '%s\\037' "$@"; printf '\\036'; } >&3; }
python() { record python "$@"; }
make() { record make "$@"; }
torchrun() { record torchrun "$@"; }
command_not_found_handle() { :; }
"""


def commands(page: Path, folder: Path) -> list[list[str]]:
    """The words of every command line of a page, as a shell that can start no program expands them."""
    found = []
    for lines in other_blocks(page):
        if any(line.startswith("$ ") for line in lines):
            lines = _typed(lines)
        script = "\n".join(lines)
        if not re.search(r"\bpython experiments/|^make\b|\btorchrun ", script, re.MULTILINE):
            continue
        done = subprocess.run(
            [BASH, "-c", _RECORD + script], env={"PATH": ""}, cwd=folder, capture_output=True, text=True, check=False
        )
        assert "syntax error" not in done.stderr, f"{page.name}: {done.stderr}"
        found += [line.split("\037")[:-1] for line in done.stdout.split("\036") if line]
    return found


def _typed(lines: list[str]) -> list[str]:
    """What a person types in a block with prompts: no output."""
    typed, goes_on = [], False
    for line in lines:
        if goes_on or line.startswith(("$ ", "> ")):
            typed.append(line.removeprefix("$ ").removeprefix("> "))
            goes_on = line.endswith("\\")
    return typed


class Parsed(Exception):
    """The options of a command that was stopped before its work."""


def parse(command: str, arguments: list[str]) -> None:
    """Refuse what the command would refuse before it looks at files and devices.

    Raises:
        UserError: an option is unknown, has a wrong value, or does not go with another.
    """
    module = importlib.import_module(f"experiments.{command}")
    if command == "fit":
        options = module.parse(arguments)
        check(options.config, accumulate=options.accumulate, cuda_graph=options.cuda_graph)
        return
    real_parse = cli.parse

    def stop(*args, **kwargs):
        raise Parsed(real_parse(*args, **kwargs))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as stopped:
        patch.setattr(cli, "parse", stop)
        module.main(arguments)
    options = stopped.value.args[0]
    check_bounds(options)
    if command == "ablate":
        of_fit = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
        for name in options.presets if of_fit else options.presets[:1]:
            parse("fit", [name, *of_fit])


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, value = word.partition("=")
        pattern = rf"^{name} [?]?=" if is_variable else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {name}"
        if name == "ARGS":
            parse("fit", value.split())


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The module `toy` that docs/python.md describes."""
    (code,) = [code for code in python_blocks(ROOT / "docs" / "python.md") if "(SystemOptions)" in code]
    (tmp_path / "toy.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("toy", None)


def complaint(words: list[str]) -> str | None:
    """Why a command line is wrong."""
    program, *arguments = words
    try:
        if program == "make":
            check_make(arguments)
            return None
        if program == "torchrun":
            job = get_args_parser().parse_args(arguments)
            arguments = [job.training_script, *job.training_script_args]
        script, *arguments = arguments
        if not script.startswith("experiments/"):
            return None
        assert (ROOT / script).is_file(), f"there is no {script}"
        arguments = [word for word in (_PLACEHOLDERS.get(word, word) for word in arguments) if word is not None]
        for word in arguments:
            if word.startswith(("docs/", "tests/", "experiments/")):
                assert (ROOT / word).exists(), f"there is no {word}"
        parse(Path(script).stem, arguments)
    except (Exception, SystemExit) as error:
        return f"{' '.join(words)}: {error}"
    return None


@of_pages
def test_commands_parse(page, tmp_path, toy):
    lines = list(dict.fromkeys(map(tuple, commands(page, tmp_path))))
    assert [wrong for words in lines if (wrong := complaint(list(words)))] == []


def can_run(words: list[str]) -> bool:
    """Whether a command needs nothing but a run, towers, or a person's own images."""
    program, script, *arguments = words
    name = Path(script).stem
    if program != "python" or "--help" in arguments:
        return False
    if name == "fit":
        config = complaint(words) is None and sys.modules["experiments.fit"].parse(arguments).config
        return bool(config) and Path(config.data.path).exists()
    if name == "data":
        return arguments[0] != "render" and Path(arguments[2 if arguments[0] == "import" else 1]).exists()
    runs = [word for word in arguments if word.startswith("runs/")]
    return name not in ("ablate", "benchmark") and bool(runs) and all(Path(run).exists() for run in runs)


@pytest.mark.slow
@of_pages
def test_commands_run(page, with_a_run, toy, tmp_path, monkeypatch, capfd):
    """Commands that need no rendering engine, download or GPU are run, trainings for two steps per phase."""
    shutil.copytree(with_a_run, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    scenes = replace(make_towers(160, seed=3), splits={"train": range(144), "test": range(144, 160)})
    Path(Data.path).unlink()
    write_scenes(Path(Data.path), scenes, source="tests", seed=3)
    for number, image in enumerate(make_towers(80, seed=4, size=64).images):
        for folder, picture in (("my_images", image), ("my_masks", image[..., 0] // 64)):
            Path(folder).mkdir(exist_ok=True)
            Image.fromarray(picture).save(Path(folder) / f"{number:02}.png")
    Path("docs/results").mkdir(parents=True)
    monkeypatch.setitem(PRESETS, "demo", PRESETS["lom-genesis-v2-towers"])
    for words in dict.fromkeys(map(tuple, commands(page, tmp_path / "here"))):
        if not can_run(list(words)):
            continue
        _, script, *arguments = words
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        try:
            cli.run(importlib.import_module(f"experiments.{Path(script).stem}").main)
        except SystemExit as leaving:
            pytest.fail(f"{' '.join(words)}: exit code {leaving.code}\n{capfd.readouterr().err}")


@pytest.mark.parametrize(
    "line",
    [
        "python experiments/fit.py --train.stepz 3",
        "python experiments/fit.py no-such-preset",
        "python experiments/fit.py genesis-v2-towers --model.scene-dim 3",
        "python experiments/fit.py --accumulate 2",
        "python experiments/fit.py --train.steps 0",
        "python experiments/no_such_command.py",
        "python experiments/evaluate.py runs/1 --metrics beauty",
        "python experiments/ablate.py demo -- --train.stepz 3",
        "python experiments/data.py render moon data/moon.h5",
        "torchrun --no-such-option 2 experiments/fit.py",
        "torchrun --nproc-per-node 2 experiments/fit.py --train.stepz 3",
        "make dinner",
        'make fit ARGZ="--seed 1"',
        'make fit ARGS="--sead 1"',
    ],
)
def test_a_wrong_command_is_found(line, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"Text\n\n    {line}\n")
    assert [words for words in commands(page, tmp_path) if complaint(words)]


def test_commands_are_found_with_prompts_loops_and_braces(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "A loop:\n\n    $ for seed in 0 1; do\n    >   python experiments/fit.py demo --seed $seed\n    > done\n"
        "    python output (not a command)\n\nText\n\n```\nmake \\\n  test\npip install x\n```\n\n"
        "    A=1 python experiments/ablate.py a-{0..1} --seeds 2 > out  # a comment\n"
    )
    fits = [["python", "experiments/fit.py", "demo", "--seed", seed] for seed in "01"]
    ablation = ["python", "experiments/ablate.py", "a-0", "a-1", "--seeds", "2"]
    assert sorted(commands(page, tmp_path)) == sorted([["make", "test"], *fits, ablation])


# Names


@of_pages
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (target.exists() and (not heading or heading in _headings(target))):
            wrong.append(link)
    assert wrong == []


def _headings(page: Path) -> list[str]:
    """The anchors of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads]


@of_pages
def test_files_that_a_page_names_exist(page):
    names = re.findall(
        r"`((?:pyro_lom|models|guides|experiments|tests|docs)/[\w./-]*)", page.read_text(encoding="utf-8")
    )
    assert [name for name in names if not (ROOT / name).exists()] == []


OPTIONS = {name: value for config in PRESETS.values() for name, value, _ in option_fields(config) if name != "preset"}


@of_pages
def test_options_that_a_page_names_exist(page):
    text = re.sub(r"^## Old names$.*?(?=^## |\Z)", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"--((?:model|data|train)\.[\w.-]*\w)(?![\w.-]*\*)", text)
    sections = {name[: place.start()] for name in OPTIONS for place in re.finditer(r"\.", name)}
    flags = {re.sub(r"([\w-]+)$", r"no-\1", name) for name, value in OPTIONS.items() if isinstance(value, bool)}
    assert set(named) - set(OPTIONS) - flags - sections == set()


def test_the_page_of_options_has_all_presets_and_options():
    text = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    ablations = [name for name in PRESETS if re.fullmatch(r"ablation-\d-towers", name)]  # given as a range
    assert [name for name in PRESETS if f"`{name}`" not in text and name not in ablations] == []
    named = {name.replace(".no-", ".") for name in re.findall(r"`--([\w.-]+)", text)}
    assert set(OPTIONS) - named == set()
