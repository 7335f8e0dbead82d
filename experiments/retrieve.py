"""Find training scenes that resemble held-out scenes (A.6): `python experiments/retrieve.py RUN [options]`."""

if __name__ == "__main__":
    import installed  # noqa: F401

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyro
import torch
import tyro
from jaxtyping import Float, UInt8
from torch import Tensor

from experiments import cli
from experiments.config import Count, check_bounds, within
from experiments.evaluation.held_out import SEED, HeldOut, checksum, segment
from experiments.evaluation.reading import checked, guide_trace, latents, scene_latents
from experiments.systems import own_systems
from pyro_lom import figures
from pyro_lom.data.hdf5 import Scenes
from pyro_lom.data.minibatches import float_images
from pyro_lom.errors import UserError, printable
from pyro_lom.metrics.stacks import object_segments
from pyro_lom.retrieval import LARGEST, Index
from pyro_lom.system import infer

DESCRIPTION = """Retrieve training scenes that resemble held-out scenes, by s and then by one slot: retrieve.py RUN
[options]. Writes the index to RUN/retrieval.safetensors and a picture to RUN/figures/retrieval.png."""

_TOP = 5


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    queries: tuple[Annotated[int, within(0, 10**9)], ...] = (0, 1, 2, 3)
    """Numbers of held-out scenes."""
    slot: Annotated[int, within(0, 63)] | None = None
    """Place of the slot to rank by; by default the slot of the largest object of each query."""
    num_scenes: Count = 50_000
    """Largest number of training scenes in the index."""
    systems: str | None = None
    """Your own Python module that defines the run's system."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="retrieve.py", description=DESCRIPTION)
    check_bounds(options)
    pyro.enable_validation(False)
    held_out = HeldOut.open(options.run, systems=own_systems(options.systems))
    if not (held_out.final.model.scene_sites and held_out.final.model.slot_sites):
        raise UserError(f"{options.run} has no scene latent and slots to search by: name a run of a LOM")
    _check(options, held_out)
    if not held_out.all_scenes.splits.get("train"):
        raise UserError(f"{options.run} is packed, without training scenes to search: name the run that it was made of")
    train = held_out.all_scenes.split("train")
    index = _index(held_out, train, min(options.num_scenes, len(train.images)))
    shares = ", ".join(f"{100 * share:.0f}" for share in index.explained)
    print(f"{len(index.scenes)} scenes; variance of s along the components: {shares} % of all")

    queries = float_images(held_out.scenes.images[list(options.queries)])
    torch.manual_seed(SEED)  # building the index has used random numbers; reading it has not
    scenes, slots = _latents(held_out, queries.to(held_out.device))
    if (index.scenes.shape[1:], index.slots.shape[1:]) != (scenes.shape[1:], slots.shape[1:]):
        raise UserError(f"{_path(held_out)} is the index of another system: remove it to build it again")
    rows = []
    for number, query, scene, own in zip(options.queries, queries, scenes, slots, strict=True):
        slot = _largest_object(_segments(held_out, own[None])[0]) if options.slot is None else options.slot
        started = time.perf_counter()
        found = index.nearest(scene, _TOP)
        ranked, matched = index.rerank(found, own[slot])
        milliseconds = 1000 * (time.perf_counter() - started)
        print(f"{number}: {found.tolist()}, by slot {slot}: {ranked.tolist()} ({milliseconds:.1f} ms)")
        segments = _segments(held_out, np.concatenate([own[None], index.slots[ranked]]))
        by_slot = torch.cat([query[None], float_images(train.images[ranked])])
        boxes = [segment == k for segment, k in zip(segments, [slot, *matched], strict=True)]
        rows += [
            (f"{number}; nearest by s", torch.cat([query[None], float_images(train.images[found])])),
            (f"by slot {slot}", figures.boxed(by_slot, torch.from_numpy(np.stack(boxes)))),
        ]
    path = held_out.run.figures / "retrieval.png"
    figures.save_grid(path, rows, "Left: held-out scenes. Right: the nearest by s; re-ranked by the boxed slot")
    print(printable(str(path)))


def _check(options: Arguments, held_out: HeldOut) -> None:
    if not options.queries:
        raise UserError(f"--queries needs one or more numbers of held-out scenes, from 0 to {len(held_out) - 1}")
    for query in options.queries:
        if not 0 <= query < len(held_out):
            raise UserError(f"--queries {query}: held-out scenes go from 0 to {len(held_out) - 1}")
    num_slots = held_out.final.model.num_slots
    if options.slot is not None and not 0 <= options.slot < num_slots:
        raise UserError(f"--slot {options.slot}: places go from 0 to {num_slots - 1}")


def _path(held_out: HeldOut) -> Path:
    return held_out.run.folder / "retrieval.safetensors"


def _index(held_out: HeldOut, train: Scenes, num_scenes: int) -> Index:
    """Load the index, or build it if there is none for this checkpoint, data set and number of scenes."""
    path = _path(held_out)
    about = {"checkpoint": held_out.provenance["checkpoint"], "data": checksum(train), "num_scenes": str(num_scenes)}
    if os.path.lexists(path):
        index, found = Index.load(path)
        if found == about and len(index.scenes) == num_scenes:
            return index
    started = time.monotonic()
    torch.manual_seed(SEED)
    parts = [_latents(held_out, images) for images in held_out.batches(train.images[:num_scenes], "indexing")]
    index = Index.build(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    index.save(path, about)
    print(printable(f"{path}: {num_scenes} scenes in {time.monotonic() - started:.0f} s"), file=sys.stderr)
    return index


def _latents(
    held_out: HeldOut, images: Float[Tensor, "B C H W"]
) -> tuple[Float[np.ndarray, "B Ds"], Float[np.ndarray, "B K Dz"]]:
    """Return the posterior means of s and z."""
    name, pair = list(held_out.system)[-1], held_out.final
    trace = guide_trace(pair, images, infer(held_out.system, images, [name])[name])
    scenes = scene_latents(pair.model, trace, mean=True)
    slots = pair.model.join(latents(pair.model, trace, mean=True))
    if not all((part.abs() < LARGEST).all() for part in (scenes, slots)):
        raise UserError(
            "the latents of the model are NaN, infinite or too large, since its weights are too large: name another run"
        )
    return scenes.cpu().numpy(), slots.cpu().numpy()


def _segments(held_out: HeldOut, slots: Float[np.ndarray, "B K Dz"]) -> UInt8[np.ndarray, "B H W"]:
    """Render slots, and return the slot with the largest mask at each pixel."""
    model, drawn = held_out.final.model, torch.from_numpy(slots).to(held_out.device)
    with torch.no_grad():
        return segment(checked(model.render(model.split(drawn))).log_masks)


def _largest_object(segments: UInt8[np.ndarray, "H W"]) -> int:
    """Return the largest segment that is not background, or the largest of all if there is only background."""
    candidates = object_segments(segments) or np.unique(segments).tolist()
    return max(candidates, key=lambda slot: (segments == slot).sum())


if __name__ == "__main__":
    cli.run(main, saves_memory="--num-scenes or --queries")
