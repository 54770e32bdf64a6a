"""D-ST's derived stages: which samples are clean, uncertain or poison, and parts of them. numpy only.

Source: "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (Chen et al., NeurIPS
2022), with the thresholds of the authors' released code in `ties: all`. Knobs without defaults are handed
down from the defense, where their defaults and ranges are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from bdtune.defending.isolation import count_of
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import Diverged

if TYPE_CHECKING:
    from bdtune.plugins.data import LabelSet

CLEAN, UNCERTAIN, POISON = 0, 1, 2
"""Flags of a split."""

Ties = Literal["strict", "all"]


def flagged(fct: np.ndarray, alpha_c: float, alpha_p: float, ties: Ties) -> np.ndarray:
    """Return flags int64 [N] of FCT [N]: the lowest are clean, the highest poison, the others uncertain.

    strict: floor(alpha N) samples each, ties by id. all: the code's thresholds, FCT up to the value of rank
    floor(alpha_c N), counted from 0, and from the value of rank N - floor(alpha_p N); clean comes first.
    """
    count, order = len(fct), np.argsort(fct, kind="stable")
    clean, poison = count_of(alpha_c, count), count_of(alpha_p, count)
    flags = np.full(count, UNCERTAIN, np.int64)
    if ties == "strict":
        flags[order[count - poison :]] = POISON
        flags[order[:clean]] = CLEAN
        return flags
    ranked = fct[order]
    if poison:
        flags[fct >= ranked[count - poison]] = POISON
    flags[fct <= ranked[min(clean, count - 1)]] = CLEAN
    return flags


class Split(Stage):
    """Flag samples by their FCT.

    Inputs: fct (fct float64 [N]). Arrays: flags int64 [N]: 0 clean, 1 uncertain, 2 poison; gamma_c, gamma_p
    float64 [1], the highest FCT of clean and the lowest of poison, inf if there is none.
    Raises `Diverged` when no sample is clean, or when all clean ones have FCT 0: then the features have
    collapsed, and say nothing.
    """

    name: ClassVar[str] = "dst_split"
    kind: ClassVar[Kind] = "derive"

    alpha_c: float
    """Fraction of samples taken as clean."""
    alpha_p: float
    """Fraction of samples taken as poison."""
    ties: Ties
    """Whether equal FCTs are parted by id or stay together."""

    def run(self, ctx: Context, *, fct: Artefact) -> Artefact:
        values = fct.arrays["fct"]
        flags = flagged(values, self.alpha_c, self.alpha_p, self.ties)
        clean, poison = values[flags == CLEAN], values[flags == POISON]
        if not len(clean):
            raise Diverged(
                f"{self.name}: alpha_c {self.alpha_c:g} of {len(values)} samples is none; raise it"
            )
        if not clean.max() > 0:
            zero = int(np.count_nonzero(values == 0))
            raise Diverged(
                f"{self.name}: the features collapsed: FCT is 0 for {zero} of {len(values)} samples, all "
                "that are taken as clean among them; lower features.epochs or features.lr"
            )
        gamma_p = poison.min(initial=np.inf)
        gammas = {"gamma_c": np.array([clean.max()]), "gamma_p": np.array([gamma_p])}
        return Artefact({"flags": flags, **gammas})


class Part(Stage):
    """Take the samples of some flags.

    Inputs: split (flags int64 [N]), data (LabelSet). Arrays: ids int64 [n] in rising order, labels int64 [n],
    the observed ones.
    """

    name: ClassVar[str] = "dst_part"
    kind: ClassVar[Kind] = "derive"

    flags: tuple[int, ...]
    """Flags of the samples that are taken."""

    def run(self, ctx: Context, *, split: Artefact, data: LabelSet) -> Artefact:
        ids = np.flatnonzero(np.isin(split.arrays["flags"], self.flags)).astype(np.int64)
        return Artefact({"ids": ids, "labels": np.asarray(data.labels, np.int64)[ids]})
