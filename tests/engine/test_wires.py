"""A stage's inputs are its signature; nodes are checked against it when they are built."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

import bdtune
from bdtune.engine.input_source import PluginSource, Source
from bdtune.engine.node import Node
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.engine.wires import wires_of
from bdtune.errors import ConfigError
from bdtune.plugins.data import ImageSet, LabelSet  # noqa: TC001
from bdtune.plugins.handles import FIT, LABELS
from bdtune.plugins.model import Model  # noqa: TC001


class Reads(Stage):
    name: ClassVar[str] = "reads"
    kind: ClassVar[Kind] = "derive"

    def run(
        self, ctx: Context, *, losses: Artefact, data: ImageSet | LabelSet, model: Model | None = None
    ) -> Artefact:
        return Artefact(info={"losses": len(losses.arrays), "model": model is not None})


class Makes(Stage):
    name: ClassVar[str] = "makes"
    kind: ClassVar[Kind] = "derive"

    def run(self, ctx: Context) -> Artefact:
        return Artefact()


MODEL = PluginSource(plugin=bdtune.model("resnet_s"))


def problems(**inputs: Node | Source) -> list[tuple[str, str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        Node(Reads(), inputs)
    return [(each.path, each.expected, each.got, each.hint) for each in caught.value.problems]


def losses() -> Node:
    return Node(Makes(), {})


def test_right_inputs_make_a_node() -> None:
    for data in (FIT, LABELS):
        assert Node(Reads(), {"losses": losses(), "data": data}).parents
    assert Node(Reads(), {"losses": losses(), "data": FIT, "model": MODEL}).name == "reads"


def test_a_missing_input_is_an_error_when_the_node_is_built() -> None:
    assert problems(data=FIT) == [("reads.losses", "expected input 'losses' of stage 'reads'", "none", "")]


def test_a_misspelt_input_names_the_nearest() -> None:
    missing, unknown = problems(data=FIT, loses=losses())
    assert missing == (
        "reads.losses",
        "expected input 'losses' of stage 'reads'",
        "none",
        "Did you mean 'loses'?",
    )
    assert unknown[0] == "reads.loses"
    assert "losses, data, model" in unknown[1]
    assert unknown[2:] == ("'loses'", "Did you mean 'losses'?")


@pytest.mark.parametrize(
    ("inputs", "path", "expected", "got"),
    [
        ({"losses": FIT, "data": FIT}, "reads.losses", "Artefact", "ImageSet"),
        ({"losses": losses(), "data": losses()}, "reads.data", "ImageSet or LabelSet", "Artefact"),
        ({"losses": losses(), "data": FIT, "model": LABELS}, "reads.model", "Model", "LabelSet"),
        ({"losses": losses(), "data": MODEL}, "reads.data", "ImageSet or LabelSet", "ResNetS"),
    ],
)
def test_an_input_of_another_type_is_an_error(
    inputs: dict[str, Any], path: str, expected: str, got: str
) -> None:
    ((where, what, found, _),) = problems(**inputs)
    assert (where, found) == (path, got)
    assert what.endswith(f"to be {expected}")


def test_a_stage_without_annotations_takes_any_type() -> None:
    class Loose(Stage):
        name: ClassVar[str] = "loose"
        kind: ClassVar[Kind] = "derive"

        def run(self, ctx, *, data, **more):
            return Artefact()

    assert wires_of(Loose, "run").more
    Node(Loose(), {"data": LABELS, "other": losses(), "third": MODEL})
    with pytest.raises(ConfigError, match="expected input 'data'"):
        Node(Loose(), {"other": losses()})
