"""The contract of defenses: a chain of stages from the poisoned training set to a classifier.

A defense file fills `build` (the chain), `baseline_training` and, where it has something to report,
`diagnose` and `figure`. A chain is built from `DefenseInputs` alone, which holds no truth: which samples
are poisoned, true labels and the target class reach `diagnose` and `figure` only; those feed no training.
In a trial the data are handles, which `bdtune.trials.chain` replaces once it has seen that the chain reads
nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import SerializeAsAny, SkipValidation

from bdtune.engine.input_source import PluginSource, Source
from bdtune.engine.node import Node
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import Problem
from bdtune.metrics import defined
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.registry import Plugin

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from matplotlib.figure import Figure

    from bdtune.plugins.data import TriggerExamples, Truth
    from bdtune.plugins.model import Model
    from bdtune.training.supervised import Supervised


@dataclass(frozen=True)
class DefenseInputs:
    """All that a defense gets: the poisoned training set, the network to train, and where to compute."""

    fit: Source  # loads an ImageSet: images and observed labels; in a trial a handle
    labels: Source  # loads a LabelSet: those observed labels, without reading an image; in a trial a handle
    model: Source  # loads a Model
    seed: int = 0  # of nodes outside of a trial; in one 0 until the graph is built, as `seed` may draw poison
    numerics: Numerics = field(default_factory=Numerics)
    replicate: int = 0
    backdoored: Node | None = None  # stands for the classifier that the attacker hands over, if any
    clean: Source | None = None  # loads an ImageSet: images known to be clean, if the trial has any
    clean_labels: Source | None = None  # loads a LabelSet: their labels, without reading an image

    def node(self, stage: Stage, **inputs: Node | Source) -> Node:
        """Return a node of the chain: the stage with its inputs, on the trial's device and precision."""
        return Node(stage, inputs, self.seed, self.numerics, self.replicate)

    def network(self, model: Model) -> Source:
        """Return another network than the trial's: one that the defense trains for its own use."""
        return PluginSource(plugin=model)

    def undefended(self, train: Supervised) -> Node:
        """Return the classifier that a post-training defense starts from: the attacker's, if handed over.

        Else it is trained by `train` on all samples of the poisoned set, as the baseline is.
        """
        if self.backdoored is not None:
            return self.backdoored
        subset = self.node(AllSamples(), data=self.labels)
        return self.node(train, data=self.fit, subset=subset, model=self.model)


@dataclass(frozen=True)
class Offer:
    """What a trial gives its defense, as far as it is known before anything is computed."""

    num_classes: int
    model: Model  # the trial's network
    holdout: float  # fraction held out of the poisoned training set, with observed labels
    backdoored: bool  # whether the attacker hands over a trained classifier
    clean: bool = False  # whether there are images that are known to be clean
    clean_images: int | None = None  # how many, where the data set is at hand

    def lacks_clean(self, expected: str, hint: str) -> list[Problem]:
        """Return the problem of a trial without images that are known to be clean; none where it has some."""
        return [] if self.clean else [Problem("clean", expected, "none", hint=hint)]


class Defense(Plugin):
    """A defense by name, with its knobs. Constructing one and building its chain load no torch."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Papers' settings: "paper/method" -> knobs."""
    evidence: ClassVar[tuple[str, ...]] = ()
    """Names of the chain's nodes that `diagnose` reads, beside the truth."""
    pictured: ClassVar[tuple[str, ...] | None] = None
    """Names of those that `figure` reads, where they are others: equal ones have one picture."""
    examples: ClassVar[bool] = False
    """Whether `diagnose` compares with the attack's trigger: the truth then has `examples`."""
    judged: ClassVar[tuple[str, ...]] = ("classifier",)
    """Names of the chain's nodes whose epochs a scheduler may judge, in the order in which they run.

    A training belongs here only if nothing of another kind changes the classifier after it: a classifier that
    has yet to unlearn its backdoor says nothing of the one that the defense ends in.
    """

    @abstractmethod
    def build(self, given: DefenseInputs) -> dict[str, Node]:
        """Return the chain's nodes by name; "classifier" gives the defended classifier."""

    @abstractmethod
    def baseline_training(self) -> Supervised:
        """Return the training of the baseline: the same recipe and as many epochs, on all samples.

        The epochs are those that the classifier's own weights are trained on all or nearly all samples: a
        defense that goes on training the same weights returns the sum. A training on few of them (unlearning,
        tuning on what is relabelled), marked `few_samples`, does not count, nor does another network's.
        """

    def check(self, num_classes: int) -> list[Problem]:
        """Return what does not fit a data set of so many classes; paths are relative to the defense."""
        return []

    def check_offer(self, offer: Offer) -> list[Problem]:
        """Return what the defense needs and the trial does not give; paths are relative to the trial."""
        return []

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        """Return what the defense got right and wrong, by metric name; `artefacts` holds the evidence.

        A value that is not defined (no poison, no target class) is left out or NaN.
        """
        return {}

    def suspected(self, artefacts: Mapping[str, Artefact]) -> np.ndarray | None:
        """Return the training rows, int64 positions, taken for poison; `artefacts` holds the evidence.

        None: those that the classifier was not trained on with their observed label. A defense overrides this
        if it leaves out rows for other reasons, or trains on those that it suspects.
        """
        return None

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure | None:
        """Return a picture of what the defense saw, or None; `artefacts` holds what is `pictured`."""
        return None

    @classmethod
    def pictured_nodes(cls) -> tuple[str, ...]:
        """Return the names of the chain's nodes that `figure` reads."""
        return cls.evidence if cls.pictured is None else cls.pictured


class Diagnose(Stage):
    """Compare what a defense decided with the truth.

    Inputs: the defense's evidence by name; `truth`; `examples` of the trigger, if it asks for them. Result:
    no arrays; info holds the metrics under the defense's name, as `gssd/detected_target`. Nothing that a
    defense trains on reads it.
    """

    name: ClassVar[str] = "diagnose"
    kind: ClassVar[Kind] = "derive"

    defense: SerializeAsAny[SkipValidation[Defense]]
    """The defense that is judged."""

    def run(
        self, ctx: Context, *, truth: Truth, examples: TriggerExamples | None = None, **evidence: Artefact
    ) -> Artefact:
        found = defined(self.defense.diagnose(evidence, replace(truth, examples=examples)))
        prefix = self.defense.plugin_name()
        return Artefact(info={f"{prefix}/{name}": value for name, value in found.items()})


def diagnosis(
    stage: Diagnose, chain: Mapping[str, Node], truth: Source, examples: Source | None = None
) -> Node | None:
    """Return the node that judges a chain, or None when the defense has nothing to be judged by."""
    defense = stage.defense
    inputs: dict[str, Node | Source] = {name: chain[name] for name in defense.evidence if name in chain}
    if not inputs:
        return None
    inputs["truth"] = truth
    if defense.examples and examples is not None:
        inputs["examples"] = examples
    return Node(stage, inputs, chain["classifier"].master_seed)
