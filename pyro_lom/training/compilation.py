"""Compilation of networks with torch.compile."""

from collections.abc import Callable

import torch

from pyro_lom.objective import Objective


def compile_networks(objective: Objective, tell: Callable[[str], None] = print) -> bool:
    """Compile every encoder and decoder of `objective` in place, and return whether torch can compile here.

    Weights and their names do not change. If torch cannot compile, for example without a C++ compiler, `tell` receives
    one line with the reason, and the networks run uncompiled.
    """
    validation = torch.distributions.Distribution._validate_args
    try:
        torch.compile(lambda x: 2 * x + 1)(next(objective.parameters()).detach())
        for pair in objective.pairs.values():
            for program in (pair.model, pair.guide):
                for name, network in program.named_children():
                    if name.endswith(("decoder", "encoder")):
                        network.compile()
    except Exception as error:  # a compiler may raise anything
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        tell(f"warning: networks are not compiled: torch.compile does not work here ({reason})")
        return False
    finally:
        torch.distributions.Distribution.set_default_validate_args(validation)  # torch.compile turns it off
    return True
