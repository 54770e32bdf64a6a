"""The part of a trial's graph that shows test images to a defense that judges inputs."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from bdtune.engine.node import Node
from bdtune.errors import Problem, UserError
from bdtune.plugins.handles import INPUTS
from bdtune.plugins.input_detector import THRESHOLD, Detection
from bdtune.poisoning.clean_sources import CleanTestInputs, CleanTestLabels
from bdtune.poisoning.triggered_sources import TriggeredInputs, TriggeredLabels
from bdtune.trials.chain import Binder, Chains

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.input_source import Source
    from bdtune.engine.numerics import Numerics
    from bdtune.plugins.defense import DefenseInputs
    from bdtune.plugins.input_detector import InputDetector
    from bdtune.poisoning.clean_sources import CleanTest
    from bdtune.poisoning.triggered_sources import TriggeredTest
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


def scoring(defense: InputDetector, given: DefenseInputs, chain: Mapping[str, Node], chains: Chains) -> Node:
    """Return the checked node that scores images, with the handle of test images in it.

    `chain` is what the defense built. The handle is made here, so that nothing in the chain can read it.
    Raises `UserError` for a chain without a threshold.
    """
    name = defense.plugin_name()
    if THRESHOLD not in chain:
        expected = f"expected a node '{THRESHOLD}' in the chain of '{name}', which judges inputs"
        raise UserError(Problem("defense", expected, ", ".join(chain)))
    shown_too = Chains({*chains.given, INPUTS}, handed_over=chains.handed_over)
    return shown_too.checked(name, {**chain, SCORED: defense.scores(given, chain, INPUTS)})[SCORED]


def detection(
    scores: Node, threshold: Node, bindings: Bindings, tests: Mapping[str, Shown], numerics: Numerics
) -> Node:
    """Return the node that judges a detector by the scores it gives to each kind of test images.

    `scores` is what `scoring` returned; `threshold` is bound.
    """
    inputs: dict[str, Node | Source] = {THRESHOLD: threshold}
    for kind, test in tests.items():
        own = replace(bindings, sources={**bindings.sources, INPUTS: test.images})
        inputs |= {kind: Binder(own).node(scores), f"{kind}_labels": test.labels}
    return Node(Detection(), inputs, bindings.seed, numerics)
