"""weights.py: published checkpoints become runs and runs become published checkpoints; no file runs code."""

import json
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments import load_run
from experiments.config import Train
from experiments.evaluate import main as evaluate_main
from experiments.fit import main as fit_main
from experiments.published import to_published
from experiments.report import main as report_main
from experiments.sample import main as sample_main
from experiments.systems import build, preset
from experiments.weights import main
from pyro_lom.objective import Objective
from pyro_lom.training.runs import Run

ORACLES = Path(__file__).parents[1] / "oracles"


class Case(NamedTuple):
    preset: str
    oracle: str
    size: int
    options: str
    key: str | None = "model_state_dict"

    @property
    def weights(self):
        tensors = load_file(ORACLES / self.oracle)
        return {name.removeprefix("weights/"): tensors[name] for name in tensors if name.startswith("weights/")}

    @property
    def words(self):
        """The options of `weights.py import`, for a fixture with smaller networks."""
        return [*self.options.split(), "--data.image-size", str(self.size)]


_V2 = "--model.num-slots {0} --model.slot-dim {1} --model.encoder-width {1} --model.decoder-width {1} "
CASES = {
    "emorl": Case("emorl-objects-room", "emorl.safetensors", 32, _V2.format(3, 16), None),
    "genesis-v2": Case("genesis-v2-mog-objects-room", "genesis_v2.lite.safetensors", 64, _V2.format(4, 8)),
    "genesis-v2-iid": Case("genesis-v2-objects-room", "genesis_v2_iid.lite.safetensors", 64, _V2.format(3, 16)),
    "sri": Case(
        "sri-shapestacks",
        "sri.lite.safetensors",
        64,
        "--model.num-slots 4 --model.slot-dim 8 --model.decoder-width 8 --model.orderless.encoder-width 8 "
        "--model.orderless.encoder-hidden 16 --model.scene-dim 16 --model.token-width 8 --model.recurrence-width 32",
        None,
    ),
}
CASES["genesis-v2"] = CASES["genesis-v2"]._replace(
    options=CASES["genesis-v2"].options + "--model.encoder-hidden 16 --model.recurrence-width 32"
)
CASES["genesis-v2-iid"] = CASES["genesis-v2-iid"]._replace(
    options=CASES["genesis-v2-iid"].options + "--model.encoder-hidden 32"
)
EMORL, V2 = CASES["emorl"], CASES["genesis-v2-iid"]


def stored(case, tensors, prefix=""):
    """A file in the published format, with the other things that a published checkpoint contains."""
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    others = dict(
        optimiser_state_dict={"state": {}, "param_groups": [{"lr": 1e-4}]}, beta=torch.tensor(0.5), iter_idx=3
    )
    path = Path("published.pt")
    torch.save(tensors if case.key is None else {case.key: tensors, **others}, path)
    return path


def imported(command, case, tensors, *options, prefix=""):
    code, out, err = command(main, "import", case.preset, stored(case, tensors, prefix), *case.words, *options)
    assert code == 0, err
    return Path(out.strip())


def exported(command, run, case):
    code, _, err = command(main, "export", run, "exported.pt")
    assert code == 0, err
    content = torch.load("exported.pt", weights_only=True)
    return content if case.key is None else content[case.key]


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", CASES)
def test_import_then_export_gives_the_same_tensors(command, name):
    case = CASES[name]
    assert_equal(exported(command, imported(command, case, case.weights), case), case.weights)


def test_batch_norms_and_their_statistics_go_in_and_out(command):
    options = "--model.num-slots 2 --model.mask-dim 4 --model.component-dim 2"
    case = Case("genesis-towers", "", 32, f"{options} --model.encoder-width 8 --model.decoder-width 8")
    model = replace(
        preset(case.preset).model, num_slots=2, mask_dim=4, component_dim=2, encoder_width=8, decoder_width=8
    )
    objective = Objective(model.build((3, 32, 32), Train()))
    weights = {
        name: torch.rand(tensor.shape) if tensor.is_floating_point() else torch.tensor(7)
        for name, tensor in to_published(model, objective).items()
    }
    assert sum(name.endswith("running_var") for name in weights) == 20
    assert_equal(exported(command, imported(command, case, weights), case), weights)
    name = next(name for name in weights if name.endswith("running_var"))
    path = stored(case, weights | {name: -weights[name]})
    code, _, err = command(main, "import", case.preset, path, *case.words)
    assert code == 2 and f"'{name}' is a variance and negative: name an undamaged checkpoint" in err


def test_the_prefix_of_several_processes_is_taken_off(command):
    run = imported(command, EMORL, EMORL.weights, prefix="module.")
    assert_equal(exported(command, run, EMORL), EMORL.weights)


def test_numbers_that_our_weights_cannot_contain_are_kept(command):
    weights = V2.weights | {"att_process.log_sigma": torch.tensor(-1.23456789012345, dtype=torch.float64)}
    assert_equal(exported(command, imported(command, V2, weights), V2), weights)
    weights = EMORL.weights | {"geco_C_ema": torch.tensor(0.123), "geco_beta": torch.tensor(0.7)}
    Path("exported.pt").unlink()
    run = imported(command, EMORL, weights)
    assert_equal(exported(command, run, EMORL), weights)
    save_file({"nothing": torch.zeros(3)}, run / "published.safetensors")
    code, _, err = command(main, "export", run, "again.pt")
    assert (code, Path("again.pt").exists()) == (2, False) and "does not belong to this run" in err


def test_names_of_older_files_are_read(command):
    old = {}
    for name, tensor in EMORL.weights.items():
        inside = name.removeprefix("hvae_networks.")
        is_old = inside.startswith(("pos_embed_projection", "encoder_pt"))
        is_block = name != inside and not inside.startswith(("image_decoder", "indep_prior"))
        old[inside if is_old else f"object_discovery_block.{inside}" if is_block else name] = tensor
    old |= {"hvae_networks.generation_relation.weight": torch.ones(2), "hvae_networks.gru.cell.zeros": torch.ones(3)}
    assert_equal(exported(command, imported(command, EMORL, old), EMORL), EMORL.weights)
    Path("exported.pt").unlink()
    old = V2.weights | {"decoder_module.0.pixel_coords.g_1": torch.ones(1, 1, 4, 4)}
    assert_equal(exported(command, imported(command, V2, old), V2), V2.weights)


def published_sizes(facts, *path):
    content = json.loads((ORACLES / facts).read_text(encoding="utf-8"))
    for key in path:
        content = content[key]
    return {name: tuple(shape) for name, shape in content.items() if isinstance(shape, list)}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("emorl-objects-room", published_sizes("emorl.json", "published_parameters")),
        ("genesis-v2-mog-objects-room", published_sizes("genesis_v2.json", "published size", "parameters")),
        ("genesis-objects-room", published_sizes("genesis_v1.json", "published size", "parameters")),
        ("gnm-objects-room", published_sizes("gnm.json", "published_parameters")),
        ("sri-shapestacks", published_sizes("sri.json", "published size", "parameters")),
    ],
)
def test_the_presets_have_the_published_names_and_sizes(name, sizes):
    config = preset(name)
    found = to_published(config.model, Objective(build(config, (3, 64, 64))))
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert {name: tuple(value.shape) for name, value in found.items() if not name.endswith(statistics)} == sizes


FIRST = next(iter(V2.weights))


def nested_tuples():
    """A dict whose key is a tuple of two tuples of two tuples ...: its hash takes 2^60 steps."""
    twice = b"".join(b"h%ch%c\x86q%c0" % (n, n, n + 1) for n in range(60))
    return b"\x80\x02}K\x00K\x00\x86q\x000" + twice + b"h<K\x01s."


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda first: torch.zeros(1).expand(10**9), "is not a dense tensor of numbers"),
        (lambda first: first.to(torch.float8_e4m3fn), "is not a dense tensor of numbers"),
        (lambda first: first.to(torch.uint8), "is not a dense tensor of numbers"),
        (lambda first: first.bool(), "is not a dense tensor of numbers"),
        (lambda first: first.double() * 0 + 1e300, "has numbers that torch.float32 cannot hold"),
    ],
)
def test_odd_tensors_are_refused(command, change, line):
    path = stored(V2, V2.weights | {FIRST: change(V2.weights[FIRST])})
    code, out, err = command(main, "import", V2.preset, path, *V2.words)
    assert (code, out) == (2, "") and line in err and not Path("runs").exists()


def test_a_name_that_occurs_twice_is_refused(command):
    path = stored(V2, V2.weights | {f"module.{FIRST}": V2.weights[FIRST] + 1})
    code, _, err = command(main, "import", V2.preset, path, *V2.words)
    assert code == 2 and f"has two tensors {FIRST}" in err


def test_a_pickle_whose_keys_take_for_ever_is_refused(command):
    with zipfile.ZipFile("published.pt", "w") as archive:
        archive.writestr("x/data.pkl", nested_tuples())
        archive.writestr("x/version", "3\n")
    code, _, err = command(main, "import", V2.preset, "published.pt", *V2.words)
    assert (code, err) == (
        2,
        "error: published.pt is refused: it contains a tuple twice; save its state_dict alone\n",
    )


@pytest.mark.parametrize("kept", [lambda t: t + 1, lambda t: t * float("nan"), lambda t: t.double() + 1e-3])
def test_kept_numbers_of_others_are_refused(command, kept):
    run = imported(command, V2, V2.weights)
    save_file({FIRST: kept(V2.weights[FIRST])}, run / "published.safetensors")
    code, _, err = command(main, "export", run, "exported.pt")
    assert code == 2 and "does not belong to this run" in err and not Path("exported.pt").exists()


def test_a_stopped_import_leaves_no_run(command, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_checkpoint", stop)
    code, _, err = command(main, "import", V2.preset, stored(V2, V2.weights), *V2.words)
    assert (code, err, os.listdir("runs")) == (130, "stopped by SIGINT\n", [])


# The run


@pytest.mark.slow
def test_the_imported_run_is_one_that_all_commands_accept(command, data):
    run = imported(command, EMORL, EMORL.weights, "--data.path", str(data))
    config, system, _ = load_run(run)
    assert config.model.num_slots == 3
    expected = EMORL.weights["hvae_networks.to_q.weight"]
    assert torch.equal(system["model"].guide.attention.query.weight, expected)
    for program, options in (
        (evaluate_main, ["--metrics", "ari", "kl"]),
        (sample_main, ["--num-scenes", "2"]),
        (report_main, []),
    ):
        code, _, err = command(program, run, *options)
        assert code == 0, err
    assert json.loads((run / "evaluation.json").read_text())["ari"]["protocol"]["num_images"] == 16
    code, _, err = command(fit_main, "--resume", run)
    assert code == 0, err
    assert (run / "summary.json").exists()


def test_missing_data_are_named(command):
    run = imported(command, EMORL, EMORL.weights, "--data.path", "data/mine.h5")
    code, _, err = command(evaluate_main, run)
    assert code == 2 and "data/mine.h5" in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")


# Refusals


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("boom",)


def bombs():
    return {
        "beside": lambda path: torch.save({"model_state_dict": V2.weights, "config": Bomb()}, path),
        "legacy": lambda path: torch.save(Bomb(), path, _use_new_zipfile_serialization=False),
        "pickle": lambda path: path.write_bytes(pickle.dumps(Bomb())),
    }


@pytest.mark.parametrize("kind", bombs())
def test_a_file_that_would_run_code_is_refused(refusal, tmp_path, kind, recwarn):
    bombs()[kind](tmp_path / "bomb.pt")
    assert "contains other things than tensors" in refusal(main, "import", V2.preset, "bomb.pt", *V2.words)
    assert not recwarn.list


def test_differences_are_named_in_one_line(refusal, tmp_path):
    weights = V2.weights
    del weights["z_head.0.weight"]
    weights |= {"surplus": torch.ones(3), "seg_head.1.bias": torch.ones(5), "z_head.0.bias": torch.ones(7)}
    stored(V2, weights)
    line = refusal(main, "import", V2.preset, "published.pt", *V2.words)
    assert line == (
        "published.pt has other tensors than this preset and its options; missing: z_head.0.weight; unknown: surplus; "
        "wrong size: seg_head.1.bias has the shape (5,) instead of (16,), "
        "z_head.0.bias has the shape (7,) instead of (32,)"
    )


def test_a_long_list_of_differences_is_cut(refusal, tmp_path):
    stored(V2, CASES["genesis-v2"].weights)
    assert " and 2 more; wrong size: " in refusal(main, "import", V2.preset, "published.pt", *V2.words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a checkpoint"),
        (b"no checkpoint", "it is damaged"),
        ([1, 2], "contains no dict of tensors"),
        ({"model_state_dict": {}}, "contains no dict of tensors"),
        ({"model_state_dict": {"a": 3}}, "'a' is not a dense tensor"),
        ({"model_state_dict": {"a": torch.eye(3).to_sparse()}}, "'a' is not a dense tensor"),
        ({"model_state_dict": {"a": torch.ones(2, device="meta")}}, "'a' is not a dense tensor"),
        ({"model_state_dict": {"a": torch.tensor(float("nan"))}}, "'a' is NaN or infinite"),
    ],
)
def test_other_files_are_refused(refusal, tmp_path, content, words):
    path = tmp_path / "other.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert words in refusal(main, "import", V2.preset, "other.pt", *V2.words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "weights.py needs"),
        ("import", "weights.py needs"),
        ("import genesis-v2-objects-room", "weights.py needs"),
        ("load genesis-v2-objects-room published.pt", "weights.py needs"),
        ("import no-such-preset published.pt", "there is no preset 'no-such-preset'"),
        ("import genesis-v2-objects-room nothing.pt", "nothing.pt is not a file"),
        ("import genesis-v2-objects-room .", ". is not a file"),
        ("import lom-genesis-v2-objects-room published.pt", "no weights of the system lom were published"),
        ("import genesis-v2-towers published.pt", "was not published"),
        ("import emorl-towers published.pt", "was not published"),
        ("import genesis-v2-objects-room published.pt --model.scene-dim 3", "is no option of"),
        ("export runs/00000 new.pt", "is not a run folder"),
        ("export runs/00000 published.pt", "name a new file"),
        ("export runs/00000 nowhere/new.pt", "name a new file"),
    ],
)
def test_wrong_commands_are_refused(refusal, tmp_path, arguments, words):
    stored_here = tmp_path / "published.pt"
    torch.save({"model_state_dict": V2.weights}, stored_here)
    if arguments:
        assert words in refusal(main, *arguments.split())


def test_a_run_of_other_networks_is_not_exported(command, alone, finished):
    for run, words in ((alone, "was not published"), (finished, "no weights of the system lom were published")):
        shutil.copytree(run, run.name)
        code, _, err = command(main, "export", run.name, "new.pt")
        assert code == 2 and words in err and not Path("new.pt").exists()
