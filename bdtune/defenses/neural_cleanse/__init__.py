"""Neural Cleanse: a trigger is inverted for every class; one that is far too small betrays a backdoor.

Source: "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (Wang et al., IEEE
S&P 2019), with the authors' released code for the cost schedule and the early stop.

Departures: classes are inverted together, images of the class itself are left out, and an epoch of the
schedule is a pass over the clean set, where the code has 1000 images. A trigger is kept if it works, and is
the smallest, as it is after its epoch's last step, where the code takes means over the epoch: under a high
cost that step may have broken it. Classes whose trigger never worked are left out of the median. The code of
the repair was not released: rate, batch and optimiser are those of other toolboxes. The index is positive for
small norms and negative for large ones.

What to expect: the rule asks whether the smallest of K norms is an outlier, so false alarms grow with K: of
clean models whose norms are normal a threshold of 2 flags a third at K = 10, and nearly all at K = 200;
`false_alarms` sets the threshold by their simulated share. The larger the smallest mask that does a trigger's
work, the smaller the index. Without a flagged class the classifier is the undefended one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bdtune.defending.clean_set import clean_images
from bdtune.defenses.neural_cleanse import report
from bdtune.defenses.neural_cleanse.inversion import Inversion
from bdtune.defenses.neural_cleanse.outliers import (
    Known,
    Median,
    Outliers,
    Patch,
    Selected,
    Side,
    Unreached,
)
from bdtune.defenses.neural_cleanse.repair import Activations, Left, Prune, Unlearn
from bdtune.effects import OnlyIf
from bdtune.engine.node import Node
from bdtune.errors import Problem
from bdtune.plugins.defense import Defense
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from matplotlib.figure import Figure

    from bdtune.engine.input_source import Source
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs, Offer


OTHERS: dict[str, Any] = {"images": "all", "start_cost": "initial"}
"""What the code of all other toolboxes does differently."""
PATIENT: dict[str, Any] = {
    "cost_multiplier": 1.5,
    "patience": 10,
    "stop_threshold": 0.99,
    "stop_patience": 20,
}
"""Defaults of the released code's class, which its example does not use."""


class NeuralCleanse(Defense):
    """Trigger inversion, an outlier test, and the repair of the classifier."""

    version: ClassVar[int] = 2  # 1 gave no verdict on the model, and did not compare triggers
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "neural_cleanse/gtsrb": {"inversion": {"images": "all", "epochs": 1000}},
        "backdoorbench/nc": {
            "inversion": {**OTHERS, "start": "ones", "batch_size": 256, "success_threshold": 0.98},
            "unlearn": {"epochs": 100, "batch_size": 256},
        },
        "toolbox/nc": {"inversion": {**OTHERS, **PATIENT, "start": "normal", "epochs": 10}},
        "art/nc": {
            "inversion": {
                **OTHERS,
                "norm": "l2",
                "cost_multiplier": 1.5,
                "stop_threshold": 0.99,
                "stop_patience": 10,
                "epochs": 1000,
            },
        },
    }
    evidence: ClassVar[tuple[str, ...]] = ("inversion", "outliers", "left")
    pictured: ClassVar[tuple[str, ...]] = ("inversion", "outliers")
    examples: ClassVar[bool] = True

    train: Supervised = Supervised()
    """Training of the classifier that the defense starts from, if the attacker hands over none."""
    inversion: Inversion = Inversion()
    """Inversion of one trigger per class, on the clean images."""
    threshold: Annotated[float, OnlyIf(false_alarms=None)] = Field(2.0, ge=0)
    """Anomaly index above which a class is flagged."""
    false_alarms: float | None = Field(None, gt=0, lt=1)
    """Share of clean models that may be flagged: sets the threshold by simulated normal norms."""
    median: Median = "mean"
    """Of an even number of classes: the mean of the middle two (numpy), or the lower one (torch)."""
    side: Side = "small"
    """small: only small masks are outliers; both: large ones too."""
    unreached: Unreached = "leave_out"
    """Classes whose trigger never worked: left out of the test, or tested by their last mask."""
    repair: Literal["unlearn", "prune", "none"] = "unlearn"
    """none: a detector alone, the classifier is the undefended one."""
    unlearn: Annotated[Unlearn, OnlyIf(repair="unlearn")] = Unlearn()
    """Training on clean images, some with the flagged classes' triggers."""
    trigger: Annotated[Literal["reversed", "none"], OnlyIf(repair="unlearn")] = "reversed"
    """none: unlearning sees clean images alone, whatever is flagged (a control)."""
    oracle_trigger: Annotated[bool, OnlyIf(repair="unlearn")] = False
    """Control only: whether the attack's own trigger, `oracle_patch`, is unlearned, whatever is flagged."""
    oracle_patch: Annotated[Patch, OnlyIf(repair="unlearn"), OnlyIf(oracle_trigger=True)] = Patch()
    """The attack's own trigger."""
    prune: Annotated[Prune, OnlyIf(repair="prune")] = Prune()
    """Pruning of the features that the flagged classes' triggers drive."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.oracle_trigger and self.trigger == "none":
            raise ValueError("oracle_trigger and trigger none exclude each other: leave one of them out")
        return self

    def check(self, num_classes: int) -> list[Problem]:
        found = []
        if num_classes < 3:
            expected = "expected a data set of at least 3 classes, as outliers among them are sought"
            found.append(Problem("", expected, str(num_classes)))
        if self.oracle_trigger and self.oracle_patch.target >= num_classes:
            expected, got = f"expected a class from 0 to {num_classes - 1}", str(self.oracle_patch.target)
            found.append(Problem("oracle_patch.target", expected, got))
        return found

    def check_offer(self, offer: Offer) -> list[Problem]:
        expected = "expected images known to be clean, on which neural_cleanse inverts triggers"
        return offer.lacks_clean(expected, "Set clean to a share, such as 0.05")

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        undefended = given.undefended(self.train)
        seen: dict[str, Node | Source] = {"data": clean_images(given), "model": given.model}
        inversion = given.node(self.inversion, **seen, classifier=undefended)
        outliers = given.node(self.to(Outliers), inversion=inversion)
        before = {name: node for name, node in undefended.inputs.items() if isinstance(node, Node)}
        chain = {**before, "undefended": undefended, "inversion": inversion, "outliers": outliers}
        if self.repair == "none":
            return {**chain, "classifier": undefended}
        chain["trigger"] = trigger = self._trigger(given, inversion, outliers)
        if self.repair == "prune":
            active = given.node(Activations(), **seen, classifier=undefended, trigger=trigger)
            chain["activations"] = active
            last = given.node(self.prune, classifier=undefended, activations=active, trigger=trigger)
        else:
            last = self._unlearned(given, {**seen, "init": undefended}, trigger)
        chain["left"] = given.node(Left(), **seen, classifier=last, trigger=trigger)
        return {**chain, "classifier": last}

    def _trigger(self, given: DefenseInputs, inversion: Node, outliers: Node) -> Node:
        if self.repair == "unlearn" and self.oracle_trigger:
            return given.node(Known(patch=self.oracle_patch), inversion=inversion)
        return given.node(Selected(), inversion=inversion, outliers=outliers)

    def _unlearned(self, given: DefenseInputs, inputs: dict[str, Node | Source], trigger: Node) -> Node:
        if self.trigger == "none":
            return given.node(self.unlearn.model_copy(update={"share": 0.0}), **inputs)
        return given.node(self.unlearn, **inputs, trigger=trigger)

    def baseline_training(self) -> Supervised:
        return self.train

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth)
