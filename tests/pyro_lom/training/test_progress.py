"""The bar of a training goes on after its steps, while posteriors are computed."""

import io

from pyro_lom.training.progress import step_bar


def test_an_update_without_steps_redraws_the_bar_after_many_steps():
    shown = io.StringIO()
    with step_bar(100, 0, file=shown) as bar:
        bar.mininterval = 0.0
        bar.update(50)
        bar.set_description_str("posteriors 64/128", refresh=False)
        bar.update(0)
        assert "posteriors 64/128" in shown.getvalue()
