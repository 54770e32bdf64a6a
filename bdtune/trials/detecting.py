"""The part of a trial's graph that shows test images to a defense that judges inputs."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from bdtune.engine.stage import Node
from bdtune.errors import Problem, UserError
from bdtune.plugins.handles import INPUTS
from bdtune.plugins.input_detector import THRESHOLD, Detection
from bdtune.poisoning.sources import CleanTestInputs, CleanTestLabels, TriggeredInputs, TriggeredLabels
from bdtune.trials.chain import bound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.stage import Source
    from bdtune.plugins.defense import DefenseInputs
    from bdtune.plugins.input_detector import InputDetector
    from bdtune.poisoning.sources import CleanTest, TriggeredTest
    from bdtune.trials.chain import Bindings

SCORED = "scored inputs"


class Shown(NamedTuple):
    """Test images without labels, and their labels without images."""

    images: Source
    labels: Source


@lru_cache(maxsize=256)
def shown(clean: CleanTest, triggered: TriggeredTest | None) -> dict[str, Shown]:
    """Return what a detector is shown and judged by; cached, as each source reads its fingerprint once."""
    found = {"clean": Shown(clean.read_as(CleanTestInputs), clean.read_as(CleanTestLabels))}
    if triggered is not None:
        both = triggered.read_as(TriggeredInputs), triggered.read_as(TriggeredLabels)
        found["triggered"] = Shown(*both)
    return found


def detection(
    defense: InputDetector,
    given: DefenseInputs,
    chain: Mapping[str, Node],
    bindings: Bindings,
    *,
    threshold: Node | None,
    tests: Mapping[str, Shown],
) -> Node:
    """Return the node that judges a detector by the scores it gives to test images.

    `given` and `chain` hold handles, as the defense built it; `threshold` is its node, bound. The handle of
    the test images is made here, so that nothing in the chain can read them; it is bound once for each kind
    of image.
    """
    name = defense.plugin_name()
    if threshold is None:
        expected = f"expected a node '{THRESHOLD}' in the chain of '{name}', which judges inputs"
        raise UserError(Problem("defense", expected, ", ".join(chain)))
    scored = {**chain, SCORED: defense.scores(given, chain, INPUTS)}

    def scores_of(images: Source) -> Node:
        return bound(name, scored, replace(bindings, sources={**bindings.sources, INPUTS: images}))[SCORED]

    inputs: dict[str, Node | Source] = {THRESHOLD: threshold}
    for kind, test in tests.items():
        inputs |= {kind: scores_of(test.images), f"{kind}_labels": test.labels}
    return Node(Detection(), inputs, bindings.seed, given.numerics)
