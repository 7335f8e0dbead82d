"""The base of every model and guide: a plain `nn.Module` that Pyro's own tools can train."""

import weakref

from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from torch import nn


class Program(nn.Module):
    """A Pyro model or guide written as an `nn.Module`.

    It trains with a torch optimiser over `parameters()`. Stock `pyro.infer.SVI` finds parameters by listening for
    `param` messages instead, and would silently train nothing; so while it listens, and only then, a call announces
    each parameter. Nothing enters Pyro's global parameter store: two instances never share a parameter.
    """

    def __call__(self, *args, **kwargs):
        if any(isinstance(handler, TraceMessenger) and handler.param_only for handler in _PYRO_STACK):
            for name, parameter in self.named_parameters():
                parameter.unconstrained = weakref.ref(parameter)
                effectful(type="param")(lambda value=parameter: value)(name=f"{type(self).__name__}.{name}")
        return super().__call__(*args, **kwargs)

    def borrow(self, name: str, module: nn.Module | None) -> None:
        """Keep another's module as `self.name` without owning it: it is trained, moved and saved by its owner."""
        object.__setattr__(self, name, module)
