"""Wrong options, JSON files and names of outputs: one line each, and no file of a user is written over."""

import importlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments import benchmark, cli, report
from experiments.config import bounds, from_dict, option_fields, to_dict
from experiments.datasets.describing import Info
from experiments.datasets.importing import Import
from experiments.datasets.rendering import Render
from experiments.evaluation.held_out import stored
from experiments.evaluation.tables import grid
from experiments.loading import read_config, read_origin
from experiments.systems import PRESETS, SYSTEMS, check, preset
from pyro_lom.errors import UserError
from pyro_lom.figures import save_box_plots, save_curves, save_error_bars, save_grid
from pyro_lom.training.runs import Run

# Upper bounds.

COMMANDS = ["ablate", "benchmark", "evaluate", "fit", "interpolate", "report", "retrieve", "sample"]
OPTIONS = {name: importlib.import_module(f"experiments.{name}").Arguments for name in COMMANDS}
OPTIONS |= {"info": Info, "import": Import, "render": Render}


def hints(kind):
    return get_type_hints(kind, include_extras=True).items()


def numbers(hint):
    """The types of numbers in an annotation."""
    if hint in (int, float):
        return {hint}
    return set() if get_origin(hint) is Literal else set().union(*map(numbers, get_args(hint)))


NUMERIC = {f"{command} --{name}": hint for command, kind in OPTIONS.items() for name, hint in hints(kind)}
SYSTEM = {preset(name).model.kind: preset(name) for name in PRESETS}  # a configuration of each system
NUMERIC |= {f"fit {kind} --{name}": hint for kind, one in SYSTEM.items() for name, _, hint in option_fields(one)}
NUMERIC = {name: hint for name, hint in NUMERIC.items() if numbers(hint)}


def test_every_number_of_every_command_has_an_upper_bound():
    too_large = {int: [10**10, 10**23], float: [1e31, math.inf, math.nan]}
    for option, hint in NUMERIC.items():
        for value in [value for kind in numbers(hint) for value in too_large[kind]]:
            assert any(not bound.holds(value) for bound in bounds(hint)), (option, value)


def test_the_walk_over_options_finds_numbers():
    assert {"fit --devices", "sample --num_scenes", "render --seed", "fit lom --model.geco.target"} <= set(NUMERIC)
    assert not {"fit --compile", "evaluate --metrics", "report --run", "fit lom --train.decay"} & set(NUMERIC)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--train.steps", 10**23),
        ("--train.final-steps", 10**36),
        ("--data.image-size", 20_000),
        ("--model.num-order-blocks", 10**9),
        ("--model.scene-prior.num-couplings", 10**9),
        ("--model.slot-dim", 99999999999999999999999),
        ("--model.decoder-width", 10**9),
        ("--model.orderless.encoder-width", 8 * 10**9),
        ("--model.num-slots", 10**9),
        ("--model.geco.maximum", "1e300"),
        ("--train.learning-rate", "inf"),
    ],
)
def test_numbers_that_no_machine_can_hold_are_refused(option, value, refused):
    line = refused(option, value, *(["--model.scene-prior.kind", "flow"] if "couplings" in option else []), "--dry-run")
    if option == "--train.final-steps":
        assert line == "--train.final-steps is now called --model.free-nats.final-steps"
    else:
        assert line.startswith(f"{option} is {float(value) if isinstance(value, str) else value}: it must be ")


@pytest.mark.parametrize("name", ["runs/\udcff", "runs\0"])
def test_an_argument_that_is_no_text_is_one_line(name, refused):
    assert refused("--runs-dir", name) == f"the argument {name!r} is not UTF-8, or contains NUL: rename what it names"


# JSON files.

DEEP = "[" * 100_000 + "]" * 100_000
NESTED = '{"a":' * 900 + "1" + "}" * 900
WRONG = {
    "null": "null",
    "a list": "[]",
    "a number": "3",
    "a text": '"text"',
    "nothing": "",
    "cut": '{"preset": ',
    "deep": DEEP,
    "NaN": '{"a": NaN}',
    "infinite": '{"a": -Infinity}',
    "huge": '{"a": 1e999}',
    "latin": '{"a": "\u00e9"}'.encode("latin-1"),
    "binary": b"\x00\xff\x93",
}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


@pytest.mark.parametrize("name", ["config", "environment", "summary", "evaluation"])
@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_the_report_refuses_wrong_files(name, content, run, refusal):
    write(run / f"{name}.json", content)
    shutil.rmtree(run / "figures")
    assert refusal(report.main, run).startswith(f"{run}/{name}.json cannot be read: ")
    assert not (run / "figures").exists()  # nothing is drawn before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary", {"rmse_ordered": [1]}),
        ("summary", {"rmse_ordered": True}),
        ("summary", {"rmse_ordered": 10**400}),
        ("evaluation", {"ari": 3}),
        ("evaluation", {"ari": {"values": {}}}),
        ("evaluation", {"ari": {"protocol": {}}}),
        ("evaluation", {"ari": {"protocol": [], "values": {}}}),
        ("evaluation", {"ari": {"protocol": {}, "values": {"ari_fg_encoder": {}}}}),
    ],
)
def test_the_report_refuses_wrong_values(name, content, run, refusal):
    (run / f"{name}.json").write_text(json.dumps(content))
    assert refusal(report.main, run).startswith(f"{run}/{name}.json cannot be read: ")


@pytest.mark.parametrize("name", ["config", "environment"])
def test_the_report_refuses_what_is_nested_too_deeply(name, run, refusal):
    (run / f"{name}.json").write_text(NESTED)
    assert refusal(report.main, run) == (
        f"{run}: config.json or environment.json is nested too deeply to be of a run: restore what the run wrote there"
    )


def test_the_report_contains_no_file_from_elsewhere(run, command):
    Path("secret.png").write_bytes(b"not for the report")
    (run / "figures" / "mine.png").symlink_to(Path("secret.png").resolve())
    code, out, err = command(report.main, run)
    assert (code, out) == (2, "") and "mine.png" in err and not (run / "report.html").exists()


def test_the_report_escapes_what_a_run_contains(run, command):
    markup = "<script>alert(1)</script>"
    evaluation = {markup: {"protocol": {"num_images": markup}, "values": {markup: markup}}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "summary.json").write_text(json.dumps({markup: 1, f"rmse_{markup}": 2.0}))
    assert command(report.main, run)[0] == 0
    text = (run / "report.html").read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") >= 5


def test_dollars_in_metrics_are_drawn_as_they_are(run, command):
    rows = [{"step": step, r"a$\frac{$/x": 1.0, "$b$/rmse": 0.5} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = command(report.main, run)
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"colour": {"class": "A", "tensors": "b"}}, "Invalid enum value 'colour'"),
        ({"decoder": {"class": "A"}}, "Object missing required field `tensors`"),
        ({"decoder": {"class": 3, "tensors": "b"}}, "Expected `str`, got `int`"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_wrong_records_of_parts(parts, complaint, tmp_path):
    run = Run.create(tmp_path, "x", to_dict(preset("demo")) | {"parts": parts})
    with pytest.raises(UserError) as refusal:
        read_origin(run)
    assert str(refusal.value).startswith(f"{run.folder}/config.json cannot be read: {complaint}")


@pytest.mark.parametrize("orderless", [3, ["runs/0"], {}])
def test_a_wrong_origin(orderless, tmp_path):
    run = Run.create(tmp_path, "x", to_dict(preset("demo")) | {"orderless": orderless})
    with pytest.raises(UserError, match="config.json cannot be read: Expected `str`"):
        read_origin(run)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("train", "steps", 10**23),
        ("train", "steps", 0),
        ("train", "learning_rate", math.nan),
        ("train", "clip_norm", math.inf),
        ("model", "num_order_blocks", 10**9),
        ("model", "image_scale", -1.0),
        ("data", "image_size", 20_000),
        ("data", "path", "x" * 5000),
        ("data", "path", "a\0b"),
    ],
)
def test_a_configuration_has_the_bounds_of_the_options(section, name, value):
    values = to_dict(preset("demo"))
    values[section][name] = value
    with pytest.raises(UserError) as refusal:
        from_dict(values, SYSTEMS, place="runs/7/config.json")
    assert str(refusal.value).startswith(f"runs/7/config.json: {section}: {name} is ")
    assert ": it must be " in str(refusal.value)


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "\x1b[31m", "x" * 101])
def test_the_name_of_a_preset_fits_in_the_name_of_a_folder(name):
    with pytest.raises(UserError, match="^config.json: preset is .*: it must be 1 to 100 printable characters"):
        from_dict(to_dict(preset("demo")) | {"preset": name}, SYSTEMS)


def test_special_characters_do_not_end_a_cell():
    assert grid([["a|b", "<b>"], ["`c`", "$d$"]]).splitlines() == [
        r"| a\|b  | \<b\> |",
        "|-------|-------|",
        r"| \`c\` | \$d\$ |",
    ]


# Outputs.


@pytest.mark.parametrize("name", ["config.json", "summary.json", "log.txt", "figures/samples.png"])
def test_the_report_is_not_written_over_files_of_the_run(name, run, refusal):
    before = (run / name).read_bytes()
    assert refusal(report.main, run, "--output", run / name) == (
        f"--output {run / name}: name a file that ends in .html"
    )
    assert (run / name).read_bytes() == before


def test_an_output_replaces_only_an_output(run, command, refusal):
    Path("mine.html").write_text("<!doctype html><html>my page</html>")
    line = "--output mine.html: a file exists there that this command did not write, or that was edited: "
    line += "rename it, or name another"
    assert refusal(report.main, run, "--output", "mine.html") == line
    assert Path("mine.html").read_text() == "<!doctype html><html>my page</html>"
    Path("link.html").symlink_to("mine.html")
    assert refusal(report.main, run, "--output", "link.html") == line.replace("mine", "link")
    for _ in range(2):  # the second page replaces the first
        assert command(report.main, run, "--output", "page.html")[0] == 0


def test_rows_are_not_written_over_what_they_are_compared_with(refusal):
    Path("rows.json").write_text("[]")
    line = "--json rows.json is the file of --compare: name another, to keep the earlier rows"
    assert refusal(benchmark.main, "--json", "rows.json", "--compare", "./rows.json").startswith("--json rows.json: a ")
    Path("rows.json").write_text('[{"peak_memory_mb": 1}]')
    assert refusal(benchmark.main, "--json", "rows.json", "--compare", "./rows.json") == line


def test_only_pictures_that_were_not_edited_are_replaced(tmp_path):
    path = tmp_path / "a.png"
    save_error_bars(path, {"$a": ([0.8], [1.0], [0.0])}, x="temperature", y="FD \u2193")
    with pytest.raises(UserError, match="a file exists there"):
        cli.check_output(path, suffix=".png")
    cli.sign(path)
    cli.check_output(path, suffix=".png")
    picture = Image.open(path)
    picture.load()
    picture.save(path)
    with pytest.raises(UserError, match="a file exists there"):
        cli.check_output(path, suffix=".png")


# Generated cases.

KEYS = st.sampled_from(
    ["step", "kind", "values", "protocol", "model", "rmse_ordered", "a/x", "$b$/rmse", "<i>", "\x1b"]
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=3)
)
MANY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def paths(values, before=()):
    """The places of all values in nested dictionaries."""
    for name, value in values.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from paths(value, (*before, name))


def one_line(error):
    assert str(error) and str(error).isprintable()


@pytest.mark.slow
@MANY
@given(data=st.data(), name=st.sampled_from(sorted(PRESETS)), value=JSON)
def test_any_value_at_any_place_of_a_configuration(data, name, value):
    values = to_dict(preset(name))
    *sections, last = data.draw(st.sampled_from(list(paths(values))))
    place = values
    for section in sections:
        place = place[section]
    place[last] = value
    try:
        config = from_dict(values, SYSTEMS)
    except UserError as error:
        one_line(error)
    else:
        assert from_dict(json.loads(json.dumps(to_dict(config))), SYSTEMS) == config
        try:
            check(config)
        except UserError as error:
            one_line(error)


@pytest.mark.slow
@MANY
@given(content=JSON, name=st.sampled_from(["config", "summary", "evaluation", "environment"]))
def test_any_json_in_a_run(content, name, tmp_path_factory):
    run = Run.create(tmp_path_factory.mktemp("runs"), "x", to_dict(preset("demo")))
    (run.folder / f"{name}.json").write_text(json.dumps(content))
    for read in (read_config, read_origin, stored, report.page):
        try:
            read(run)
        except UserError as error:
            one_line(error)


@pytest.mark.slow
@MANY
@given(content=st.lists(JSON, max_size=2) | JSON | st.text(max_size=9))
def test_any_json_to_compare_with(content, tmp_path):
    (tmp_path / "rows.json").write_text(content if isinstance(content, str) else json.dumps(content))
    try:
        assert benchmark.read_rows(tmp_path / "rows.json") == []
    except UserError as error:
        one_line(error)


@pytest.mark.slow
@MANY
@given(content=st.binary(max_size=200), name=st.sampled_from(["a.html", "a.json", "a.md", "a.png", "a"]))
def test_any_file_of_a_user_is_kept(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    for options in ([report.main, tmp_path, "--output"], [benchmark.main, "--systems", "genesis-v2", "--json"]):
        with pytest.raises(UserError):
            options[0]([*map(str, options[1:]), str(tmp_path / name)])
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.slow
@MANY
@given(text=st.text(alphabet="a|\\`*<>[]&$ ", max_size=12))
def test_any_text_stays_in_its_cell(text):
    line = grid([[text, "b"], ["c", "d"]]).splitlines()[0]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3  # the borders of two cells


@pytest.mark.slow
@MANY
@given(text=st.text(alphabet="a$\\{}^_%#& ", min_size=1, max_size=12))
def test_any_text_is_drawn(text, tmp_path):
    save_curves(tmp_path / "a.png", [{"step": 1, f"{text}/x": 1.0}])
    save_grid(tmp_path / "b.png", [(text, torch.ones(1, 3, 8, 8))], text)
    save_box_plots(tmp_path / "c.png", {text: {text: [1.0, 2.0]}})
