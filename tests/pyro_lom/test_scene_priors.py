"""A scene prior is a module that returns a distribution over vectors."""

from pyro_lom.scene_priors import StandardNormal


def test_the_standard_normal_has_moments_but_no_parameters():
    prior = StandardNormal(6)
    assert (prior().batch_shape, prior().event_shape) == ((), (6,))
    assert not prior().mean.any() and (prior().stddev == 1).all()
    assert not list(prior.parameters())
    assert {name: buffer.shape for name, buffer in prior.named_buffers()} == {"loc": (6,), "scale": (6,)}
