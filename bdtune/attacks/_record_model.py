"""The network of a BackdoorBench record as one of bdtune: names, shapes and normalisation of its weights.

Departures: BackdoorBench normalises some data sets by other numbers. Another scale is put into the weights of
the first convolution, which is exact; another mean cannot be, as images are padded with it, and is an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from bdtune.attacks._bench_floats import SCALES
from bdtune.attacks._shapes import differences, network_shapes
from bdtune.errors import Problem

if TYPE_CHECKING:
    from bdtune.attacks._record_files import Record, State
    from bdtune.models._base import Model

BLOCKS = {"preactresnet18": (2, 2, 2, 2), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Networks that both have, with the blocks of their stages."""
KNOBS = {"preactresnet18": "final_norm: false", "resnet18": "stem: imagenet", "resnet34": "stem: imagenet"}
"""How bdtune is told to build them as BackdoorBench does."""
FIRST = "body.0.weight"


def our_name(name: str, network: str) -> str:
    """Return bdtune's name of a weight; one that it has no counterpart for stays as it is."""
    preact = network.startswith("preact")
    first = 1 if preact else 4
    found = re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", name)
    if found is None:
        stem = (
            {"conv1": "body.0", "linear": "head"}
            if preact
            else {"conv1": "body.0", "bn1": "body.1", "fc": "head"}
        )
        part, _, rest = name.partition(".")
        return f"{stem.get(part, part)}.{rest}"
    stage, block, rest = int(found[1]), int(found[2]), found[3]
    at = first + sum(BLOCKS[network][: stage - 1]) + block
    if preact:
        rest = rest.replace("bn1", "norm1").replace("bn2", "norm2").replace("shortcut.0", "shortcut")
    return f"body.{at}.{rest}"


def model_problems(record: Record, model: Model, num_classes: int, mean: tuple[float, ...]) -> list[Problem]:
    """Return why the trial's network cannot be the record's; paths are relative to the trial."""
    alone = "'attack.hand_over: data' takes the poisoned set alone"
    if record.network not in BLOCKS:
        expected = f"expected the record of one of {', '.join(BLOCKS)}"
        return [Problem("attack.hand_over", expected, f"one of '{record.network}'", hint=alone)]
    theirs = SCALES.get(record.data, (mean, ()))[0]
    if not np.allclose(theirs, mean, atol=5e-4):
        expected = f"expected a data set normalised with the mean {theirs}, as the record's network is"
        return [Problem("attack.hand_over", expected, str(tuple(mean)), hint=alone)]
    wanted = {our_name(name, record.network): shape for name, shape in record.shapes.items()}
    wrong = differences(network_shapes(model, num_classes, record.image_shape), wanted, "the record")
    if not wrong:
        return []
    expected = f"expected {{name: {record.network}, {KNOBS[record.network]}}}, the record's network"
    got = f"{model.plugin_name()}: {wrong}"
    return [Problem("model", expected, got, hint=f"With it, weights fit exactly; {alone}")]


def our_state(state: State, network: str, data: str, std: tuple[float, ...]) -> State:
    """Return the weights under bdtune's names, for images normalised by `std`."""
    ours = {our_name(name, network): array for name, array in state.items()}
    theirs = SCALES[data][1] if data in SCALES else std
    scale = (np.asarray(std) / np.asarray(theirs)).astype(np.float32)
    if not np.array_equal(scale, np.ones_like(scale)):
        ours[FIRST] = ours[FIRST] * scale[None, :, None, None]
    return ours
