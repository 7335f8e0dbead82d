"""Under stock SVI each parameter of a program has a stable name, by which optimisers take options and keep state."""

import copy
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro import infer, poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.params.param_store import normalize_param_name
from test_program import DATA, Regression, RegressionGuide, make_pair, weights
from tiny import SYSTEMS, tiny_images, tiny_pair
from torch import nn
from torch.distributions import constraints

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.errors import UserError

IMAGES = tiny_images()
JIT_ELBOS = {
    "JitTrace_ELBO": infer.JitTrace_ELBO,
    "JitTraceMeanField_ELBO": infer.JitTraceMeanField_ELBO,
    "JitTraceGraph_ELBO": infer.JitTraceGraph_ELBO,
    "JitTraceEnum_ELBO": partial(infer.JitTraceEnum_ELBO, strict_enumeration_warning=False),
}
OPTIMIZERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.03}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.9, "clip_norm": 1.0}),
    "options by name": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "encoder" in name else 0.01}),
    "scheduler": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.03}, "gamma": 0.5}
    ),
}
NAMES = {
    "Regression.decoder.weight",
    "Regression.decoder.bias",
    "RegressionGuide.encoder.weight",
    "RegressionGuide.encoder.bias",
    "RegressionGuide.raw_scale",
}


def train(pair, optimizer, seeds, data=DATA, elbo=None):
    """Take one step of SVI for each seed; return the losses."""
    svi = SVI(*pair, optimizer, elbo or Trace_ELBO())
    losses = []
    for seed in seeds:
        torch.manual_seed(seed)
        losses.append(svi.step(data))
        if hasattr(optimizer, "step"):  # a scheduler
            optimizer.step()
    return losses


def reload(pair, build):
    """Return a new pair with the weights of `pair`, and forget all names, as a new process does."""
    states = [copy.deepcopy(program.state_dict()) for program in pair]
    pyro.clear_param_store()
    new = build()
    for program, state in zip(new, states, strict=True):
        program.load_state_dict(state)
    return new


def weights_equal(pair, other):
    return all(map(torch.equal, weights(*pair), weights(*other)))


def names_of(optimizer):
    return {normalize_param_name(name) for name in optimizer.get_state()}


class TestNames:
    def test_are_the_class_and_the_path(self):
        optimizer = pyro.optim.Adam({"lr": 0.03})
        train(make_pair(), optimizer, [0])
        assert names_of(optimizer) == NAMES
        assert "RegressionGuide$$$encoder.weight" in pyro.get_param_store()

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_belong_to_every_parameter_of_the_pair_and_to_no_other(self, system):
        pair, optimizer = tiny_pair(system), pyro.optim.Adam({"lr": 1e-3})
        train(pair, optimizer, [0], IMAGES)
        expected = {f"{type(program).__name__}.{name}" for program in pair for name, _ in program.named_parameters()}
        assert names_of(optimizer) == expected

    def test_refer_to_the_parameters_themselves_in_the_store(self):
        pair = make_pair()
        train(pair, pyro.optim.Adam({"lr": 0.03}), range(2))
        stored = dict(pyro.get_param_store().named_parameters())
        assert stored["Regression$$$decoder.weight"] is pair[0].decoder.weight
        assert set(map(id, stored.values())) == {
            id(parameter) for program in pair for parameter in program.parameters()
        }

    def test_of_frozen_parameters_do_not_exist(self):
        pair, optimizer = make_pair(), pyro.optim.Adam({"lr": 0.03, "weight_decay": 0.1})
        pair[1].raw_scale.requires_grad_(False)
        train(pair, optimizer, [0])
        assert names_of(optimizer) == NAMES - {"RegressionGuide.raw_scale"}
        assert not pair[1].raw_scale.requires_grad and not pair[1].raw_scale.any()

    def test_of_a_shared_module_are_those_of_the_program_that_runs_first(self):
        model, guide = make_pair()
        model.encoder = guide.encoder
        optimizer = pyro.optim.Adam({"lr": 0.03})
        train((model, guide), optimizer, range(2))
        assert names_of(optimizer) == NAMES


class TestOptions:
    def test_are_a_function_of_the_name(self):
        received = set()

        def options(name):
            received.add(name)
            return {"lr": 0.03 if name.startswith("Regression.decoder.") else 0.0}

        model, guide = make_pair()
        before = weights(model, guide)
        train((model, guide), pyro.optim.Adam(options), [0])
        assert received == NAMES
        moved = [not torch.equal(old, new) for old, new in zip(before, weights(model, guide), strict=True)]
        assert moved == [True, True, False, False, False]

    def test_may_be_a_function_of_class_and_path(self):
        received, clipped = set(), set()

        def options(module_name, param_name):
            received.add(f"{module_name}.{param_name}")
            return {"lr": 0.03}

        def clip(module_name, param_name):
            clipped.add(f"{module_name}.{param_name}")
            return {"clip_norm": 1.0}

        train(make_pair(), pyro.optim.Adam(options, clip), [0])
        assert received == clipped == NAMES


class TestState:
    @pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
    @pytest.mark.parametrize("by_file", [False, True], ids=["set_state", "load"])
    def test_continues_training_in_a_new_process_exactly(self, make_optimizer, by_file, tmp_path):
        pair, optimizer = make_pair(), make_optimizer()
        twin = copy.deepcopy(pair)
        first = train(pair, optimizer, range(3))
        optimizer.save(tmp_path / "optimizer.pt")
        state = copy.deepcopy(optimizer.get_state())

        continued, new_optimizer = reload(pair, make_pair), make_optimizer()
        if by_file:
            new_optimizer.load(tmp_path / "optimizer.pt")
        else:
            new_optimizer.set_state(state)
        second = train(continued, new_optimizer, range(3, 6))

        pyro.clear_param_store()
        assert first + second == train(twin, make_optimizer(), range(6))
        assert weights_equal(continued, twin)

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_continues_every_system(self, system):
        pair, optimizer, elbo = tiny_pair(system), pyro.optim.Adam({"lr": 1e-3}), TraceScene_ELBO()
        twin = copy.deepcopy(pair)
        first = train(pair, optimizer, range(2), IMAGES, elbo)
        state = copy.deepcopy(optimizer.get_state())
        continued, new_optimizer = reload(pair, lambda: tiny_pair(system)), pyro.optim.Adam({"lr": 1e-3})
        new_optimizer.set_state(state)
        second = train(continued, new_optimizer, [2, 3], IMAGES, elbo)
        pyro.clear_param_store()
        assert first + second == train(twin, pyro.optim.Adam({"lr": 1e-3}), range(4), IMAGES, elbo)

    def test_survives_clearing_the_store_while_training(self):
        pair, optimizer = make_pair(), pyro.optim.Adam({"lr": 0.03})
        twin = copy.deepcopy(pair)
        losses = train(pair, optimizer, [0])
        pyro.clear_param_store()
        losses += train(pair, optimizer, [1])
        assert names_of(optimizer) == NAMES
        pyro.clear_param_store()
        assert losses == train(twin, pyro.optim.Adam({"lr": 0.03}), range(2))


class TestTwoInstances:
    def test_of_a_class_are_refused_in_one_line_until_the_store_is_cleared(self):
        first, second = make_pair(), make_pair()
        train(first, pyro.optim.Adam({"lr": 0.03}), [0])
        before = weights(*first)
        with pytest.raises(
            UserError, match=r"^.*RegressionGuide\$\$\$\S+: call pyro.clear_param_store\(\).*$"
        ) as error:
            train(second, pyro.optim.Adam({"lr": 0.03}), [0])
        assert "\n" not in str(error.value)
        pyro.clear_param_store()
        start = weights(*second)
        train(second, pyro.optim.Adam({"lr": 0.03}), [0])
        assert all(not torch.equal(old, new) for old, new in zip(start, weights(*second), strict=True))
        assert all(map(torch.equal, before, weights(*first)))

    def test_train_side_by_side_under_names_of_pyro_module(self):
        def named(name, program):
            def run(data):
                return pyro.module(name, program)(data)

            return run

        first, second = make_pair(), make_pair()
        optimizer = pyro.optim.Adam({"lr": 0.03})
        twins = copy.deepcopy((first, second))
        losses = train(first, optimizer, range(2))
        losses += train((named("model_2", second[0]), named("guide_2", second[1])), optimizer, range(2))
        others = {"model_2.decoder.weight", "model_2.decoder.bias", "guide_2.encoder.weight", "guide_2.encoder.bias"}
        assert names_of(optimizer) == NAMES | others | {"guide_2.raw_scale"}
        for twin in twins:
            pyro.clear_param_store()
            assert train(twin, pyro.optim.Adam({"lr": 0.03}), range(2)) == [losses.pop(0), losses.pop(0)]

    def test_a_store_that_another_process_saved_is_refused(self, tmp_path):
        pair = make_pair()
        train(pair, pyro.optim.Adam({"lr": 0.03}), [0])
        pyro.get_param_store().save(tmp_path / "store.pt")
        pyro.get_param_store().load(tmp_path / "store.pt")
        with pytest.raises(UserError, match="another parameter RegressionGuide"):
            train(pair, pyro.optim.Adam({"lr": 0.03}), [0])


class TestWrappers:
    def test_a_pyro_module_around_programs_names_them(self):
        class Wrapper(PyroModule):
            def __init__(self, name, program):
                super().__init__(name)
                self.inner = program

            def forward(self, data):
                return self.inner(data)

        pair = make_pair()
        twin = copy.deepcopy(pair)
        optimizer = pyro.optim.Adam({"lr": 0.03})
        losses = train((Wrapper("p", pair[0]), Wrapper("q", pair[1])), optimizer, range(2))
        assert "p.inner.decoder.weight" in names_of(optimizer) and len(optimizer.get_state()) == len(NAMES)
        pyro.clear_param_store()
        assert losses == train(twin, pyro.optim.Adam({"lr": 0.03}), range(2))

    def test_a_pyro_module_in_a_program_trains_its_constrained_parameters(self):
        class Prior(PyroModule):
            def __init__(self):
                super().__init__()
                self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

            def forward(self):
                return dist.Normal(torch.zeros(2), self.scale).to_event(1)

        class WithPrior(Regression):
            def __init__(self):
                super().__init__()
                self.prior = Prior()

            def forward(self, data):
                with pyro.plate("scenes", len(data), dim=-2):
                    latent = pyro.sample("s", self.prior())
                    pyro.sample("x", dist.Normal(self.decoder(latent), 0.5).to_event(1), obs=data)

        def build():
            model = WithPrior()
            return model, RegressionGuide(model)

        pair, optimizer = build(), pyro.optim.Adam({"lr": 0.03})
        twin = copy.deepcopy(pair)
        losses = train(pair, optimizer, range(3))
        assert (pair[0].prior.scale != 1).all()
        state = copy.deepcopy(optimizer.get_state())
        continued, new_optimizer = reload(pair, build), pyro.optim.Adam({"lr": 0.03})
        new_optimizer.set_state(state)
        losses += train(continued, new_optimizer, [3])
        pyro.clear_param_store()
        assert losses == train(twin, pyro.optim.Adam({"lr": 0.03}), range(4))

    def test_lift_is_reported_by_pyro_because_a_module_reads_its_own_parameters(self):
        model, guide = make_pair()
        lifted = poutine.lift(model, {"decoder.bias": dist.Normal(torch.zeros(3), 1.0).to_event(1)})
        with pytest.warns(UserWarning, match="in model but not guide.*decoder.bias"):
            train((lifted, guide), pyro.optim.Adam({"lr": 0.03}), [0])


class TestModules:
    def test_training_goes_on_in_double_precision(self):
        pair, optimizer = make_pair(), pyro.optim.Adam({"lr": 0.03})
        train(pair, optimizer, [0])
        for program in pair:
            program.double()
        before = weights(*pair)
        train(pair, pyro.optim.Adam({"lr": 0.03}), [1], DATA.double())
        assert all(not torch.equal(old, new) for old, new in zip(before, weights(*pair), strict=True))
        assert {value.dtype for value in pyro.get_param_store().values()} == {torch.float64}

    def test_a_parameter_that_is_not_contiguous_trains(self):
        pair = make_pair()
        pair[0].decoder.weight = nn.Parameter(torch.randn(2, 3).T)
        assert not pair[0].decoder.weight.is_contiguous()
        before = weights(pair[0])
        train(pair, pyro.optim.Adam({"lr": 0.03}), [0])
        assert not torch.equal(before[0], pair[0].decoder.weight)

    def test_programs_are_pickled_and_copied_after_steps_and_reads_of_the_store(self):
        pair = make_pair()
        train(pair, pyro.optim.Adam({"lr": 0.03}), [0])
        assert len(dict(pyro.get_param_store().items())) == len(NAMES)
        for other in (pickle.loads(pickle.dumps(pair)), copy.deepcopy(pair)):
            assert weights_equal(pair, other) and other[1].model is other[0]
        train(pair, pyro.optim.Adam({"lr": 0.03}), [1])

    def test_the_store_does_not_enter_the_state_dict(self):
        pair = make_pair()
        before = [list(program.state_dict()) for program in pair]
        train(pair, pyro.optim.Adam({"lr": 0.03}), [0])
        assert [list(program.state_dict()) for program in pair] == before


class TestJit:
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    @pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
    @pytest.mark.parametrize("elbo", JIT_ELBOS.values(), ids=JIT_ELBOS)
    def test_elbos_are_refused_in_one_line(self, elbo, frozen):
        pair = make_pair()
        for program in pair:
            program.requires_grad_(not frozen)
        with pytest.raises(UserError, match=r"^RegressionGuide does not support Jit ELBOs: .* such as Trace_ELBO$"):
            train(pair, pyro.optim.Adam({"lr": 0.03}), [0], elbo=elbo())
        pickle.dumps(pair)
        assert train(pair, pyro.optim.Adam({"lr": 0.03}), [0])
