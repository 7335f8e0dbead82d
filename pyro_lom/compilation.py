"""Compiled networks: an option, never a requirement."""

from collections.abc import Callable

import torch

from pyro_lom.objective import Objective


def compile_networks(objective: Objective, tell: Callable[[str], None] = print) -> bool:
    """Let torch compile every encoder and decoder of `objective`, in place; returns whether it could.

    Weights and their names stay. Where torch cannot compile here, for want of a C++ compiler perhaps, one line says so
    and everything runs uncompiled.
    """
    validation = torch.distributions.Distribution._validate_args
    try:
        torch.compile(lambda x: 2 * x + 1)(next(objective.parameters()).detach())
    except Exception as error:  # whatever a compiler may raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        tell(f"warning: networks are not compiled: torch.compile does not work here ({reason})")
        return False
    finally:
        torch.distributions.Distribution.set_default_validate_args(validation)  # torch.compile turns it off
    for pair in objective.pairs.values():
        for program in (pair.model, pair.guide):
            for name, network in program.named_children():
                if name in ("decoder", "encoder"):
                    network.compile()
    torch.distributions.Distribution.set_default_validate_args(validation)
    return True
