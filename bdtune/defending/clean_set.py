"""The clean set of a post-training defense: that the trial has one, and its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.clean_part import CleanPart

if TYPE_CHECKING:
    from bdtune.engine.input_source import Source
    from bdtune.engine.node import Node
    from bdtune.errors import Problem
    from bdtune.plugins.defense import DefenseInputs, Offer


def lacks_clean_set(offer: Offer, defense: str) -> list[Problem]:
    """Return the problem of a trial without images that are known to be clean."""
    expected = f"expected images known to be clean, which '{defense}' tunes the classifier on"
    return offer.lacks_clean(expected, "Set clean: 0.05 for 5 % of the training set")


def clean_images(given: DefenseInputs) -> Source:
    """Return the source of the clean images, which `check_offer` has seen to."""
    assert given.clean is not None
    return given.clean


def clean_parts(given: DefenseInputs, validation: float) -> dict[str, Node]:
    """Return the nodes `tuning` and, of a fraction above 0, `validation`: the parts of the clean set."""
    assert given.clean_labels is not None
    parts = {"tuning": CleanPart(part="tuning", validation=validation)}
    if validation > 0:
        parts["validation"] = CleanPart(part="validation", validation=validation)
    return {name: given.node(part, data=given.clean_labels) for name, part in parts.items()}
