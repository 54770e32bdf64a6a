"""What `bdtune show` says of knobs, for every plugin."""

from __future__ import annotations

import pytest

from bdtune.plugins import registry
from bdtune.verbs.show import knobs_of

PLUGINS = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_types_are_words_and_every_knob_has_a_sentence(kind, name):
    for row in knobs_of(kind, name):
        assert row.type.replace(" | ", " ").replace("_", "").replace(" ", "").isalnum(), row
        assert "annotation" not in row.type
        assert row.about.endswith((".", "?", ")")), row


def test_types_are_those_of_the_field():
    types = {row.path: row.type for row in knobs_of("attacks", "trojan")}
    assert types["opacity"] == "float | none"
    assert types["surrogate.milestones"] == "list of float"
    assert types["shape"] == "square | watermark"
    assert types["surrogate_model"] == "network"
