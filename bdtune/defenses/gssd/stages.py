"""GSSD's derived stages: which classes are poisoned, what is kept of them, what is relabelled. numpy only.

Shape letters: N samples, K classes. L float [N, K] holds log-densities in nats per dimension, q = exp(L).
Knobs without defaults are handed down from the defense, where their defaults and ranges are.

Source: "Backdoor Defense through Self-Supervised and Generative Learning" (Sabolić, Grubišić, Šegvić, 2024),
sections 3 and appendices E, K, L, with the official code's counts. All of it reads observed labels only.
Departures: a class without a flow (log-density -inf) is never detected and never a new label; ranks are tied
by sample id.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import UserError
from bdtune.knobs import Knobs, Rate

if TYPE_CHECKING:
    from collections.abc import Callable


class Verdict(IntEnum):
    """What the tests say of a class."""

    CLEAN = 0
    NON_DISRUPTIVE = 1  # triggered samples lie where their own class does
    DISRUPTIVE = 2  # triggered samples lie apart from every class


def best_foreign(L: np.ndarray, label: int) -> np.ndarray:
    """Return the highest log-density under any class but `label`, [N]; -inf when there is no other."""
    others = np.delete(L, label, axis=1)
    return others.max(1, initial=-np.inf)


def own_score(L: np.ndarray, label: int) -> np.ndarray:
    """Return s [N], the log-ratio of the density under `label` to the best foreign one (equation 6)."""
    return L[:, label] - best_foreign(L, label)


def foreign_densities(L: np.ndarray, labels: np.ndarray, label: int, trim: float) -> np.ndarray:
    """Return the best foreign density q of each of the class's samples, float64 [n].

    `trim` percent at each end are moved to the ends of what is left, so that one outlier cannot stretch it.
    """
    values = np.exp(best_foreign(L[labels == label].astype(np.float64), label))
    if trim > 0 and len(values):
        values = np.clip(values, *np.percentile(values, [trim, 100 - trim]))
    return values


def valley(counts: np.ndarray, edges: np.ndarray, lambda_: float) -> tuple[int, int]:
    """Return (m, A): the emptiest bin wholly left of lambda, the first on ties, and the mass left of it.

    (0, 0) when no bin lies wholly left of lambda.
    """
    last = int(np.count_nonzero(edges < lambda_)) - 1
    if last < 1:
        return 0, 0
    lowest = int(counts[:last].argmin())
    return lowest, int(counts[:lowest].sum())


def is_disruptive(counts: np.ndarray, edges: np.ndarray, beta_d: float, lambda_: float) -> bool:
    """Return whether the class has a mode of its own at low foreign density.

    More than beta_D of the class must lie left of the valley, and twice as much as lies in its lowest bin.
    """
    lowest, mass = valley(counts, edges, lambda_)
    return bool(lowest != 0 and mass > beta_d * counts.sum() and mass >= 2 * counts[lowest])


def foreign_energy(L: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return E float64 [K], the mean of -l_c over the samples not labelled c; inf where there are none."""
    classes = L.shape[1]
    energy = np.full(classes, np.inf)
    for label in range(classes):
        foreign = L[labels != label, label]
        if len(foreign):
            energy[label] = -foreign.mean(dtype=np.float64)
    return energy


class Tests(Knobs):
    """Knobs of the tests."""

    beta_nd: float = 0.6
    """A class whose mean -log p_c / d over foreign samples (E_c) is below is non-disruptively poisoned."""
    beta_d: Rate = 0.05
    """Fraction of a class in a mode of low foreign density above which it is disruptively poisoned."""
    lambda_: float = Field(0.75, gt=0, alias="lambda")
    """Density, exp(log p / d), left of which that mode's end is looked for."""
    bins: int = Field(30, ge=2)
    """Bins of the histogram of foreign densities."""
    trim: float = Field(0.0, ge=0, lt=50)
    """Percent clipped at each end of the histogram's range, against outliers; the paper clips nothing."""
    order: Literal["d_first", "nd_first"] = "d_first"
    """Which test goes first; a class gets one verdict."""


class ClassTests(Tests, Stage):
    """Test each class: disruptively poisoned, non-disruptively poisoned, or clean.

    Inputs: density (L, labels). Arrays: verdict uint8 [K] (see `Verdict`), energy float64 [K] (E_c, nats per
    dimension). Nothing in it depends on thresholds but the verdicts, so equal verdicts share what follows.
    Departure: `given` skips the tests and takes one class as non-disruptively poisoned (ablation J).
    """

    name: ClassVar[str] = "class_tests"
    kind: ClassVar[Kind] = "derive"

    given: int | None
    """Class taken as poisoned without a test."""

    def run(self, ctx: Context, *, density: Artefact) -> Artefact:
        L, labels = density.arrays["L"], density.arrays["labels"]
        energy = foreign_energy(L, labels)
        verdict = self._given(L.shape[1]) if self.given is not None else self._tested(L, labels, energy)
        return Artefact({"verdict": verdict, "energy": energy})

    def _given(self, classes: int) -> np.ndarray:
        assert self.given is not None
        if self.given >= classes:
            raise UserError(f"oracle_target: expected a class from 0 to {classes - 1}, got {self.given}")
        verdict = np.zeros(classes, np.uint8)
        verdict[self.given] = Verdict.NON_DISRUPTIVE
        return verdict

    def _tested(self, L: np.ndarray, labels: np.ndarray, energy: np.ndarray) -> np.ndarray:
        def non_disruptive(label: int) -> bool:
            return bool(energy[label] < self.beta_nd)

        def disruptive(label: int) -> bool:
            counts, edges = np.histogram(foreign_densities(L, labels, label, self.trim), self.bins)
            return is_disruptive(counts, edges, self.beta_d, self.lambda_)

        tests: list[tuple[Verdict, Callable[[int], bool]]] = [
            (Verdict.DISRUPTIVE, disruptive),
            (Verdict.NON_DISRUPTIVE, non_disruptive),
        ]
        if self.order == "nd_first":
            tests.reverse()
        verdict = np.zeros(L.shape[1], np.uint8)
        for label in range(L.shape[1]):
            if np.isneginf(L[:, label]).all():
                continue  # too few samples for a flow: nothing to test
            verdict[label] = next((kind for kind, test in tests if test(label)), Verdict.CLEAN)
        return verdict


def ranked(L: np.ndarray, labels: np.ndarray, label: int) -> np.ndarray:
    """Return the ids of a class by rising score s, ties by id."""
    ids = np.flatnonzero(labels == label)
    return ids[np.argsort(own_score(L[ids], label), kind="stable")]


class CleanSplit(Stage):
    """Keep clean classes whole, and of each detected class the part that is safest.

    Inputs: density (L, labels), class_tests (verdict). Arrays: ids int64 [n] in rising order, labels int64
    [n], the observed ones. Counts are cut as in the official code: of n samples by rising s, the
    non-disruptive rule keeps those from int((1 - alpha_C) n) on, the disruptive one the first int(alpha_C n).
    """

    name: ClassVar[str] = "split"
    kind: ClassVar[Kind] = "derive"

    alpha_c_nd: float
    """Fraction kept of a non-disruptively poisoned class."""
    alpha_c_d: float
    """Fraction kept of a disruptively poisoned class."""

    def run(self, ctx: Context, *, density: Artefact, class_tests: Artefact) -> Artefact:
        L, labels = density.arrays["L"], density.arrays["labels"]
        verdict = class_tests.arrays["verdict"]
        kept = verdict[labels] == Verdict.CLEAN
        for label in np.flatnonzero(verdict):
            order = ranked(L, labels, int(label))
            if verdict[label] == Verdict.NON_DISRUPTIVE:
                safe = order[int((1 - self.alpha_c_nd) * len(order)) :]
            else:
                safe = order[: int(self.alpha_c_d * len(order))]
            kept[safe] = True
        ids = np.flatnonzero(kept)
        return Artefact({"ids": ids, "labels": labels[ids].astype(np.int64)})


class Relabel(Stage):
    """Give the most suspicious samples of non-disruptively poisoned classes the label that fits them best.

    Inputs: density (L, labels), class_tests (verdict). Arrays: ids int64 [m] in rising order, labels int64
    [m]: the densest class but the observed one. Of n samples the int(alpha_P n) with the lowest s are taken.
    """

    name: ClassVar[str] = "relabel"
    kind: ClassVar[Kind] = "derive"

    alpha_p: float
    """Fraction relabelled of a non-disruptively poisoned class."""

    def run(self, ctx: Context, *, density: Artefact, class_tests: Artefact) -> Artefact:
        L, labels = density.arrays["L"], density.arrays["labels"]
        verdict = class_tests.arrays["verdict"]
        new = np.full(len(labels), -1, np.int64)
        for label in np.flatnonzero(verdict == Verdict.NON_DISRUPTIVE):
            order = ranked(L, labels, int(label))
            suspicious = order[: int(self.alpha_p * len(order))]
            foreign = L[suspicious].copy()
            foreign[:, label] = -np.inf
            new[suspicious] = foreign.argmax(1)
        ids = np.flatnonzero(new >= 0)
        return Artefact({"ids": ids, "labels": new[ids]})
