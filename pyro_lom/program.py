"""The base of every model and guide: a plain `nn.Module` that Pyro's own tools can train."""

from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from torch import nn


class Program(nn.Module):
    """A Pyro model or guide written as an `nn.Module`.

    A model names its sites: `slot_sites`, those that hold the slots which `render` takes, and an orderless one also
    `latent_sites`, all of its latents.

    It trains with a torch optimiser over `parameters()`. Stock `pyro.infer.SVI` finds parameters by listening for
    `param` messages instead, and would silently train nothing; so while it listens, and only then, a call announces
    each parameter. Nothing enters Pyro's global parameter store: two instances never share a parameter.
    """

    def __call__(self, *args, **kwargs):
        if any(isinstance(handler, TraceMessenger) and handler.param_only for handler in _PYRO_STACK):
            for name, parameter in self.named_parameters():
                # SVI asks the value of a message for the parameter behind it. A view says so: the parameter itself
                # stays free of attributes that could not be pickled.
                announced = parameter.view_as(parameter)
                announced.unconstrained = lambda parameter=parameter: parameter
                unique_name = f"{type(self).__name__}-{id(self)}.{name}"
                effectful(type="param")(lambda announced=announced: announced)(name=unique_name)
        return super().__call__(*args, **kwargs)

    def borrow(self, name: str, module: nn.Module | None) -> None:
        """Keep another's module as `self.name` without owning it: it is trained, moved and saved by its owner."""
        object.__setattr__(self, name, module)
