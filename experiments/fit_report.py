"""What `experiments/fit.py` prints: before it trains, with --dry-run, and after."""

from pathlib import Path

from torch import nn

from experiments.config import Config, check, to_dict
from experiments.systems import build_objective, build_phases, build_system
from pyro_lom.runs import Run

_TABLE = (
    ("segmentation: ARI-FG of the guide's masks", "ari_fg_encoder", ""),
    ("  k-means on raw RGB; the untrained guide", "ari_fg_kmeans_rgb", "ari_fg_untrained"),
    ("  the decoders' masks, orderless; ordered", "ari_fg_orderless", "ari_fg_ordered"),
    ("reconstruction: RMSE, orderless; ordered", "rmse_orderless", "rmse_ordered"),
    ("  share of the pixels' variance explained", "explained_variance_orderless", "explained_variance_ordered"),
    ("slot KL, nats: own scene; another scene", "kl_slots", "kl_slots_other_scene"),
    ("scene KL; orderless KL, nats", "kl_scene", "kl_orderless"),
    ("structure: samples at tau 0.8; at tau 1", "structure_samples", "structure_samples_tau1"),
    ("  independent slots; shuffled posterior", "structure_orderless_prior", "structure_shuffled_posterior"),
    ("  real scenes; cut and pasted ones", "structure_real", "structure_cut_and_paste"),
    ("Frechet distance (PCA 64): samples", "fd_pca64_samples", ""),
    ("  independent slots; shuffled posterior", "fd_pca64_orderless_prior", "fd_pca64_shuffled_posterior"),
    ("training: minutes; images/s", "train_minutes", "images_per_second"),
)


def print_summary(run: Run, summary: dict, pictures: list[Path]) -> None:
    """A table of the final numbers, and where they and the pictures are."""

    def shown(key: str) -> str:
        value = summary.get(key)
        return "" if value is None else f"{value:10.3f}"

    print()
    for title, first, second in _TABLE:
        if summary.get(first) is not None:
            print(f"{title:44}{shown(first)}{shown(second)}")
    print(f"\nall numbers: {run.folder / 'summary.json'}")
    print("pictures:    " + "\n             ".join(str(path) for path in pictures))


def print_plan(config: Config) -> None:
    """The resolved configuration, and the parameters of each part."""
    check(config)
    size = config.data.image_size
    system = build_system(config, (3, size, size))
    objective = build_objective(config, system, (3, size, size))
    build_phases(config, system)  # refuses what does not go together
    print(_lines(to_dict(config)))
    print("\nparameters, for RGB images")
    for pair_name, pair in objective.pairs.items():
        for role in ("model", "guide"):
            for part, module in getattr(pair, role).named_children():
                if num_parameters(module):
                    print(f"  {pair_name + ' ' + role + '.' + part:40} {num_parameters(module):>10,}")
    print(f"  {'in all':40} {num_parameters(objective):>10,}")


def _lines(values: dict, indent: str = "") -> str:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
