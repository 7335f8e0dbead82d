"""The base classes of all models and guides: plain `nn.Module`s that Pyro's own tools can train."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyro
import torch
from jaxtyping import Float, Int
from pyro.params.param_store import param_with_module_name
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_lom.errors import UserError
from pyro_lom.sites import checked_shapes
from pyro_lom.types import Rendering


class Program(nn.Module):
    """A Pyro model or guide written as an `nn.Module`.

    A program trains with a torch optimiser over `parameters()`, or with `pyro.infer.SVI`. When SVI runs a program, each
    parameter that requires a gradient enters Pyro's parameter store under the name that
    `pyro.module(type(program).__name__, program)` would give it, such as `LatentObjectModel$$$decoder.layers.0.weight`.
    `get_state`, `set_state` and `save` of `pyro.optim` use these names. Options that are a function of one argument
    receive `LatentObjectModel.decoder.layers.0.weight`, and those of two arguments the parts on both sides of `$$$`.

    - The store contains the parameters themselves. `state_dict` saves and loads their values.
    - A parameter that already has a name in the store keeps it. A call of `pyro.module("first", program)` in front of
      the program therefore names one of two instances.
    - A name never belongs to two parameters: the second instance of a class raises a `UserError`, unless
      `pyro.clear_param_store()` released the names, or `pyro.module` gave it other names.
    - Borrowed modules (`borrow`) have the names of their owner, and train when SVI runs their owner.

    A call refuses sites that do not have the shapes of their plates (`sites.py`).

    Pyro's Jit ELBOs are refused with a `UserError`: `torch.jit` records values that depend on the batch as constants,
    for example the permutation of `hungarian_matching`, and the loss of other batches would be wrong.

    Attributes:
        step: the training step, a scalar buffer. The trainer sets it, and schedules may read it. In a trained program
            it has its final value. It is not a part of the weights.
    """

    step: Int[Tensor, ""]

    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.long), persistent=False)

    def __call__(self, *args, **kwargs):
        if torch.jit.is_tracing():
            name = type(self).__name__
            raise UserError(f"{name} does not support Jit ELBOs: use the same ELBO without Jit, such as Trace_ELBO")
        if any(isinstance(handler, TraceMessenger) and handler.param_only for handler in _PYRO_STACK):
            self._send_parameters()
        with checked_shapes(max_plate_nesting=2):
            return super().__call__(*args, **kwargs)

    def _send_parameters(self) -> None:
        store = pyro.get_param_store()
        for path, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            name = store.param_name(parameter) or param_with_module_name(type(self).__name__, path)
            if name not in store:
                # `pyro.param(name, parameter)` would store a copy of a parameter that is not contiguous.
                store.set_state({"params": {name: parameter}, "constraints": {name: constraints.real}})
            if store[name].unconstrained() is not parameter:
                raise UserError(
                    f"Pyro's parameter store has another parameter {name}: call pyro.clear_param_store() before this "
                    f"{type(self).__name__} trains, or name it by pyro.module"
                )
            pyro.param(name)

    def __getstate__(self):
        for parameter in self.parameters():
            parameter.__dict__.pop("unconstrained", None)  # the store's weak reference, which cannot be pickled
        return super().__getstate__()

    def borrow(self, name: str, module: nn.Module | None) -> None:
        """Set `self.name` to another program's module without registering it: its owner trains, moves and saves it."""
        object.__setattr__(self, name, module)


class Model(Program):
    """A generative model p, called as `model(images=None, *, num_scenes=1)`.

    It observes `images` (B, C, H, W), floats in [0, 1], at the site `x` (B, 1 | C, H, W). Without images, it samples
    `num_scenes` images there. Scenes are in a plate at dim -2; slots or cells are in a plate at dim -1.

    Attributes:
        scene_sites: the sites that describe a scene as a whole, in the order in which they are sampled; interpolation
            and retrieval use their values, side by side.
        slot_sites: the sites of the slots that `render` decodes, in order; each is (B, K | Dz) or (B, 1 | Dz).
        mode_sites: the sites that are published to take their modes when scenes are sampled for tables and pictures.
        num_rendered: in a training step, the number of scenes of a batch whose images are scored; None means all.
    """

    scene_sites: tuple[str, ...] = ()
    slot_sites: tuple[str, ...] = ()
    mode_sites: tuple[str, ...] = ()
    num_rendered: int | None = None

    def __call__(self, images=None, *args, **kwargs):
        if not isinstance(images, Tensor | None):
            raise UserError(
                f"{type(self).__name__} takes images as a tensor (B, C, H, W), not {type(images).__name__}; "
                "num_scenes=... is the number of scenes to sample"
            )
        return super().__call__(images, *args, **kwargs)

    def join(self, latents: dict[str, Tensor]) -> Float[Tensor, "*batch K Dz"]:
        """Return the values of the slot sites as one vector for each slot."""
        return torch.cat([latents[site] for site in self.slot_sites], dim=-2)

    def split(self, slots: Float[Tensor, "*batch K Dz"]) -> dict[str, Tensor]:
        """Return slots by site, as `render` receives them; the inverse of `join`."""
        return dict(zip(self.slot_sites, slots.chunk(len(self.slot_sites), dim=-2), strict=True))

    def render(self, latents: dict[str, Tensor]) -> Rendering:
        """Decode latents, given by site, to the mean of `x`, and to components and masks if the model has them.

        This default runs the model with fixed latents, so they require the shapes of the model's samples.
        """
        num_scenes = len(next(iter(latents.values())))
        with pyro.poutine.block(), pyro.poutine.trace() as tracer, pyro.poutine.condition(data=latents):
            self(num_scenes=num_scenes)
        return Rendering(tracer.trace.nodes["x"]["fn"].mean.squeeze(-4))


class Guide(Program):
    """A guide q, built from its model and called as `guide(images, *, inferred=None)`.

    `inferred` is the result of `infer` for the same images. Its type is private to the guide. A pair that reads another
    pair (`pyro_lom/system.py: Pair`) receives the result of that pair's `pass_on`.
    """

    model: Model

    def infer(self, images: Float[Tensor, "B C H W"]) -> Any:
        """Compute the part of inference that runs once per batch, before sampling; None if there is none."""
        return None

    def pass_on(self, inferred: Any) -> Any:
        """Return the part of `inferred` that guides of other pairs receive: a tensor or a tuple of tensors (B, ...)."""
        return inferred

    def log_masks(self, inferred: Any) -> Float[Tensor, "B K 1 H W"] | None:
        """Return the log masks with which the guide segmented the images, or None if it has none."""
        return None

    def code(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"] | None:
        """Return one vector per image, for the disentanglement of a model without slots, or None if it has none."""
        return None

    def losses(self, criterion, images: Float[Tensor, "B C H W"], inferred: Any) -> Iterator[tuple[float, Any]]:
        """Yield the summands of the pair's loss, as weights and `criterion.terms` (`pyro_lom/elbo.py: Terms`)."""
        yield 1.0, criterion.terms(self.model, partial(self, inferred=inferred), images)
