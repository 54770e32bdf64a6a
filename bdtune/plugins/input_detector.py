"""The contract of defenses that judge inputs one by one, once the classifier is in use.

A detector scores an image without its label; a larger score is more suspicious. It sets its threshold on
images that are known to be clean; test images are scored by the same node afterwards, and nothing reads those
scores but `Detection`.

Shape letters: n images that are scored, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdtune.detection import auroc, counts, flags, rates, tpr_at
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.plugins.defense import Defense

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.input_source import Source
    from bdtune.engine.node import Node
    from bdtune.errors import Problem
    from bdtune.plugins.data import GoalSet, LabelSet, Truth
    from bdtune.plugins.defense import DefenseInputs, Offer

THRESHOLD, DETECTION = "threshold", "detection"
"""Names of nodes: what the chain sets, and what the trial makes of it."""
FALSE_ALARMS = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_5": 0.05}


class InputDetector(Defense):
    """A defense that rejects inputs; its classifier is the one that it guards.

    Its chain has a node "threshold" (array threshold float64 [1]); inputs with a larger score are rejected.
    """

    evidence: ClassVar[tuple[str, ...]] = (DETECTION,)

    @abstractmethod
    def scores(self, given: DefenseInputs, chain: Mapping[str, Node], images: Source) -> Node:
        """Return the node that scores images, an ImageSet of which no stage may read the labels.

        Its arrays: ids int64 [n], the images that were scored; scores float64 [n]; predicted int64 [n], the
        classes that the classifier gives them. `chain` is what `build` returned; `build` scores its clean
        images by the same stages.
        """

    def check_offer(self, offer: Offer) -> list[Problem]:
        name = self.plugin_name()
        expected = f"expected images that are known to be clean, as '{name}' sets its threshold on them"
        return offer.lacks_clean(expected, "Set clean: 0.05, a share of the training set")

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return dict(artefacts[DETECTION].info)


class Detection(Stage):
    """Compare what a detector says of test images with the truth.

    Inputs: threshold (threshold float64 [1]), clean and triggered (ids, scores, predicted), clean_labels and
    triggered_labels (true classes, and those that the attacker wants). Arrays: clean and triggered float64
    [n], the scores, triggered ones of other classes than the wanted one alone; threshold float64 [1]. Info:
    frr, the share of clean inputs that are rejected; far, of triggered ones of other classes that are
    accepted; auroc; f1; the true positive rate at the false positive rates 1 and 5 %; acc and asr of what is
    accepted, of all; the same area restricted to inputs that matter (clean ones classified correctly,
    triggered ones as the attacker wants), and the share of inputs that are.
    Source: STRIP (Gao et al., 2019) for frr and far; the restriction is BackdoorBox's.
    """

    name: ClassVar[str] = "detection"
    kind: ClassVar[Kind] = "derive"

    def run(
        self,
        ctx: Context,
        *,
        threshold: Artefact,
        clean: Artefact,
        clean_labels: LabelSet,
        triggered: Artefact | None = None,
        triggered_labels: GoalSet | None = None,
    ) -> Artefact:
        limit = threshold.arrays["threshold"]
        ids, scores, predicted = (clean.arrays[name] for name in ("ids", "scores", "predicted"))
        right = predicted == clean_labels.labels[ids]
        rejected = flags(scores, limit[0])
        arrays = {"clean": scores, "threshold": limit}
        found = {"frr": float(rejected.mean()), "accepted_acc": float((right & ~rejected).mean())}
        if triggered is not None and triggered_labels is not None:
            ids = triggered.arrays["ids"]
            other = triggered_labels.labels[ids] != triggered_labels.goals[ids]
            arrays["triggered"] = triggered.arrays["scores"][other]
            fooled = (triggered.arrays["predicted"] == triggered_labels.goals[ids])[other]
            found |= _compared(scores, arrays["triggered"], right, fooled, float(limit[0]))
        return Artefact(arrays, {name: value for name, value in found.items() if not np.isnan(value)})


def _compared(
    clean: np.ndarray, triggered: np.ndarray, right: np.ndarray, fooled: np.ndarray, threshold: float
) -> dict[str, float]:
    """Return what needs both kinds; `right`: classified correctly, `fooled`: as the attacker wants."""
    if not len(triggered):
        return {}
    scores = np.concatenate([clean, triggered])
    truth = np.repeat([False, True], [len(clean), len(triggered)])
    matters = np.concatenate([right, fooled])
    flagged = flags(scores, threshold)
    number = counts(flagged, truth)
    missed = ~flagged[truth]
    return {
        "far": number["fn"] / len(triggered),
        "f1": rates(flagged, truth)["f1"],
        "auroc": auroc(scores, truth),
        **{name: tpr_at(scores, truth, rate) for name, rate in FALSE_ALARMS.items()},
        "accepted_asr": float((missed & fooled).mean()),
        "restricted_auroc": auroc(scores[matters], truth[matters]),
        "restricted_share": float(matters.mean()),
    }
