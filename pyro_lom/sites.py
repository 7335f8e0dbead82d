"""Checks of the shapes of sites against their plates."""

import math
from itertools import zip_longest

from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger

from pyro_lom.errors import UserError


class checked_shapes(Messenger):
    """Effect handler that refuses a site whose distribution or value does not have the shape of its plates.

        checked_shapes()(model)(images)

    A batch dim must have the size of its plate, and size 1 if no plate of the site occupies it. Pyro's validation
    accepts any size between two plates, or right of the last one. Without this check, a distribution of batch shape
    (B,) in a plate at dim -2 has B x B densities, one for each pair of scenes.

    Only shapes are read, and no value of a tensor.

    Args:
        max_plate_nesting: as in Pyro's ELBOs, batch dims left of `-max_plate_nesting` are not checked. Enumeration uses
            them.

    Raises:
        UserError: a site has other shapes.
    """

    def __init__(self, *, max_plate_nesting: float = math.inf):
        super().__init__()
        self.max_plate_nesting = max_plate_nesting

    def _pyro_post_sample(self, msg) -> None:
        fn, value = msg["fn"], msg["value"]
        if not isinstance(fn, TorchDistributionMixin) or msg["infer"].get("_deterministic"):
            return
        num_batch_dims = len(value.shape) - fn.event_dim
        if value.shape[num_batch_dims:] != fn.event_shape:
            raise UserError(
                f"site '{msg['name']}': its distribution has event shape {tuple(fn.event_shape)}, which its value of "
                f"shape {tuple(value.shape)} does not have; give both the same"
            )
        sizes = {frame.dim: frame.size for frame in msg["cond_indep_stack"] if frame.dim is not None}
        plates = tuple(sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0))
        for owner, batch_shape in (("distribution", fn.batch_shape), ("value", value.shape[:num_batch_dims])):
            pairs = zip_longest(reversed(batch_shape), reversed(plates), fillvalue=1)
            for dim, (size, plate) in enumerate(pairs):
                if size not in (1, plate) and dim < self.max_plate_nesting:
                    raise UserError(
                        f"site '{msg['name']}': its {owner} has batch shape {tuple(batch_shape)} instead of {plates}, "
                        "the sizes of its plates and 1 elsewhere; declare event dims with .to_event(), or insert a "
                        f"missing last batch dim with .unsqueeze({-1 - fn.event_dim})"
                    )
