"""Make one HTML page of a run: `python experiments/report.py RUN [options]`."""

if __name__ == "__main__":
    import installed  # noqa: F401

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import cli
from experiments.evaluation.held_out import Values, stored
from experiments.evaluation.words import QUANTITIES, number, split, title
from experiments.loading import find_run
from pyro_lom.errors import UserError, printable
from pyro_lom.figures import save_curves
from pyro_lom.files import open_own
from pyro_lom.training.runs import Run

DESCRIPTION = """Make one self-contained HTML page of a run: report.py RUN [options]. The page contains the numbers and
pictures that the other commands have written, and requires no network."""

_CAPTIONS = {  # in this order; other pictures come after them
    "reconstructions": "Held-out scenes, reconstructions and masks",
    "reconstructions-slots": "Held-out scenes, slot by slot",
    "samples": "Unconditional samples",
    "interpolation": "From one scene to another along great circles of s",
    "between": "Between two given scenes",
    "random-walk": "Random walks of s",
    "retrieval": "Nearest scenes by s, re-ranked by a slot",
    "stacks": "Samples, numbered, to count standing stacks by hand",
}
_LARGEST = 64 << 20  # bytes of all pictures together
_TYPES = {".png": "image/png", ".gif": "image/gif"}
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
nav a { margin-right: 1rem; }
figure { margin: 1.5rem 0; } figcaption { font-size: .9rem; margin-bottom: .3rem; }
img { max-width: 100%; background: white; border-radius: 4px; image-rendering: auto; }
table { border-collapse: collapse; font-size: .9rem; }
td { padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.columns { columns: 20rem; } .columns table { break-inside: avoid; margin-bottom: 1.2rem; width: 100%; }
caption { text-align: left; font-weight: 600; padding-bottom: .2rem; }
"""


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    output: Path | None = None
    """HTML file; by default RUN/report.html."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="report.py", description=DESCRIPTION)
    run = find_run(options.run)
    path = options.output or run.folder / "report.html"
    cli.check_output(path, suffix=".html")
    try:
        content = page(run)
    except RecursionError:
        raise UserError(
            f"{run.folder}: config.json or environment.json is nested too deeply to be of a run: restore what the run "
            "wrote there"
        ) from None
    cli.write_signed(path, content)
    print(printable(f"{path} ({path.stat().st_size / 2**20:.1f} MB)"))


def page(run: Run) -> str:
    """Return the HTML page of a run, whose curves are drawn if no file of the run is damaged.

    Raises:
        UserError: a file of the run is damaged.
    """
    title = html.escape(run.folder.resolve().name)
    contents = {
        "Numbers": _numbers(run),
        "Configuration": f'<div class="columns">{_tables(run.read_json("config.json"))}</div>',
        "Environment": f'<div class="columns">{_tables(run.read_json("environment.json"))}</div>',
        "Pictures": "".join(_figure(path, caption) for path, caption in _pictures(run)),
        "Curves": _curves(run),  # last, because it writes a file
    }
    order = ("Numbers", "Curves", "Pictures", "Configuration", "Environment")
    sections = {name: contents[name] for name in order if contents[name]}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(f'<h2 id="{name.lower()}">{name}</h2>{content}' for name, content in sections.items())
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1><nav>{links}</nav>{body}</body></html>\n"
    )


def _numbers(run: Run) -> str:
    tables = {}
    if (run.folder / "summary.json").exists():
        tables["at the end of training"] = _in_words(run.read_json("summary.json", Values))
    for name, found in stored(run).items():
        tables[f"{name}, {found['protocol'].get('num_images', '?')} images"] = _in_words(found["values"])
    return f'<div class="columns">{_tables(tables)}</div>' if tables else ""


def _in_words(values: Values) -> Values:
    """Replace keys by titles, and numbers by formatted numbers; unknown keys do not change."""
    return {
        title(key): number(key, value) if isinstance(value, float) and split(key)[0] in QUANTITIES else value
        for key, value in values.items()
    }


def _curves(run: Run) -> str:
    path = run.figures / "curves.png"
    if metrics := run.metrics():
        save_curves(path, metrics)
    return _figure(path, "Errors, KLs and multipliers of training")


def _pictures(run: Run) -> list[tuple[Path, str]]:
    paths = [path for path in run.figures.iterdir() if path.suffix in _TYPES and path.stem != "curves"]
    if (size := sum(path.stat().st_size for path in paths)) > _LARGEST:
        raise UserError(
            f"{run.figures}: its pictures have {size >> 20} MB, which is too much for a page: move some away"
        )
    order = list(_CAPTIONS)
    paths.sort(key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.name))
    return [(path, _CAPTIONS.get(path.stem, printable(path.stem.replace("-", " ").capitalize()))) for path in paths]


def _figure(path: Path, caption: str) -> str:
    try:
        with open_own(path) as file:
            data = base64.b64encode(file.read()).decode()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; remove it") from error
    alt = html.escape(caption)
    source = f"data:{_TYPES[path.suffix]};base64,{data}"
    title = f"<figcaption>{alt}</figcaption>" if path.suffix == ".gif" else ""  # the others have one inside
    return f'<figure>{title}<img alt="{alt}" src="{source}"></figure>'


def _tables(values: dict[str, Any], caption: str = "") -> str:
    """Format plain values as one table, and each nested dictionary as a further table."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    rows = "".join(f"<tr><td>{html.escape(key)}</td>{_cell(value)}</tr>" for key, value in plain.items())
    table = f"<table><caption>{html.escape(caption)}</caption>{rows}</table>" if rows else ""
    nested = {key: value for key, value in values.items() if isinstance(value, dict)}
    prefix = f"{caption}." if caption else ""
    return table + "".join(_tables(value, prefix + key) for key, value in nested.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    return f'<td class="number">{html.escape("-" if value is None else str(value))}</td>'


if __name__ == "__main__":
    cli.run(main, saves_memory="the size of the pictures in RUN/figures")
