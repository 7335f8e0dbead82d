"""Every test runs with shapes and types checked, Pyro's validation on, its parameter store empty, and torch seeded."""

import jaxtyping

# Before anything imports them: what the hook finds imported already it leaves unchecked.
jaxtyping.install_import_hook(["pyro_lom", "models", "guides", "experiments"], "beartype.beartype")

import pyro  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def clean_slate():
    pyro.clear_param_store()
    torch.manual_seed(0)
    with pyro.validation_enabled():
        yield
