"""What CBD's weights got right, and a picture of them. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.loss_pictures import BINS, draw_stacked, draw_trace, dress, panels
from bdtune.metrics import auroc, mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth

TITLES = ("the backdoored model's losses", "weights in the clean model's training", "in its last epoch")


def diagnose(artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
    """Return how well the backdoored model separates poison, and how its losses weigh samples at the end.

    loss_clean, loss_poison: means in nats of the backdoored model's last epoch; loss_auroc: of low ones;
    weight_clean, weight_poison: means in the clean model's last epoch, each weight in [0, 1]; auroc: chance
    that a poisoned sample weighs less than another; effective: effective share of samples,
    (sum w)^2 / (N sum w^2); dependence: mean of D in the last epoch, where D is minimised.
    """
    poison = truth.is_poison[artefacts["subset"].arrays["ids"]]
    losses = artefacts["backdoored"].arrays["trace.losses"][-1].astype(np.float64)
    trained = artefacts["classifier"].arrays
    weights = trained["trace.weights"][-1].astype(np.float64)
    squares = float((weights**2).sum())
    found = {
        "loss_clean": mean(losses[~poison]),
        "loss_poison": mean(losses[poison]),
        "loss_auroc": auroc(-losses, poison),
        "weight_clean": mean(weights[~poison]),
        "weight_poison": mean(weights[poison]),
        "auroc": auroc(-weights, poison),
        "effective": float(weights.sum() ** 2 / squares / len(weights)) if squares else np.nan,
    }
    if trained["trace.dependence"].any():
        found["dependence"] = float(trained["trace.dependence"][-1])
    return found


def figure(artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
    """Draw the backdoored model's losses by epoch, and the weights by epoch and in the last one."""
    picture, axes = panels(3)
    poison = truth.is_poison[artefacts["subset"].arrays["ids"]]
    weights = artefacts["classifier"].arrays["trace.weights"]
    draw_trace(axes[0], artefacts["backdoored"].arrays["trace.losses"], poison)
    draw_trace(axes[1], weights, poison)
    axes[1].set_ylabel("mean weight", fontsize="small")
    draw_stacked(axes[2], weights[-1], poison, np.linspace(0.0, 1.0, BINS + 1))
    axes[2].set_xlabel("weight", fontsize="small")
    axes[2].set_ylabel("samples", fontsize="small")
    dress(axes[2])
    for ax, title in zip(axes, TITLES, strict=True):
        ax.set_title(title, fontsize="medium")
    return picture
