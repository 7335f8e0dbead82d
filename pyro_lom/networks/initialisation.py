"""How EMORL's weights start (Emami et al., 2021)."""

from torch import nn

GAIN = 0.02


def small_xavier_(module: nn.Module) -> nn.Module:
    """Xavier-normal weights of gain 0.02 and zero biases for every linear and convolutional layer in `module`."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_normal_(layer.weight, gain=GAIN)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
