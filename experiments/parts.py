"""Parts of a system that a user may exchange, such as its scene prior, and what a run keeps of them."""

import hashlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn
from torch.nn.parameter import is_lazy

from pyro_lom.errors import UserError
from pyro_lom.program import Guide, Model
from pyro_lom.system import Pair, System, result

PARTS = {
    "decoder": ("model", "decoder"),
    "likelihood": ("model", "likelihood"),
    "scene_prior": ("model", "scene_prior"),
    "slot_prior": ("model", "slot_prior"),
    "scene_posterior": ("guide", "scene_posterior"),
    "matching": ("guide", "match"),
}
"""Each part by name: the program of the last pair that has it, and its attribute there; in the order of exchange."""


class Factory(NamedTuple):
    """A part that is made when its system is built, after seeding: `Factory(lambda model, guide: Prior(guide))`.

    `make` receives the model and the guide of the last pair, with the parts that `PARTS` lists before.
    """

    make: Callable[[Model, Guide], Any]


def exchange(system: System, parts: dict[str, Any]) -> System:
    """Return the system with copies of the given parts in its last pair. Its other pairs do not change.

    A part is a module, or a `Factory` of one; `matching` is a function, or a `Factory` of one. With another likelihood,
    the pair minimises the negative ELBO with its free nats, because the target of a GECO rule is the error of a
    Gaussian likelihood.

    Raises:
        UserError: the pair has no such part or borrows it, or a part is of another kind or shape.
    """
    if unknown := sorted(parts.keys() - PARTS.keys()):
        raise UserError(f"there is no part {unknown[0]}: the parts are {', '.join(PARTS)}")
    *_, last = system
    pair = system[last]
    for name in [name for name in PARTS if name in parts]:
        role, attribute = PARTS[name]
        program = getattr(pair, role)
        own = getattr(program, attribute, None)
        if own is None or (isinstance(own, nn.Module) and attribute not in program._modules):
            borrows = "has no" if own is None else "borrows its"
            raise UserError(f"{type(program).__name__} {borrows} {name}, so it cannot be exchanged")
        part = _made(name, parts[name], pair)
        if name == "scene_prior":
            _check_scene_prior(part, own().event_shape)
        setattr(program, attribute, part)
        _refuse_shared_weights(name, part, pair)
    if "likelihood" in parts and hasattr(pair.criterion, "unconstrained"):
        pair = pair._replace(criterion=pair.criterion.unconstrained())
    return system | {last: pair}


def records(system: System, parts: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return what a run keeps of exchanged parts: the name of the class, and a digest of tensor names and shapes."""
    pair, found = result(system), {}
    for name in parts:
        role, attribute = PARTS[name]
        part = getattr(getattr(pair, role), attribute)
        tensors = part.state_dict() if isinstance(part, nn.Module) else {}
        shapes = "\n".join(f"{path} {tuple(tensor.shape)} {tensor.dtype}" for path, tensor in sorted(tensors.items()))
        kind = getattr(part, "__name__", type(part).__name__)
        found[name] = {"class": kind, "tensors": hashlib.sha256(shapes.encode()).hexdigest()[:16]}
    return found


def check_names(kept: dict[str, Any], parts: dict[str, Any], folder: Any) -> None:
    """Raise UserError if the given parts are not those of the run, by name."""
    for name, record in kept.items():
        if name not in parts:
            raise UserError(
                f"{folder} was trained with {name}={record['class']}: pass it from Python, as in "
                f"load_run(folder, {name}=...) or fit(config, {name}=..., resume=folder)"
            )
    for name in parts:
        if name not in kept:
            raise UserError(f"{folder} was trained without {name}: leave it out")


def check_records(kept: dict[str, Any], found: dict[str, Any], folder: Any) -> None:
    """Raise UserError if a part has another class or other tensors than the run's."""
    for name, record in kept.items():
        if found[name] != record:
            is_other = found[name]["class"] != record["class"]
            given = found[name]["class"] if is_other else "one with other names or shapes of tensors"
            raise UserError(f"{folder} was trained with {name}={record['class']}, not with {given}: pass the same part")


def _made(name: str, part: Any, pair: Pair) -> Any:
    if isinstance(part, Factory):
        part = part.make(pair.model, pair.guide)
    elif isinstance(part, nn.Module):
        part = deepcopy(part)
    if isinstance(part, type) or not (callable(part) if name == "matching" else isinstance(part, nn.Module)):
        given = f"the class {part.__name__}" if isinstance(part, type) else f"a {type(part).__name__}"
        needed = "a function" if name == "matching" else "a module, an instance of a subclass of nn.Module,"
        raise UserError(f"{name} is {given}: pass {needed} or a Factory of it")
    if isinstance(part, nn.Module) and any(is_lazy(tensor) for tensor in (*part.parameters(), *part.buffers())):
        raise UserError(f"{name} has lazy parameters without shapes: give the sizes, as nn.Linear does")
    return part


def _check_scene_prior(prior: nn.Module, event_shape: tuple) -> None:
    distribution = prior()
    if not isinstance(distribution, TorchDistributionMixin):
        raise UserError(
            f"scene_prior returns {type(distribution).__module__}.{type(distribution).__name__}: return a distribution "
            "of pyro.distributions"
        )
    if distribution.batch_shape or distribution.event_shape != event_shape:
        raise UserError(
            f"scene_prior returns a distribution of batch shape {tuple(distribution.batch_shape)} and event shape "
            f"{tuple(distribution.event_shape)}: a scene of this model has () and {tuple(event_shape)}, as "
            f"dist.Normal(torch.zeros({event_shape[0]}), 1.0).to_event(1) has"
        )


def _refuse_shared_weights(name: str, part: Any, pair: Pair) -> None:
    """Refuse a part that registers modules of the pair: checkpoints would contain their tensors twice."""
    if not isinstance(part, nn.Module):
        return
    own = {id(parameter) for parameter in part.parameters()}
    role, attribute = PARTS[name]
    for program_role in ("model", "guide"):
        for path, parameter in getattr(pair, program_role).named_parameters(remove_duplicate=False):
            if id(parameter) in own and not (program_role == role and path.startswith(f"{attribute}.")):
                raise UserError(
                    f"{name} registers {program_role}.{path}, which is another part's: keep modules that it borrows in "
                    "a list, as in self.guide = [guide]"
                )
