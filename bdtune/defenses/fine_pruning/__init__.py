"""Fine-Pruning: channels that clean images leave dormant are pruned, then the classifier is tuned.

Source: "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks" (Liu, Dolan-Gavitt and
Garg, RAID 2018), arXiv:1805.12185, section 3; BackdoorBench (Wu et al., 2022), defense fp.

Departures: the number of pruned channels is chosen on clean images that are not tuned on (`validation`),
where the paper's tolerance has no number and BackdoorBench reads test accuracy, prunes one channel less than
it counts and includes the one that broke the tolerance. Ranked are absolute activations, as features of a
network without a last ReLU have signs (`absolute`). A channel is pruned by zeroing the weights that read it,
and stays so through the tuning, where plain zeroing lets it grow back (`tune.keep_mask`). The paper prunes
outputs of the last convolution; in a residual network such a channel gets the shortcut besides, so that
`features` are the sums after the last ReLU, and `inner` the channels inside the last block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from bdtune.defending.clean_set import clean_images, clean_parts, lacks_clean_set
from bdtune.defenses.fine_pruning import report
from bdtune.defenses.fine_pruning.stages import Choose, Curve, PrunedTune, Rank, Shown
from bdtune.effects import OnlyIf
from bdtune.errors import Problem
from bdtune.knobs import Rate
from bdtune.networks.residual import Residual, ResidualTeacher
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs, Offer


class FinePruning(Defense):
    """Pruning of dormant channels, and fine-tuning on clean images."""

    evidence: ClassVar[tuple[str, ...]] = ("ranking", "curve", "mask", "shown")

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "backdoorbench/fp": {
            "tolerance": 0.1, "relative": True, "absolute": False, "tune": {"epochs": 100},
        },
        "backdoortoolbox/fp": {"rule": "ratio", "ratio": 0.95, "tune": {"epochs": 0}},
        "finepruning/pruning": {"tune": {"epochs": 0}},
    }  # fmt: skip

    train: Supervised = Supervised()
    """Training of the classifier that is pruned; without effect where the attacker hands over a model."""
    layer: Literal["features", "inner"] = "features"
    """features: what the head reads, the channels of the last group after its ReLU; inner: those between the
    two convolutions of the last residual block."""
    pooling: Literal["mean", "max"] = "mean"
    """What an image's activation of a channel is, over positions."""
    absolute: bool = True
    """Whether activations are ranked without their signs; without effect after a ReLU."""
    step: int = Field(1, ge=1)
    """Channels that are pruned from one point of the accuracy curve to the next."""
    rule: Literal["tolerance", "ratio"] = "tolerance"
    """tolerance: as many channels as accuracy allows; ratio: a fixed fraction."""
    tolerance: Annotated[Rate, OnlyIf(rule="tolerance")] = 0.04
    """Accuracy on the validation part that pruning may cost, before the tuning."""
    relative: Annotated[bool, OnlyIf(rule="tolerance")] = False
    """Whether the tolerance is a share of the accuracy before pruning."""
    ratio: Annotated[Rate, OnlyIf(rule="ratio")] = 0.8
    """Fraction of channels, the 48 of 60 of the paper's faces."""
    validation: float = Field(0.2, gt=0, lt=1)
    """Fraction of the clean images that accuracy is measured on; the others rank and are tuned on."""
    tune: PrunedTune = PrunedTune()
    """The tuning; 0 epochs: pruning alone."""

    def check_offer(self, offer: Offer) -> list[Problem]:
        problems = lacks_clean_set(offer, "fine_pruning")
        if self.layer == "inner" and not isinstance(offer.model, Residual | ResidualTeacher):
            expected = "expected layer 'features' for a network that is not residual"
            hint = "The inner channels are those of a residual network's last block"
            got = f"'inner' for '{offer.model.plugin_name()}'"
            problems += [Problem("defense.layer", expected, got, hint=hint)]
        return problems

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        clean, model, undefended = clean_images(given), given.model, given.undefended(self.train)
        parts = clean_parts(given, self.validation)
        network: dict[str, Any] = {"model": model, "classifier": undefended}
        rank = Rank(layer=self.layer, pooling=self.pooling, absolute=self.absolute)
        ranking = given.node(rank, data=clean, subset=parts["tuning"], **network)
        network["ranking"] = ranking
        measure = Curve(layer=self.layer, step=self.step)
        curve = given.node(measure, data=clean, subset=parts["validation"], **network)
        mask = given.node(self.to(Choose), ranking=ranking, curve=curve)
        shown = given.node(Shown(layer=self.layer), data=given.fit, **network)
        tuning = {"subset": parts["tuning"], "validation": parts["validation"], "init": undefended}
        tuned = given.node(self.tune, data=clean, model=model, mask=mask, **tuning)
        before = {"subset": given.node(AllSamples(), data=given.labels), "undefended": undefended}
        decided = {"ranking": ranking, "curve": curve, "mask": mask, "shown": shown}
        return {**before, **parts, **decided, "classifier": tuned}

    def baseline_training(self) -> Supervised:
        return self.train

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth)
