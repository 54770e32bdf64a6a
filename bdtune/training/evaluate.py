"""Evaluate: what a classifier does on clean, on triggered and on attacked test images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator

from bdtune.effects import ByContent, OnlyIf
from bdtune.engine.stage import Artefact, Context, Stage
from bdtune.errors import Problem, nearest
from bdtune.metrics import defined, tally
from bdtune.plugins.data import TriggeredSet
from bdtune.plugins.metric import METRICS, SELECT, SELECT_CLEAN, Metric
from bdtune.training.adversarial import PGD

if TYPE_CHECKING:
    from collections.abc import Collection

    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.metric import Images
    from bdtune.plugins.model import Model


def _further(name: str) -> str:
    """Check the name of a metric that is measured only where it is asked for."""
    if name not in METRICS.outside:
        expected = f"expected one of the metrics in BDTUNE_PLUGINS: {', '.join(METRICS.outside) or 'none'}"
        hint = "It is always measured" if name in METRICS.own else nearest(name, METRICS.outside)
        raise ValueError(Problem("", expected, f"'{name}'", hint=hint))
    METRICS.check(name)
    if METRICS.find(name).measured_on == "comparison":
        raise ValueError(Problem("", "expected a metric that is measured on images", f"'{name}'"))
    return name


def _entries(names: tuple[str, ...], _knob: str) -> list[dict[str, Any]]:
    """Return what enters a key: the metrics' names with their versions and the digests of their files."""
    return [METRICS.find(name).identity() for name in sorted(set(names))]


TALLIED: dict[Images, str] = {"select": SELECT, "select_clean": SELECT_CLEAN}
"""What is held out, with the names of its tallies."""
NO_GOAL = -1


class Evaluate(Stage):
    """Count how often a classifier is right, and how often the trigger wins.

    Everything is computed in float32, on every device: see `predict_logits`.
    Inputs: classifier (artefact with weights), model (Model), clean (ImageSet), and optionally triggered
    (TriggeredSet), cover (ImageSet: test images stamped as cover rows, true labels), select (ImageSet held
    out of the training set, observed labels), select_clean (ImageSet known to be clean) and
    select_clean_triggered (the same images under each generic trigger, true labels).
    Result: no arrays; info holds the entries of `bdtune.plugins.metric.METRICS` as far as there are images to
    count them on, n_clean, n_triggered, and a tally by class of what is held out. robust_acc, under an
    untargeted attack on the classifier itself, is A-ABL's "RA"; BackdoorBench's is `ra`.
    """

    name: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 3  # 2 had no tallies by class; 1 computed in the precision of the training
    kind: ClassVar = "train"

    robust: Literal["none", "pgd"] = "none"
    """pgd: count robust_acc too; costs `pgd.steps` passes over the clean test images, forward and back."""
    pgd: Annotated[PGD, OnlyIf(robust="pgd")] = PGD()
    """The attack of robust_acc."""
    metrics: Annotated[tuple[Annotated[str, AfterValidator(_further)], ...], ByContent(_entries)] = ()
    """Further metrics, from the folders metrics/ of BDTUNE_PLUGINS."""

    def passes_per_epoch(self) -> float:
        return 1.0 if self.robust == "none" else 1.0 + 3 * self.pgd.steps  # there and back takes three times

    @property
    def measured(self) -> list[Metric]:
        """What it can measure: the package's metrics, and those that it names."""
        return [*METRICS.own.values(), *(METRICS.find(name) for name in dict.fromkeys(self.metrics))]

    def for_ticks(self, wanted: Collection[str]) -> Evaluate:
        """Return the evaluation without its costly attack, unless a wanted metric is measured under it."""
        costly = {metric.name for metric in self.measured if metric.measured_on == "attacked"}
        return self if costly & set(wanted) else self.model_copy(update={"robust": "none"})

    def run(
        self,
        ctx: Context,
        *,
        clean: ImageSet,
        model: Model,
        classifier: Artefact,
        triggered: TriggeredSet | None = None,
        cover: ImageSet | None = None,
        select: ImageSet | None = None,
        select_clean: ImageSet | None = None,
        select_clean_triggered: ImageSet | None = None,
    ) -> Artefact:
        from bdtune.training.predict import predict_logits, trained_network

        network = trained_network(model, clean, classifier, ctx.numerics)
        given: dict[Images, ImageSet | None] = {"clean": clean, "triggered": triggered, "cover": cover}
        given |= {"select": select, "select_clean": select_clean}
        given |= {"select_clean_triggered": select_clean_triggered}
        found: dict[str, float] = {}
        tallies: dict[str, list[list[int]]] = {}

        def measure(name: Images, data: ImageSet, predicted: np.ndarray) -> None:
            goals, whole = np.full(len(data), NO_GOAL), True
            if isinstance(data, TriggeredSet):
                goals, whole = data.goals, data.complete
            for metric in self.measured:
                if metric.measured_on == name and (whole or not metric.whole):
                    found[metric.name] = metric.function(predicted, data.labels, goals)

        for name, data in given.items():
            if data is not None:
                predicted = predict_logits(network, data, ctx.numerics).argmax(1)
                measure(name, data, predicted)
                if name in TALLIED:
                    tallies[TALLIED[name]] = tally(predicted, data.labels, data.num_classes)
        if self.robust == "pgd":
            from bdtune.training.pgd import robust_predictions

            measure("attacked", clean, robust_predictions(network, clean, self.pgd, ctx.seed, ctx.numerics))
        counts = {"n_clean": len(clean), "n_triggered": 0 if triggered is None else len(triggered)}
        return Artefact(info={**defined(found), **counts, **tallies})
