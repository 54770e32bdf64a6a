"""From a trial to its graph of stages: the defense's chain, what judges it, and its undefended twin."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from bdtune import registry
from bdtune.attacks._sources import CleanTest, FitSet, SelectSet, TriggeredTest, TruthSource
from bdtune.defenses import _base as defenses
from bdtune.engine.stage import Given, Node
from bdtune.training.evaluate import Evaluate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.config.trial import TrialSpec
    from bdtune.engine.stage import Source

UNDEFENDED = "none"
"""The defense that is none: what every other one is compared with."""


@dataclass(frozen=True)
class TrialGraph:
    """The nodes of one trial; trials that share the beginning of a chain share recipes up to there."""

    evaluate: Node
    """Info: acc, asr, ... of the final classifier."""
    diagnose: Node | None
    """Info: what the defense got right, under its name; None when it has nothing to be judged by."""
    chain: Mapping[str, Node] = field(default_factory=dict)
    """The defense's nodes by its own names; "classifier" is what it ends in."""
    reference: TrialSpec | None = None
    """The undefended twin; None when the trial is undefended itself."""

    @property
    def goals(self) -> list[Node]:
        """The nodes whose results the trial reports."""
        return [self.evaluate] if self.diagnose is None else [self.evaluate, self.diagnose]

    @cached_property
    def stages(self) -> dict[str, Node]:
        """All nodes of the trial by recipe, parents first."""
        return {node.recipe: node for goal in self.goals for node in goal.walk()}


def trial_graph(spec: TrialSpec) -> TrialGraph:
    """Return the graph of a trial; reads the data set's files for their fingerprint, but no image."""
    attacked = {
        "dataset": spec.dataset,
        "root": spec.data_root,
        "attack": spec.attack,
        "seed": spec.seed,
        "numerics": spec.numerics,
    }
    model = Given(plugin=spec.model)
    fit = FitSet(**attacked, holdout=spec.holdout)
    given = defenses.Given(fit=fit, model=model, seed=spec.seed, numerics=spec.numerics)
    chain = spec.defense.build(given)
    inputs: dict[str, Node | Source] = {
        "classifier": chain["classifier"],
        "model": model,
        "clean": CleanTest(dataset=spec.dataset, root=spec.data_root),
    }
    if spec.attack is not None:
        inputs["triggered"] = TriggeredTest(**attacked)
    if spec.holdout > 0:
        inputs["select"] = SelectSet(**attacked, holdout=spec.holdout)
    evaluate = Node(Evaluate(), inputs, spec.seed, spec.numerics)
    truth = TruthSource(**attacked, holdout=spec.holdout)
    return TrialGraph(evaluate, defenses.diagnosis(spec.defense, chain, truth), chain, undefended(spec))


def undefended(spec: TrialSpec) -> TrialSpec | None:
    """Return the trial's undefended twin: same data, attack, seed and training; None if it is its own."""
    if spec.defense.plugin_name() == UNDEFENDED:
        return None
    none = registry.load("defenses", UNDEFENDED)
    return spec.model_copy(update={"defense": none(train=spec.defense.reference())})
