"""The base classes of all models and guides: plain `nn.Module`s that Pyro's own tools can train."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyro
import torch
from jaxtyping import Float, Int
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pyro_lom.types import Rendering


class Program(nn.Module):
    """A Pyro model or guide written as an `nn.Module`.

    A program trains with a torch optimiser over `parameters()`. `pyro.infer.SVI` instead trains the parameters for
    which it traces a `param` message, which a plain module does not send. A call therefore sends one for each parameter
    while SVI traces them. Pyro's global parameter store stays empty, so two instances never share a parameter.

    Attributes:
        step: the training step, a scalar buffer. The trainer sets it, and schedules may read it. In a trained program
            it has its final value. It is not a part of the weights.
    """

    step: Int[Tensor, ""]

    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.long), persistent=False)

    def __call__(self, *args, **kwargs):
        if any(isinstance(handler, TraceMessenger) and handler.param_only for handler in _PYRO_STACK):
            for name, parameter in self.named_parameters():
                # SVI reads the parameter from the attribute `unconstrained` of a message's value. The value is a view,
                # so that the parameter itself has no attribute that cannot be pickled.
                announced = parameter.view_as(parameter)
                announced.unconstrained = lambda parameter=parameter: parameter
                unique_name = f"{type(self).__name__}-{id(self)}.{name}"
                effectful(type="param")(lambda announced=announced: announced)(name=unique_name)
        return super().__call__(*args, **kwargs)

    def borrow(self, name: str, module: nn.Module | None) -> None:
        """Set `self.name` to another program's module without registering it: its owner trains, moves and saves it."""
        object.__setattr__(self, name, module)


class Model(Program):
    """A generative model p, called as `model(images=None, *, num_scenes=1)`.

    It observes `images` (B, C, H, W) at the site `x` (B, 1 | C, H, W), or samples `num_scenes` images there. Scenes are
    in a plate at dim -2; slots or cells are in a plate at dim -1.

    Attributes:
        scene_sites: the sites that describe a scene as a whole; interpolation and retrieval use them.
        slot_sites: the sites of the slots that `render` decodes, in order; each is (B, K | Dz) or (B, 1 | Dz).
        num_rendered: while training, the number of scenes of a batch whose images are scored; None means all.
    """

    scene_sites: tuple[str, ...] = ()
    slot_sites: tuple[str, ...] = ()
    num_rendered: int | None = None

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
