"""The base classes of all systems' options: they build a system, check its options and define its phases."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from experiments.config import Count, Data, Natural, NotNegative, NumSlots, Positive, Real, Share, Size, Train
from pyro_lom.errors import UserError
from pyro_lom.geco import AdditiveGeco, FreeNats, MultiplicativeGeco, Target
from pyro_lom.geco import Geco as GecoRule
from pyro_lom.likelihoods import GaussianLikelihood, MixtureLikelihood
from pyro_lom.matching import greedy_matching, hungarian_matching
from pyro_lom.networks.decoders import (
    BroadcastDecoder,
    DeconvolutionDecoder,
    FrameDecoder,
    SeparableDecoder,
)
from pyro_lom.system import System
from pyro_lom.training.phase import Phase

ImageShape = tuple[int, int, int]
"""C, H and W."""

OBJECTS_ROOM = Data(path="data/objects-room.h5", image_size=64)
SHAPESTACKS = Data(path="data/shapestacks.h5", image_size=64)
CLEVR6 = Data(path="data/clevr6.h5", image_size=96)
"""The paper's data sets, with its image sizes."""

RENDERED = {
    "objects-room": OBJECTS_ROOM,
    "shapestacks-near": Data(path="data/shapestacks-near.h5", image_size=64),
    "clevr6": Data(path="data/clevr6-64.h5", image_size=64),
}
"""The data of the presets <system>-<name>-small, for small networks: rooms, stacks seen from near, and CLEVR6."""

_RULES = {"multiplicative": MultiplicativeGeco, "additive": AdditiveGeco}
_MATCHINGS = {"greedy": greedy_matching, "hungarian": hungarian_matching}
_LIKELIHOODS = {"gaussian": GaussianLikelihood, "mixture": MixtureLikelihood}
_DECODERS = {
    "deconvolution": DeconvolutionDecoder,
    "broadcast": BroadcastDecoder,
    "separable": SeparableDecoder,
    "frame": FrameDecoder,
}
Decoder = Literal[*_DECODERS]


@dataclass(frozen=True)
class SystemOptions:
    """The options of one system: a frozen dataclass of plain values, whose fields are the options `--model.*`.

    A subclass sets `kind`, its name in `config.json`, and defines `build`.
    """

    kind: ClassVar[str]

    def build(self, image_shape: ImageShape, train: Train) -> System:
        """Build the models, guides and criteria for images (C, H, W).

        Raises:
            UserError: the options and the images are not compatible.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define build")

    def phases(self, system: System, train: Train) -> list[Phase]:
        """Return the phases of training. By default, all pairs train together in one phase."""
        return [phase(train)]

    def check(self, train: Train, *, accumulate: int = 1, cuda_graph: bool = False) -> None:
        """Raise UserError for options that have no effect or are not compatible with each other."""

    def with_one_batch_size(self) -> "SystemOptions":
        """Return the options with the batch size `train.batch_size` in every phase."""
        return self

    def source_options(self) -> dict[str, Any]:
        """Return the options of the pair that other pairs read; all options if there is one pair."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def source_steps(self, train: Train) -> int:
        """Return the number of steps after which this pair is trained."""
        return train.steps

    published_key: ClassVar[str | None] = None
    """The key of the weights in a published checkpoint; None if the checkpoint is a dict of the weights."""
    published_older: ClassVar[dict[str, str]] = {}
    """Patterns of names in older published checkpoints, and the names of today; "" if the tensor is no weight."""

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map the objective's tensors, or tensors of the same names and shapes, to published names.

        Raises:
            UserError: no weights of this system were published.
            KeyError: a tensor with a published name is missing.
        """
        raise UserError(f"no weights of the system {self.kind} were published: name a preset of a published one")

    def reference_gflop(self, image_shape: ImageShape) -> float | None:
        """Return GFLOP per scene of a training step, forward and backward; None for sizes that were not counted."""
        return None


def phase(train: Train, **changes: Any) -> Phase:
    """Return a phase with the values of `train`, in which `changes` replace steps, batch size or learning rate."""
    values = dict(steps=train.steps, batch_size=train.batch_size, learning_rate=train.learning_rate)
    return Phase(**(values | changes), warmup_steps=train.warmup_steps, decay=train.decay)


def check_image_size(image_shape: ImageShape) -> None:
    """Raise UserError if images are not square, or have a size that the networks do not support."""
    _, height, width = image_shape
    if height != width or height not in range(32, 129, 16):
        raise UserError(
            f"images are {height}x{width}, but models need square ones of 32 to 128 pixels, a multiple of 16: "
            "crop and resize them, or choose such a --data.image-size for a folder of images"
        )


def part(options: Any, kind: type) -> Any:
    """Return an instance of the dataclass `kind` with the values that `options` has for its fields."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})


@dataclass(frozen=True)
class Geco:
    rule: Literal["multiplicative", "additive"] = "multiplicative"
    """GENESIS's rule, whose multiplier weighs the KL, or EMORL's, whose multiplier weighs the error (A.4.2)."""
    target: Real | None = -0.353
    """Error to reach, in nats per pixel and channel without (1/2) log 2 pi (A.4.2); None if target_rmse is given."""
    target_rmse: Positive | None = None
    """Error to reach, as a root mean squared error per pixel and channel; None if target is given."""
    step_size: NotNegative = 1e-6
    """Step of the parameter's update (A.4.2). GENESIS's rule multiplies it by 64^2 / image_size^2, unless
    goal_relative."""
    speedup: Positive = 10.0
    """Factor on the step once the target is reached."""
    initial: Positive = 1.0
    """First value of the parameter: the multiplier or, with EMORL's rule, b with the multiplier softplus(b)."""
    minimum: Positive = 1e-10
    """Lower bound of the parameter."""
    maximum: Positive = 1e10
    """Upper bound of the parameter."""
    warm_start: Natural = 0
    """Number of first steps without updates of the multiplier. In EMORL's rule the multiplier is then 1."""
    relax_at: Count | None = None
    """Step at which a target below the average error becomes 5 % more than this error, as RMSE; None keeps the target
    (departure). If the orderless pair trains first, only its target is relaxed, and the ordered pair takes it over."""
    goal_relative: bool = False
    """Divide the constraint by the target's distance from a perfect reconstruction and clamp it to [-1, 1]
    (departure for short trainings)."""
    analytic_kl: bool = True
    """Use the formula of a KL if there is one. Otherwise the KL of each site is estimated from one sample, as published
    for GENESIS and GENESIS-v2."""

    def check(self) -> None:
        """Raise UserError if the bounds exclude the first value, or if there is not exactly one target."""
        if not self.minimum <= self.initial <= self.maximum:
            raise UserError(
                f"--model.geco.initial is {self.initial}: it must lie between --model.geco.minimum, which is "
                f"{self.minimum}, and --model.geco.maximum, which is {self.maximum}"
            )
        if (self.target is None) == (self.target_rmse is None):
            raise UserError(
                f"--model.geco.target is {self.target} and --model.geco.target-rmse is {self.target_rmse}: "
                "give one of them, and None for the other"
            )

    def criterion(
        self,
        image_shape: ImageShape,
        *,
        image_scale: float,
        free_nats: dict[str, FreeNats] | None = None,
        rollouts: dict[str, str] | None = None,
    ) -> GecoRule:
        """Build the GECO rule of one pair; raises UserError if the target cannot be reached."""
        make, target = Target.from_paper, self.target
        if target is None:
            make, target = Target.from_rmse, self.target_rmse
        scaled = self.rule == "multiplicative" and not self.goal_relative
        return _RULES[self.rule](
            make(target, image_scale=image_scale, image_shape=image_shape),
            step_size=self.step_size * (64**2 / math.prod(image_shape[1:]) if scaled else 1.0),
            speedup=self.speedup,
            initial=self.initial,
            bounds=(self.minimum, self.maximum),
            warm_start=self.warm_start,
            relax_at=self.relax_at,
            free_nats=free_nats,
            goal_relative=self.goal_relative,
            rollouts=rollouts,
            analytic_kl=self.analytic_kl,
            **({} if self.analytic_kl else {"num_kl_samples": 1}),
        )


@dataclass(frozen=True)
class CompositionOptions(SystemOptions):
    """Options of all systems that compose an image of components and masks."""

    num_slots: NumSlots = 7
    """K: largest number of objects and parts of the background in a scene (A.4.1)."""
    likelihood: Literal["gaussian", "mixture"] = "gaussian"
    """p(x | z): a normal whose mean is the sum of the slots (Eq. 3), or a mixture over slots at each pixel."""
    image_scale: Positive = 0.7
    """sigma, the standard deviation of the likelihood, for images in [0, 1] (A.4.1)."""
    geco: Geco = Geco()

    def check(self, train: Train, *, accumulate: int = 1, cuda_graph: bool = False) -> None:
        self.geco.check()

    def make_likelihood(self) -> nn.Module:
        """Build p(x | z) as a module."""
        return _LIKELIHOODS[self.likelihood](self.image_scale)

    def criterion(self, image_shape: ImageShape, free_nats: dict[str, FreeNats] | None = None) -> GecoRule:
        """Build the GECO rule, with the floors `free_nats` of KLs by site."""
        return self.geco.criterion(image_shape, image_scale=self.image_scale, free_nats=free_nats)


@dataclass(frozen=True)
class SlotOptions(CompositionOptions):
    """Options of all systems with slots of one vector each. Both pairs of a LOM use them."""

    slot_dim: Size = 64
    """Dz (A.4.1)."""
    decoder: Decoder = "deconvolution"
    """GENESIS-v2's deconvolutions, EMORL's broadcast decoder, or a small decoder (departure): separable for boxes,
    frame for objects of any shape, with the encoder regions or parts."""
    decoder_width: Size = 64
    """Channels or units of the decoder's layers."""

    def make_decoder(self, image_shape: ImageShape) -> nn.Module:
        """Build a decoder of slots to C+1 channels; raises UserError if it does not support the images or the slots."""
        check_image_size(image_shape)
        if self.decoder == "frame" and self.slot_dim < FrameDecoder.NUM_PLACED:
            raise UserError(
                f"--model.slot-dim is {self.slot_dim}, but the decoder frame reads place and size from the first "
                f"{FrameDecoder.NUM_PLACED} numbers of a slot: increase it, or choose another --model.decoder"
            )
        channels, height, _ = image_shape
        return _DECODERS[self.decoder](self.slot_dim, height, out_channels=channels + 1, width=self.decoder_width)


@dataclass(frozen=True)
class Schedule:
    """The order in which the two pairs of a system train. The paper trains both at once."""

    orderless_first: Share = 0.0
    """Share of the steps in which only the orderless pair trains. In the others only the ordered pair trains. With 0,
    both train at once, as in the paper. Because of the stop-gradient, this changes the schedule and not the objective
    (departure)."""
    ordered_batch_size: Count | None = None
    """Scenes per step of the ordered pair after the orderless pair; by default --train.batch-size."""
    ordered_learning_rate: Positive | None = None
    """Learning rate of the ordered pair after the orderless pair; by default --train.learning-rate."""


@dataclass(frozen=True)
class PairedOptions(SlotOptions):
    """Options of all systems with an ordered pair that reads an orderless pair."""

    schedule: Schedule = Schedule()

    def source_options(self) -> dict[str, Any]:
        shared = {field.name: getattr(self, field.name) for field in fields(SlotOptions)}
        return shared | {field.name: getattr(self.orderless, field.name) for field in fields(self.orderless)}

    def source_steps(self, train: Train) -> int:
        return self.first_steps(train) or train.steps

    def first_steps(self, train: Train) -> int:
        """Return the number of steps in which only the orderless pair trains."""
        return round(self.schedule.orderless_first * train.steps)

    def ordered_geco(self, train: Train) -> Geco:
        """Return the options of the ordered pair's GECO, which never relaxes a target that it takes over."""
        if self.geco.relax_at is None or self.first_steps(train) == 0:
            return self.geco
        return replace(self.geco, relax_at=train.steps + 1)  # after the end

    def phases(self, system: System, train: Train) -> list[Phase]:
        """Return one phase, or a phase per pair; the ordered decoder then starts as a copy of the orderless one."""
        first_steps, schedule = self.first_steps(train), self.schedule
        if first_steps == 0:
            return [phase(train)]

        def start_from_the_orderless_pair() -> None:
            orderless, ordered = system["orderless"], system["ordered"]
            ordered.model.decoder.load_state_dict(orderless.model.decoder.state_dict())
            if self.geco.relax_at is not None and isinstance(ordered.criterion, GecoRule):
                ordered.criterion.goal.copy_(orderless.criterion.goal)

        ordered = phase(
            train,
            steps=train.steps - first_steps,
            batch_size=schedule.ordered_batch_size or train.batch_size,
            learning_rate=schedule.ordered_learning_rate or train.learning_rate,
            pairs=("ordered",),
            prepare=start_from_the_orderless_pair,
        )
        return [phase(train, steps=first_steps, pairs=("orderless",)), ordered][: 1 if ordered.steps == 0 else 2]

    def check(self, train: Train, *, accumulate: int = 1, cuda_graph: bool = False) -> None:
        super().check(train)
        for name in ("ordered_batch_size", "ordered_learning_rate"):
            if self.schedule.orderless_first == 0 and getattr(self.schedule, name) is not None:
                raise UserError(
                    f"--model.schedule.{name.replace('_', '-')} has no effect if both pairs train at once: pass "
                    "--model.schedule.orderless-first as well, or leave it out"
                )

    def with_one_batch_size(self) -> "PairedOptions":
        return replace(self, schedule=replace(self.schedule, ordered_batch_size=None))


@dataclass(frozen=True)
class MatchedOptions(PairedOptions):
    """Options of all systems that match orderless slots to the order of a prior."""

    matching: Literal["greedy", "hungarian"] = "greedy"
    """How orderless slots are matched to the prior's order (Algorithm 1, A.2)."""

    def make_matching(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that matches the prior's means and the orderless means."""
        return _MATCHINGS[self.matching]

    def check(self, train: Train, *, accumulate: int = 1, cuda_graph: bool = False) -> None:
        super().check(train)
        if cuda_graph and self.matching == "hungarian":
            raise UserError(
                "--cuda-graph does not go with --model.matching hungarian, which works on the CPU: take greedy, or "
                "leave the graph out"
            )
