"""What ABL isolated, and a picture of its losses. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.isolation import flagged_lowest, isolation
from bdtune.defending.loss_pictures import draw_histogram, draw_trace, panels
from bdtune.defenses.abl.stages import largest_class
from bdtune.metrics import auroc, mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth

RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Isolation rates for which precision and recall are reported, whatever the rate in use."""


def diagnose(artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
    """Return how much of what is isolated is poison, at the rate in use and at others.

    isolation_precision, isolation_recall, and the same with `_at_0.05` and so on; isolated: share of all
    samples; isolated_target: share of isolated samples labelled as the target; isolated_top: share of their
    largest class; ties: samples of the loss at which isolation ends; auroc: of low losses; loss_clean,
    loss_poison: means in nats.
    """
    losses, chosen = artefacts["losses"].arrays["losses"], artefacts["isolated"].arrays["ids"]
    poison = truth.is_poison
    flags = np.zeros(len(losses), bool)
    flags[chosen] = True
    found = isolation(flags, poison)
    for rate in RATES:
        found |= {
            f"{name}_at_{rate:g}": v for name, v in isolation(flagged_lowest(losses, rate), poison).items()
        }
    observed = truth.observed[chosen]
    last = losses[chosen].max(initial=-np.inf)
    return {
        **found,
        "isolated": len(chosen) / max(1, len(losses)),
        "isolated_target": mean(observed == truth.target),
        "isolated_top": largest_class(observed),
        "ties": float(np.count_nonzero(losses == last)),
        "auroc": auroc(-losses, poison),
        "loss_clean": mean(losses[~poison]),
        "loss_poison": mean(losses[poison]),
    }


def figure(artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
    """Draw the losses of clean and poisoned samples while isolating, and after it with what is isolated."""
    picture, (left, right) = panels(2)
    losses, chosen = artefacts["losses"].arrays["losses"], artefacts["isolated"].arrays["ids"]
    draw_trace(left, artefacts["isolate"].arrays["trace.losses"], truth.is_poison)
    line = float(losses[chosen].max()) if len(chosen) else None
    draw_histogram(right, losses, truth.is_poison, line, "isolated up to")
    left.set_title("while isolating", fontsize="medium")
    right.set_title("after it", fontsize="medium")
    return picture
