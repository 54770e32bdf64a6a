"""LfD's derived stages: which samples a teacher learned too easily, and what each sample weighs. numpy only.

Source: Learning from Distinction (ACM MM 2024), equations 4 to 6 and algorithm 1. Knobs without defaults are
handed down from the defense, where their defaults and ranges are.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from bdtune.defending.isolation import count_of, lowest
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import Diverged

Mode = Literal["weighted", "ascent_means", "ascent_sum", "drop", "positive_only", "plain"]
Ties = Literal["all", "strict"]


class Threshold(Stage):
    """Take the samples that the teacher fits best as candidates.

    Inputs: losses (losses float64 [N]). Arrays: gamma float64 [1], the m-th smallest loss with
    m = floor(alpha N); candidates bool [N]. With m = 0 there are no candidates and gamma is 0.
    """

    name: ClassVar[str] = "lfd_threshold"
    kind: ClassVar[Kind] = "derive"

    alpha: float
    """Fraction of samples that are candidates."""
    ties: Ties
    """all: every loss up to gamma; strict: exactly m, ties by id."""

    def run(self, ctx: Context, *, losses: Artefact) -> Artefact:
        loss = losses.arrays["losses"]
        easiest = lowest(loss, count_of(self.alpha, len(loss)))
        candidates = np.zeros(len(loss), bool)
        gamma = float(loss[easiest[-1]]) if len(easiest) else 0.0
        if len(easiest) and self.ties == "all":
            candidates = loss <= gamma
        else:
            candidates[easiest] = True
        return Artefact({"gamma": np.array([gamma]), "candidates": candidates})


class Weigh(Stage):
    """Weigh each sample for the student.

    Inputs: losses (losses float64 [N]), threshold (gamma, candidates). Arrays: weights float32 [N]. With
    l a loss, M the largest, C the candidates, N samples:
    weighted: l / M outside of C, beta (l - gamma) / (M - gamma) <= 0 inside; drop: the same with beta = 0;
    positive_only: l / M everywhere; plain: 1 everywhere; ascent_sum: 1 outside of C, -1 inside;
    ascent_means: N / (N - |C|) outside, -N / |C| inside, so that the mean over all samples is the difference
    of the two parts' means.
    Raises `Diverged` when no sample is left with a positive weight.
    """

    name: ClassVar[str] = "lfd_weights"
    kind: ClassVar[Kind] = "derive"

    mode: Mode
    """How weights are made."""
    beta: float
    """Strength of the ascent."""

    def run(self, ctx: Context, *, losses: Artefact, threshold: Artefact) -> Artefact:
        loss = losses.arrays["losses"].astype(np.float64)
        gamma, candidates = float(threshold.arrays["gamma"][0]), threshold.arrays["candidates"]
        weights = self._weights(loss, gamma, candidates)
        if len(weights) and not (weights > 0).any():
            raise Diverged(f"{self.name}: none of {len(loss)} samples is left with a positive weight")
        # adding 0 turns -0 into 0: equal weights must have equal bits
        return Artefact({"weights": weights.astype(np.float32) + np.float32(0)})

    def _weights(self, losses: np.ndarray, gamma: float, candidates: np.ndarray) -> np.ndarray:
        count, inside = len(losses), int(np.count_nonzero(candidates))
        if self.mode == "plain":
            return np.ones(count)
        if self.mode == "ascent_sum":
            return np.where(candidates, -1.0, 1.0)
        if self.mode == "ascent_means":
            return np.where(candidates, -count / max(inside, 1), count / max(count - inside, 1))
        largest = float(losses.max(initial=0.0))
        positive = losses / largest if largest > 0 else losses
        if self.mode == "positive_only":
            return positive
        spread = largest - gamma
        push = (self.beta if self.mode == "weighted" else 0.0) * (losses - gamma)
        return np.where(candidates, push / spread if spread > 0 else 0.0, positive)
