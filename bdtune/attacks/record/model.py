"""The network of a BackdoorBench record as one of bdtune: names, shapes and normalisation of its weights.

Departures: BackdoorBench normalises some data sets by other numbers. Another scale is put into the weights of
the first convolution, which is exact; another mean cannot be, as images are padded with it, and is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bdtune.errors import Problem
from bdtune.poisoning.bench_floats import SCALES
from bdtune.poisoning.shapes import differences, network_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.attacks.record.files import Record, State
    from bdtune.plugins.model import Model


@dataclass(frozen=True)
class Counterpart:
    """How bdtune has a network of BackdoorBench's."""

    knob: str  # that bdtune needs, to build it as BackdoorBench does
    parts: Mapping[str, str]  # beginnings of the names of weights, theirs to bdtune's
    blocks: tuple[int, ...] = ()  # of the stages of a residual network


_RESNET = {"conv1": "body.0", "bn1": "body.1", "fc": "head"}
COUNTERPARTS = {
    "preactresnet18": Counterpart(
        "final_norm: false", {"conv1": "body.0", "linear": "head"}, blocks=(2, 2, 2, 2)
    ),
    "resnet18": Counterpart("stem: imagenet", _RESNET, blocks=(2, 2, 2, 2)),
    "resnet34": Counterpart("stem: imagenet", _RESNET, blocks=(3, 4, 6, 3)),
    "vgg16": Counterpart(
        "batch_norm: false, classifier: imagenet",
        {
            "features": "body",
            "classifier.0": "hidden.0",
            "classifier.3": "hidden.3",
            "classifier.6": "head",
        },
    ),
    "densenet121": Counterpart("stem: imagenet", {"features": "body", "classifier": "head"}),
    "mobilenet_v2": Counterpart("stem: imagenet", {"features": "body", "classifier.1": "head"}),
}
"""The networks that both have, by BackdoorBench's name, which is bdtune's too."""


def our_name(name: str, network: str) -> str:
    """Return bdtune's name of a weight; one that it has no counterpart for stays as it is."""
    ours = COUNTERPARTS[network]
    found = re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", name) if ours.blocks else None
    if found is None:
        for theirs, part in ours.parts.items():
            if name.startswith(f"{theirs}."):
                return part + name.removeprefix(theirs)
        return name
    stage, block, rest = int(found[1]), int(found[2]), found[3]
    preact = network.startswith("preact")
    at = (1 if preact else 4) + sum(ours.blocks[: stage - 1]) + block
    if preact:
        rest = rest.replace("bn1", "norm1").replace("bn2", "norm2").replace("shortcut.0", "shortcut")
    return f"body.{at}.{rest}"


def model_problems(record: Record, model: Model, num_classes: int, mean: tuple[float, ...]) -> list[Problem]:
    """Return why the trial's network cannot be the record's; paths are relative to the trial."""
    alone = "'attack.hand_over: data' takes the poisoned set alone"
    if record.network not in COUNTERPARTS:
        expected = f"expected the record of one of {', '.join(COUNTERPARTS)}"
        return [Problem("attack.hand_over", expected, f"one of '{record.network}'", hint=alone)]
    if record.broken:
        expected = "expected a network whose weights are all finite"
        more = f" and {len(record.broken) - 1} more" if len(record.broken) > 1 else ""
        got = f"nan or infinity in '{record.broken[0]}'{more}"
        return [Problem("attack.hand_over", expected, got, hint=f"Its training diverged; {alone}")]
    theirs, std = SCALES.get(record.data, (mean, ()))
    if not np.allclose(theirs, mean, atol=5e-4):
        expected = f"expected images normalised with the mean {theirs}, as the record's network is"
        hint = (
            f"Set dataset.mean to {list(theirs)} and dataset.std to {list(std)} where the data set has them"
        )
        return [Problem("attack.hand_over", expected, str(tuple(mean)), hint=f"{hint}; {alone}")]
    wanted = {our_name(name, record.network): shape for name, shape in record.shapes.items()}
    wrong = differences(network_shapes(model, num_classes, record.image_shape), wanted, "the record")
    if not wrong:
        return []
    expected = (
        f"expected {{name: {record.network}, {COUNTERPARTS[record.network].knob}}}, the record's network"
    )
    got = f"{model.plugin_name()}: {wrong}"
    return [Problem("model", expected, got, hint=f"With it, weights fit exactly; {alone}")]


def our_state(state: State, network: str, data: str, std: tuple[float, ...]) -> State:
    """Return the weights under bdtune's names, for images normalised by `std`."""
    ours = {our_name(name, network): array for name, array in state.items()}
    theirs = SCALES[data][1] if data in SCALES else std
    scale = (np.asarray(std) / np.asarray(theirs)).astype(np.float32)
    if not np.array_equal(scale, np.ones_like(scale)):
        first = next(name for name in ours if name.startswith("body.") and name.endswith(".weight"))
        ours[first] = ours[first] * scale[None, :, None, None]
    return ours
