"""What a person watches while a run trains."""


def progress_line(metrics: dict[str, float], names: tuple[str, ...]) -> str:
    """Speed, each pair's reconstruction against its target, its KLs and its multiplier."""
    parts = [f"{metrics['images_per_second']:.0f} img/s"]
    for name in names:
        rmse, target = metrics[f"{name}/rmse"], metrics[f"{name}/rmse_target"]
        kls = [
            f"{key.removeprefix(name + '/')} {value:.0f}"
            for key, value in metrics.items()
            if key.startswith(name + "/") and key.split("/")[1] not in ("x", "rmse", "rmse_target", "multiplier")
        ]
        parts.append(
            f"{name} rmse {rmse:.3f}/{target:.3f} KL {' '.join(kls)} multiplier {metrics[f'{name}/multiplier']:.2g}"
        )
    return " | ".join(parts)
