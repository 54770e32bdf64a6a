"""Activation Clustering: each class's activations are parted in two, and the small part may be poison.

Source: "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering" (Chen et al., SafeAI
2019), arXiv:1811.03728, section 4, and the authors' Adversarial Robustness Toolbox for the rules.

Departures: rows are grouped by observed label, where the paper takes predictions (`group_by`), and reduced
by PCA, where it takes ICA (`reduction`). Clusters are numbered by size: of equal ones the later one is the
smaller. Shares are compared unrounded. The distance rule measures in the features themselves, as components
of different classes have different axes. Training on what is kept starts from scratch, where the paper goes
on training. Classes with too few rows are left out.

What to expect: where poison is about half of its class, as with 10 % dirty labels on ten classes, both rules
of size are blind. Rule `smaller` removes up to half of every class, poisoned or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bdtune.defending.filtering import Control, Kept, RandomRemoval
from bdtune.defenses.activation_clustering import report
from bdtune.defenses.activation_clustering.clusters import Clustered, GroupBy, Groups, Reduced, Reduction
from bdtune.defenses.activation_clustering.verdicts import Reclassified, Relabelled, Rule, Suspects
from bdtune.knobs import Rate
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.losses import SampleLosses
from bdtune.training.penultimate import Penultimate, SeenLayer
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs

PAPER = {"group_by": "prediction", "reduction": "ica"}
"""How the paper makes groups and components."""
BENCH = {"epochs": 100, "batch_size": 256, "lr": 0.01, "schedule": "cosine"}
"""BackdoorBench's training on what is kept."""


class ActivationClustering(SeenLayer, Defense):
    """Filtering by clusters of activations, then training on what is kept."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "activation_clustering/paper": {**PAPER, "rule": "smaller", "exre": True},
        "art/activation_clustering": {"rule": "smaller"},
        "trojanzoo/activation_clustering": {**PAPER},
        "backdoorbench/activation_clustering": {"rule": "smaller", "retrain": BENCH},
        "toolbox/activation_clustering": {"rule": "relative_size"},
    }
    evidence: ClassVar[tuple[str, ...]] = ("groups", "reduced", "clustered", "removal")

    train: Supervised = Supervised()
    """Training of the classifier whose features are read, unless the attacker hands one over."""
    group_by: GroupBy = "label"
    """What the class of a row is: its observed label, or what the classifier predicts."""
    reduction: Reduction = "pca"
    """pca; ica: FastICA on the same components; none: the features themselves."""
    components: int = Field(10, ge=1)
    """Dimensions that features are reduced to; a class must have more rows."""
    clusters: int = Field(2, ge=2)
    """Clusters of each class."""
    restarts: int = Field(10, ge=1)
    """Starts of k-means, of which the best counts."""
    sampled: int = Field(2000, ge=2)
    """Rows of a class that its silhouette is taken of, at most."""
    rule: Rule = "silhouette"
    """Clusters suspected: smaller: the smallest; relative_size: small ones; silhouette: small ones of classes
    that fall into parts; distance: those nearer to another class."""
    size: Rate = 0.35
    """Rules relative_size and silhouette: share of its class below which a cluster is small."""
    silhouette: float = Field(0.1, ge=-1, le=1)
    """Rule silhouette: mean silhouette above which a class falls into parts."""
    exre: bool = False
    """Exclusionary reclassification: clear suspected clusters that a classifier trained without them takes
    for their own class."""
    exre_ratio: float = Field(1.0, ge=0)
    """A cluster is cleared by more rows predicted as its class, for each predicted as the next class."""
    repair: Literal["remove", "relabel"] = "remove"
    """relabel: rows get the class that `exre` takes for theirs."""
    control: Control = "none"
    """random: as many rows of each class are removed, but at random."""
    retrain: Supervised = Supervised()
    """Training of the classifier on what is kept, and of the one that `exre` asks."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.repair == "relabel" and not self.exre:
            raise ValueError("repair: relabel needs exre: true, which says what class rows come from")
        if self.repair == "relabel" and self.control == "random":
            raise ValueError("control: random removes rows; set repair: remove")
        return self

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        chain = self._clustered(given)
        parts = {name: chain[name] for name in ("clustered", "groups")}
        rule = Suspects(rule=self.rule, size=self.size, silhouette=self.silhouette)
        removal = given.node(rule, **parts)
        if self.exre:
            chain["suspects"] = removal
            removal = self._reclassified(given, chain, parts)
        if self.control == "random":
            chain["verdict"] = removal
            removal = given.node(RandomRemoval(), suspects=removal, data=given.labels)
        kept = Relabelled() if self.repair == "relabel" else Kept()
        chain |= {"removal": removal, "kept": given.node(kept, removal=removal, data=given.labels)}
        return {**chain, "classifier": self._retrained(given, chain["kept"])}

    def _clustered(self, given: DefenseInputs) -> dict[str, Node]:
        labels, undefended = given.labels, given.undefended(self.train)
        seen = given.node(self.to(Penultimate), data=given.fit, model=given.model, classifier=undefended)
        groups = given.node(Groups(by=self.group_by), penultimate=seen, data=labels)
        reduction = Reduced(method=self.reduction, components=self.components)
        reduced = given.node(reduction, penultimate=seen, groups=groups)
        means = Clustered(clusters=self.clusters, restarts=self.restarts, sampled=self.sampled)
        clustered = given.node(means, reduced=reduced, groups=groups, penultimate=seen)
        return {
            "subset": given.node(AllSamples(), data=labels),
            "undefended": undefended,
            "penultimate": seen,
            "groups": groups,
            "reduced": reduced,
            "clustered": clustered,
        }

    def _reclassified(self, given: DefenseInputs, chain: dict[str, Node], parts: dict[str, Node]) -> Node:
        rest = given.node(Kept(), removal=chain["suspects"], data=given.labels)
        without = self._retrained(given, rest)
        losses = given.node(SampleLosses(), data=given.fit, model=given.model, classifier=without)
        chain |= {"rest": rest, "without": without, "reclassified": losses}
        stage = Reclassified(threshold=self.exre_ratio)
        return given.node(stage, suspects=chain["suspects"], losses=losses, **parts)

    def _retrained(self, given: DefenseInputs, subset: Node) -> Node:
        return given.node(self.retrain, data=given.fit, subset=subset, model=given.model)

    def baseline_training(self) -> Supervised:
        return self.retrain

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth, self.size, self.silhouette)
