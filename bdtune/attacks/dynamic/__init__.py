"""Dynamic (IAB, input-aware): generators give each image a mask and a pattern of its own.

Source: Input-Aware Dynamic Backdoor Attack (Nguyen and Tran, 2020), arXiv:2010.08138, section 3; poisoning
form, in which the generators are frozen and a victim is trained from scratch, as LfD, ABL and A-ABL use it.
Departures: the generator's gradient is cleared at each step, where the authors' code never does
(`patterns.accumulate_g_grad`); 100 epochs instead of 600, as in BackdoorBench; crops are padded by an eighth
of the side and not rotated; differences below 1e-7 have no gradient. Images are rendered once, in evaluation
mode, and kept as bytes, also those of rows that no plan poisons. A cover row carries the trigger of a partner
that `trigger_seed` fixes, and its own label. Dialect backdoorbench poisons the first rows of each batch, as
the stored set has them, and covers the next; its generators end in tanh twice, and it stamps images as its
data set normalises them, and truncates. The partners are bdtune's own, as those of a running generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from bdtune.attacks.dynamic.pattern import PatternTraining
from bdtune.attacks.dynamic.stages import (
    InputAwareImages,
    MaskRecipe,
    MaskTraining,
    PatternRecipe,
    Widths,
    unfit,
)
from bdtune.effects import TrainOnly
from bdtune.engine.input_source import PluginSource
from bdtune.errors import Problem
from bdtune.knobs import Rate
from bdtune.plugins.model import ModelKnob
from bdtune.plugins.poison_plan import Role, SplitName
from bdtune.poisoning.conventions import AABL, BENCH, LFD
from bdtune.poisoning.cover_rows import CoverRowsAttack
from bdtune.poisoning.dialects import DialectAttack
from bdtune.poisoning.dirty_label import DirtyLabelAttack
from bdtune.poisoning.rendered import looked_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.node import Node
    from bdtune.plugins.poison_plan import Rows
    from bdtune.poisoning.train_sources import Attacker


class Dynamic(DialectAttack, CoverRowsAttack, DirtyLabelAttack):
    """x' = x + m(x) (p(x) - x), with a mask m and a pattern p that two networks make of the image."""

    version: ClassVar[int] = 2  # 1 compared patterns that were not normalised; backdoorbench stamped bytes

    dialect: Literal["canonical", "backdoorbench"] = "canonical"
    """canonical: this file's rules; backdoorbench: its generators, its bytes, the rows of its stored set."""
    cover_rate: Annotated[Rate | None, TrainOnly] = 0.0
    """Fraction of `rate_basis` that carries another image's trigger and keeps its label."""
    widths: Widths = (32, 64, 128)
    """Channels of the generators' stages, each of which halves the side."""
    masks: MaskRecipe = MaskRecipe()
    """Training of the mask generator."""
    patterns: PatternRecipe = PatternRecipe()
    """Training of the pattern generator with its classifier."""
    surrogate_model: ModelKnob = "preactresnet18"  # type: ignore[assignment]
    """The classifier's network."""

    one_split: ClassVar[dict[str, SplitName]] = {
        "train": "train",
        "cross": "train",
        "test": "test",
        "cross_test": "test",
    }
    batchwise: ClassVar[frozenset[str]] = frozenset({"backdoorbench"})
    normalises: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "lfd/dynamic": LFD,
        "abl/dynamic": {"rate": 0.1, "target": 1, "include_target_class": True},
        "aabl/iab": {**AABL, "cover_rate": 0.1},
        "backdoorbench/inputaware": {**BENCH, "cover_rate": 0.1},
    }

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        shape: dict[str, Any] = {"widths": self.widths, "bench_scale": self.bench_scale}
        masks = attacker.node(MaskTraining(**shape, recipe=self.masks), data=attacker.clean)
        training = PatternTraining(**shape, recipe=self.patterns, target=self.single_target)
        model = PluginSource(plugin=self.surrogate_model)
        made = {
            "masks": masks,
            "patterns": attacker.node(training, data=attacker.clean, masks=masks, model=model),
        }
        own = InputAwareImages(**shape, quantise=self.quantise)
        nodes = {
            "train": attacker.node(own, data=attacker.clean, **made),
            "test": attacker.node(own, data=attacker.test, **made),
        }
        if self.has_covers:
            update = {"trigger": "cross", "partner_seed": self.trigger_seed}
            cross = own.model_copy(update=update)
            nodes["cross"] = attacker.node(cross, data=attacker.clean, **made)
            nodes["cross_test"] = attacker.node(cross, data=attacker.test, **made)
        return nodes

    @property
    def covers_test(self) -> bool:
        return self.has_covers

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        cover = np.flatnonzero(rows.role == Role.COVER)
        images[:] = looked_up(self.artefact(rows.split), rows)
        if len(cover):
            crossed = self.artefact("cross" if rows.split == "train" else "cross_test")
            images[cover] = looked_up(crossed, rows[cover])
        return images

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        height, width, _ = image_shape
        if expected := unfit(self.widths, height, width):
            return [Problem("widths", expected, got=f"{height}x{width} pixels")]
        return []
