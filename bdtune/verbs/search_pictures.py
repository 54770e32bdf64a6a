"""Pictures of a search, drawn by Optuna: which settings matter, and all trials as parallel coordinates."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

from bdtune.cluster.study import open_study
from bdtune.report.saving import save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bdtune.config.sweep import SweepSpec

LEAST_TRIALS = 2
"""Finished trials without which there is nothing to compare."""

log = logging.getLogger(__name__)


def draw(spec: SweepSpec, folder: Path) -> list[Path]:
    """Write `search-importance.png` and `search-parallel.png` into the folder of a search; returns them.

    With several objectives there is one of each, named after it. Nothing is drawn of fewer than two trials.
    """
    from optuna.visualization.matplotlib import plot_parallel_coordinate, plot_param_importances

    study = open_study(spec, folder)
    if sum(trial.values is not None for trial in study.get_trials(deepcopy=False)) < LEAST_TRIALS:
        return []
    found = []
    for number, (metric, _) in enumerate(spec.objectives):
        about: dict[str, Any] = {"target_name": metric}
        if len(spec.objectives) > 1:
            about["target"] = lambda trial, number=number: trial.values[number]
        ending = f"-{metric.replace('/', '-')}" if len(spec.objectives) > 1 else ""
        plots: dict[str, Callable[..., Any]] = {"importance": plot_param_importances}
        plots["parallel"] = plot_parallel_coordinate
        for name, plot in plots.items():
            found += _drawn(plot, study, folder / f"search-{name}{ending}.png", about)
    return found


def _drawn(plot: Callable[..., Any], study: Any, path: Path, about: dict[str, Any]) -> list[Path]:
    """Draw one picture; one that cannot be drawn must not cost the sweep its report."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    before = mpl.get_backend()
    plt.switch_backend("agg")  # no window
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's, that these functions may change
            drawn = plot(study, **about)
        figure = (drawn.flat[0] if hasattr(drawn, "flat") else drawn).figure
        figure.set_size_inches(8, 4.5)
        save(figure, path, dpi=110, bbox_inches="tight")
    except Exception as error:
        log.warning("no picture %s: %s", path.name, error)
        return []
    finally:
        plt.close("all")
        plt.switch_backend(before)
    return [path]
