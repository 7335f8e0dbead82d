"""Xavier-normal initialisation of weights."""

from torch import nn


def xavier_(module: nn.Module, gain: float = 1.0) -> nn.Module:
    """Set Xavier-normal weights and zero biases in every linear and convolutional layer of `module` (A.1)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_normal_(layer.weight, gain=gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def small_xavier_(module: nn.Module) -> nn.Module:
    """Initialise as `xavier_` does, with gain 0.02, as in EMORL (Emami et al., 2021)."""
    return xavier_(module, gain=0.02)
