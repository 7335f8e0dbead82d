"""The commands of `data.py`, and code that the commands which write data sets share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pyro_lom.data.writer import SceneWriter
from pyro_lom.errors import printable


@contextmanager
def writing(out: Path, made_by: dict[str, Any]) -> Iterator[SceneWriter]:
    """Yield the writer of a data set; at the end, or after Ctrl-C, print its number of scenes."""
    with SceneWriter(out, made_by) as writer:
        try:
            yield writer
        except KeyboardInterrupt:
            if writer.num_scenes:
                line = f"{out}: {writer.num_scenes} scenes are kept; the same command goes on"
                print(printable(line), file=sys.stderr)
            raise
    print(printable(f"{out}: {writer.num_scenes} scenes; python experiments/data.py info {out} describes them"))


def bar(total: int, unit: str, initial: int = 0) -> tqdm:
    """Return a progress bar. Bytes are shown with prefixes such as M."""
    interval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(
        total=total, unit=unit, initial=initial, unit_scale=unit == "B", mininterval=interval, dynamic_ncols=True
    )
