"""A system with its held-out scenes, read in batches: 10,000 scenes require less than a gigabyte."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from experiments.cli import progress
from experiments.config import Config, to_dict
from experiments.evaluation.reading import (
    elbo_terms,
    guide_trace,
    latents,
    readjusted,
    reconstruct,
    sample_batches,
    shuffled_batches,
    source_pair,
    terms_under_other_scenes,
)
from experiments.loading import find_run, load_run, read_origin
from experiments.systems import build
from experiments.systems.options import SystemOptions
from pyro_lom.data.minibatches import float_images
from pyro_lom.data.scenes import Scenes
from pyro_lom.data.stored import Array
from pyro_lom.errors import UserError
from pyro_lom.system import Pair, System, infer, result
from pyro_lom.training.runs import Run
from pyro_lom.types import Rendering

SEED = 0  # set before each computation, so that numbers do not depend on which others are computed
BATCH = 32  # limits the memory that the paper's decoders use
_MEMORY = "evaluation.json"

Values = dict[str, float | str | None]
"""Numbers by key. A string is the reason why a number is missing; None is a number that is not finite."""


class Stored(TypedDict):
    """Values in `evaluation.json`, and the options under which they were computed."""

    protocol: dict[str, Any]
    values: Values


def stored(run: Run) -> dict[str, Stored]:
    """Read the `evaluation.json` of a run; raises UserError if it is damaged."""
    try:
        return run.read_json(_MEMORY, dict[str, Stored]) if (run.folder / _MEMORY).exists() else {}
    except UserError as error:
        raise UserError(f"{error}; remove the file to compute its numbers again") from error


class Reading(NamedTuple):
    """Slots, segments and reconstruction errors of images. A pixel's segment is the slot with the largest mask.

    The keys of `segments` are "encoder", if a guide has masks, and the names of the pairs whose decoders have masks.
    """

    slots: Float[Tensor, "N K Dz"] | None  # posterior means of `HeldOut.source`
    segments: dict[str, UInt8[np.ndarray, "N H W"]]
    squared_errors: dict[str, Float[Tensor, "N"]]  # of a posterior sample, by pair, summed over pixels and channels


class HeldOut:
    """A trained system and the first `num_images` scenes of its test split, or of the training split if there is none.

    Raises:
        UserError: the scenes are missing or damaged.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        system: System,
        all_scenes: Scenes,
        *,
        num_images: int | None = None,
        parts: dict[str, Any] | None = None,
        readjust: int = 0,
    ):
        self.readjust = readjust
        self.run, self.config, self.system, self.all_scenes = run, config, system, all_scenes
        self.parts = parts or {}
        self.scenes = all_scenes.split("test" if all_scenes.splits.get("test") else "train", num_images)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        _move(system, self.device)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        num_images: int | None = None,
        systems: Iterable[type[SystemOptions]] = (),
        scenes: Any = None,
        parts: dict[str, Any] | None = None,
        readjust: int = 0,
    ) -> "HeldOut":
        """Load a run at its last checkpoint.

        Raises:
            UserError: the folder is not a run, or its last checkpoint or its data are missing or damaged.
        """
        loaded = load_run(folder, systems=systems, scenes=scenes, **(parts or {}))
        return cls(find_run(folder), *loaded, num_images=num_images, parts=parts, readjust=readjust)

    def __len__(self) -> int:
        return len(self.scenes.images)

    @property
    def final(self) -> Pair:
        """The last pair, which is the result of the system."""
        return result(self.system)

    @property
    def source(self) -> tuple[str, Pair]:
        """The name and the pair whose guide infers slots from images: the pair that the result reads, or the result."""
        return source_pair(self.system)

    @cached_property
    def untrained(self) -> System:
        """The system before training, as a baseline."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            system = build(self.config, self.scenes.image_shape, **self.parts)
        _move(system, self.device)
        return system

    @property
    def orderless(self) -> str | None:
        """The run from which this run took its orderless pair, or None."""
        return read_origin(self.run).orderless

    @cached_property
    def provenance(self) -> dict[str, str]:
        """The checkpoint, and checksums of configuration and held-out scenes, for which stored values are valid."""
        config = hashlib.sha256(json.dumps(to_dict(self.config)).encode()).hexdigest()[:16]
        return {"checkpoint": self.run.checkpoints()[-1].name, "config": config, "data": checksum(self.scenes)}

    def remember(self, name: str, protocol: dict, compute: Callable[[], Values]) -> Values:
        """Read the values `name` from the run's `evaluation.json`, or compute them and write them to the file.

        Stored values are used only if `protocol`, the number of images and `provenance` are equal.
        """
        protocol = protocol | {"num_images": len(self)} | self.provenance
        if self.readjust:
            protocol |= {"readjust": self.readjust}
        known = self.memory().get(name)
        if known is None or known["protocol"] != protocol:
            known = {"protocol": protocol, "values": compute()}
            self.run.write_json(_MEMORY, self.memory() | {name: known})  # read again: another process may have written
        return known["values"]

    def memory(self) -> dict[str, Stored]:
        """Read the run's `evaluation.json`; raises UserError if it is damaged."""
        return stored(self.run)

    def batches(self, images: UInt8[Array, "N H W C"], what: str) -> Iterator[Float[Tensor, "B C H W"]]:
        """Yield batches of images as floats in [0, 1] on the system's device; `what` labels the progress bar."""
        for first in progress(range(0, len(images), BATCH), what):
            yield float_images(images[first : first + BATCH]).to(self.device)

    def inferred(
        self, images: UInt8[Array, "N H W C"], what: str
    ) -> Iterator[tuple[Float[Tensor, "B C H W"], dict[str, Any]]]:
        """Yield batches of images, each with the inferred posteriors that the guides receive, by pair."""
        torch.manual_seed(SEED)
        for batch in self.batches(images, what):
            yield batch, infer(self.system, batch)

    def read(self, images: UInt8[Array, "N H W C"], what: str) -> Reading:
        """Infer slots of images, and reconstruct the images."""
        (source, pair), slots, segments, errors = self.source, [], {}, {}
        for batch, received in self.inferred(images, what):
            if pair.model.slot_sites:
                means = latents(pair.model, guide_trace(pair, batch, received[source]), mean=True)
                slots.append(pair.model.join(means).cpu())
            masks = {"encoder": pair.guide.log_masks(received[source])}
            for name, one in self.system.items():
                rendering = reconstruct(one, batch, received[name])
                masks[name] = rendering.log_masks
                errors.setdefault(name, []).append((rendering.image - batch).square().sum((1, 2, 3)).cpu())
            for name, log_masks in masks.items():
                if log_masks is not None:
                    segments.setdefault(name, []).append(segment(log_masks))
        return Reading(
            torch.cat(slots) if slots else None,
            {name: np.concatenate(parts) for name, parts in segments.items()},
            {name: torch.cat(parts) for name, parts in errors.items()},
        )

    @cached_property
    def reading(self) -> Reading:
        """The reading of the held-out scenes."""
        return self.read(self.scenes.images, "reconstructing")

    @cached_property
    def kls(self) -> dict[str, Float[Tensor, "N"]]:
        """The values of `kls_of` for the held-out scenes."""
        return self.kls_of(self.scenes.images, "KLs")

    def kls_of(self, images: UInt8[Array, "N H W C"], what: str) -> dict[str, Float[Tensor, "N"]]:
        """Return the KLs and ELBOs of images by key, in nats per scene; `what` labels the progress bar.

        `kl_PAIR` and `elbo_PAIR` belong to a pair. `kl_scene` and `kl_slots` are the two parts of the result's KL.
        `kl_slots_other_scene` is its KL of slots if each scene has the scene latent of another scene.
        """
        found: dict[str, list[Tensor]] = {}
        for batch, received in self.inferred(images, what):
            values = {}
            for name, pair in self.system.items():
                terms = elbo_terms(pair, batch, received[name])
                values[f"kl_{name}"] = sum(terms.kl.values())
                values[f"elbo_{name}"] = sum(terms.log_likelihood.values()) - values[f"kl_{name}"]
            values |= _levels(pair, terms.kl)
            if "kl_scene" in values and "kl_slots" in values and len(batch) > 1:
                elsewhere = terms_under_other_scenes(pair, batch, received[name])
                values["kl_slots_other_scene"] = _levels(pair, elsewhere.kl)["kl_slots"]
            for key, value in values.items():
                found.setdefault(key, []).append(value.double().cpu())
        return {key: torch.cat(parts) for key, parts in found.items()}

    def samples(
        self, pair: Pair, tau: float, what: str, *, num_scenes: int | None = None, masks: bool = True
    ) -> Iterator[Rendering]:
        """Sample scenes in batches, by default as many as held-out scenes; without `masks`, images alone.

        If `readjust` is set, the batch statistics are re-adjusted first (`reading.readjusted`).
        """
        torch.manual_seed(SEED)
        if self.readjust:
            pair = readjusted(pair, tau, self.readjust)
        yield from sample_batches(pair, num_scenes or len(self), tau, size=BATCH, masks=masks, what=what)

    def generated(self, tau: float) -> dict[str, Iterator[Rendering]]:
        """Return sets of generated images by name, each with as many images as there are held-out scenes.

        `samples` are samples of the result at `tau`, `samples_tau1` at 1. If the result reads another pair,
        `PAIR_prior` are samples of that pair. `shuffled_posterior` has inferred slots, shuffled over all scenes.
        """
        name, pair = self.source
        sets = {
            "samples": self.samples(self.final, tau, "sampling", masks=False),
            "samples_tau1": self.samples(self.final, 1.0, "sampling", masks=False),
        }
        if pair is not self.final:
            sets[f"{name}_prior"] = self.samples(pair, tau, "sampling", masks=False)
        if pair.model.slot_sites:
            sets["shuffled_posterior"] = self._shuffled()
        return sets

    def _shuffled(self) -> Iterator[Rendering]:
        name, pair = self.source
        parts = [
            latents(pair.model, guide_trace(pair, batch, received[name]))
            for batch, received in self.inferred(self.scenes.images, "inferring")
        ]
        yield from shuffled_batches(pair, {site: torch.cat([part[site] for part in parts]) for site in parts[0]})


def segment(log_masks: Float[Tensor, "B K 1 H W"]) -> UInt8[np.ndarray, "B H W"]:
    """Return the slot with the largest mask at each pixel."""
    return log_masks.argmax(-4).squeeze(-3).to(torch.uint8).cpu().numpy()


def checksum(scenes: Scenes) -> str:
    """Return a checksum of the data set's name, images, labels and factors."""
    digest = hashlib.blake2b(f"{scenes.name} {scenes.image_shape} {scenes.num_background}".encode(), digest_size=8)
    arrays = {"images": scenes.images, "labels": scenes.labels} | dict(sorted(scenes.factors.items()))
    for name, array in arrays.items():
        digest.update(name.encode())
        for first in range(0, 0 if array is None else len(array), 1024):
            digest.update(np.ascontiguousarray(array[first : first + 1024]))
    return digest.hexdigest()


def _levels(pair: Pair, kls: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the KLs of scene latents (`kl_scene`) and of all other sites (`kl_slots`), if the model has them."""
    of_scenes = [kl for site, kl in kls.items() if site in pair.model.scene_sites]
    others = [kl for site, kl in kls.items() if site not in pair.model.scene_sites]
    levels = {"kl_scene": of_scenes, "kl_slots": others if pair.model.slot_sites else []}
    return {name: sum(values) for name, values in levels.items() if values}


def _move(system: System, device: torch.device) -> None:
    for pair in system.values():
        pair.model.to(device).eval()
        pair.guide.to(device).eval()
