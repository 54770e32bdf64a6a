"""Label-Consistent (LC, CL, CLB): images of the target class made hard to classify, with stamped corners.

Source: Label-Consistent Backdoor Attacks (Turner, Tsipras, Madry, 2019), arXiv:1912.02771, sections 4 and 5;
the four corners of the authors' code; settings of GSSD, A-ABL, LfD, ANP, BackdoorBench and BackdoorBox.
Departures: none in the method; the surrogate's recipe (ResNet-18, 8/255, 10 steps) is that of public
re-implementations, as no paper among them states one. A weak `clean` surrogate and `none` are ablations.
The dialects fix rows, counts, truncation and the stamp; what PGD finds depends on the surrogate, so crafted
images are theirs only from their files (`crafted_path`) or their weights (`surrogate_path`). BackdoorBench
rates count the whole set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from bdtune.effects import ByContent, OnlyIf, TrainOnly
from bdtune.engine.input_source import PluginSource
from bdtune.errors import Problem
from bdtune.knobs import UserFile
from bdtune.plugins.budget import Budget
from bdtune.plugins.model import ModelKnob
from bdtune.plugins.poison_plan import SplitName
from bdtune.poisoning.conventions import BENCH
from bdtune.poisoning.crafted import CraftedImages, OwnLabelPGD
from bdtune.poisoning.dialects import DialectAttack
from bdtune.poisoning.dirty_label import CLEAN_LABEL
from bdtune.poisoning.given_images import GivenImages
from bdtune.poisoning.given_rows import GivenRowsAttack
from bdtune.poisoning.image_files import file_problems, images_digest, shape_problems
from bdtune.poisoning.patterns import BLACK, WHITE, Pattern, cells, scaled
from bdtune.poisoning.rendered import looked_up, stored
from bdtune.poisoning.surrogate import (
    GivenWeights,
    RobustSurrogate,
    Surrogate,
    class_problems,
    network_problems,
    weights_problems,
)
from bdtune.poisoning.tensor_files import weights_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from bdtune.engine.node import Node
    from bdtune.plugins.poison_plan import Rows
    from bdtune.poisoning.train_sources import Attacker

LEFT = [[WHITE, BLACK, BLACK], [BLACK, WHITE, BLACK], [WHITE, BLACK, WHITE]]
RIGHT = [[BLACK, BLACK, WHITE], [BLACK, WHITE, BLACK], [WHITE, BLACK, WHITE]]
SIDE = 3
"""Side of a corner at 32 pixels; it never gets smaller, as it has so many cells."""

BOX_CL = {"dialect": "backdoorbox", "target": 2, "surrogate": "clean"}


class LabelConsistent(DialectAttack, GivenRowsAttack, defaults={"rate": 0.5, "rate_basis": "target_class"}):
    """Poisoned rows keep their label: PGD moves them away from it, and the corners are left to explain it."""

    surrogate: Annotated[Literal["robust", "clean", "none"], TrainOnly] = "robust"
    """Network that PGD attacks. clean: not adversarially trained, a weak attack; none: corners alone."""
    surrogate_path: Annotated[UserFile, TrainOnly, ByContent(weights_digest)] = None
    """Safetensors file with weights of `surrogate_model`, instead of training one."""
    crafted_path: Annotated[UserFile, TrainOnly, ByContent(images_digest)] = None
    """Images made elsewhere, without corners: NPY, NPZ or a folder of pictures, by sample id; then no PGD."""
    crafted_channels: Annotated[Literal["rgb", "bgr"], TrainOnly] = "rgb"
    """Order of the channels in `crafted_path`; BackdoorBox's folders are bgr."""
    pgd: Annotated[OwnLabelPGD, TrainOnly] = OwnLabelPGD()
    """The perturbation of the training images; test images get the corners alone."""
    amplitude: float = Field(1.0, gt=0, le=1)
    """White cells of the corners add it and black ones take it away; 1 overwrites."""
    robust: Annotated[RobustSurrogate, TrainOnly, OnlyIf(surrogate="robust")] = RobustSurrogate()
    """Training of the robust surrogate."""
    clean: Annotated[Surrogate, TrainOnly, OnlyIf(surrogate="clean")] = Surrogate()
    """Training of the clean surrogate."""
    surrogate_model: Annotated[ModelKnob, TrainOnly] = "resnet18"  # type: ignore[assignment]
    """The surrogate's network."""

    clean_label: ClassVar[bool] = True
    lacks: ClassVar[dict[str, str]] = CLEAN_LABEL
    one_split: ClassVar[dict[str, SplitName]] = {"crafted": "train"}
    fixed_by: ClassVar[dict[str, dict[str, Any]]] = {
        "backdoorbox": {"rate_basis": "target_class", "amplitude": 1.0}
    }
    min_undefended_asr: ClassVar[float] = 0.8
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gssd/lc": {"rate": 0.025, "rate_basis": "dataset", "target": 0},
        "gssd/lc_weak": {"rate": 0.0065, "rate_basis": "dataset", "target": 0},
        "aabl/clb": {"rate": 0.5, "target": 0, "pgd": {"step": 2 / 255}},
        "aabl/clb_tiny": {"rate": 1.0, "target": 0, "pgd": {"step": 2 / 255}},
        "lfd/cl": {"rate": 0.8, "target": 1},
        "lfd/cl_gtsrb": {"rate": 0.95, "target": 1},
        "lfd/cl_literal": {"rate": 0.08, "target": 1},
        "lfd/cl_gtsrb_literal": {"rate": 0.095, "target": 1},
        "anp/clb": {"rate": 0.8, "target": 0},
        "abl/cl": {"rate": 0.1, "target": 0},
        "backdoorbench/lc": {**BENCH, "pgd": {"eps": 8 / 255, "steps": 100}},
        "backdoorbox/lc": {**BOX_CL, "rate": 0.25, "pgd": {"eps": 8 / 255, "steps": 100}},
        "backdoorbox/lc_gtsrb": {**BOX_CL, "rate": 0.5, "pgd": {"steps": 100}},
    }

    @property
    def given_train(self) -> tuple[Path | None, str]:
        return self.crafted_path, "crafted_path"

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        if self.surrogate == "none":
            return {}
        if self.crafted_path is not None:
            given = GivenImages(
                path=self.crafted_path,
                knob="crafted_path",
                only=self.target,
                channels=self.crafted_channels,
                order_knob="crafted_channels",
                quantise=self.quantise,
            )
            return {"crafted": attacker.node(given, data=attacker.clean)}
        if self.surrogate_path is not None:
            network = attacker.node(GivenWeights(path=self.surrogate_path))
        else:
            recipe = self.robust if self.surrogate == "robust" else self.clean
            network = attacker.classifier(recipe, self.surrogate_model)
        stage = CraftedImages(target=self.target, pgd=self.pgd, quantise=self.quantise)
        model = PluginSource(plugin=self.surrogate_model)
        return {"crafted": attacker.node(stage, data=attacker.clean, model=model, surrogate=network)}

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        if self.surrogate != "none":
            images = looked_up(self.artefact("crafted"), rows)
        return self._with_corners(images)

    def stamp_test(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return self._with_corners(images)

    def bench_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        if rows.split == "train" and self.surrogate != "none":
            images = stored(self.artefact("crafted"), rows.ids)
        levels = images.astype(np.float32)
        step = np.float32(255 * self.amplitude)
        for box, patch in _corners(images.shape[1], images.shape[2]):
            levels[box] += np.where(patch.for_channels(images.shape[3]) > 0, step, -step)
        return np.clip(levels, 0, 255).astype(np.uint8)

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        if split == "train" and self.crafted_path is not None:
            return Budget()
        corners = 4 * _side(*image_shape[:2]) ** 2
        eps = self.pgd.eps if split == "train" and self.surrogate != "none" else 0.0
        return Budget(255 * min(1.0, self.amplitude + eps), pixels=corners, elsewhere=255 * eps)

    def check_files(self) -> list[Problem]:
        found = [] if self.surrogate_path is None else weights_problems(self.surrogate_path)
        return found + file_problems(self.crafted_path, "crafted_path")

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        height, width, _ = image_shape
        if min(height, width) < 2 * SIDE:
            return [Problem("", "expected images in which four corners fit", got=f"{height}x{width} pixels")]
        if self.surrogate_path is None:
            return shape_problems(self.crafted_path, "crafted_path", image_shape)
        return network_problems(self.surrogate_path, self.surrogate_model, image_shape)

    @model_validator(mode="after")
    def _knobs_agree(self) -> Self:
        if self.surrogate_path is not None and self.surrogate == "none":
            raise ValueError("surrogate_path is of no use with surrogate 'none'")
        if self.crafted_path is not None and self.surrogate == "none":
            raise ValueError("crafted_path is of no use with surrogate 'none', which has the corners alone")
        if self.crafted_path is not None and self.surrogate_path is not None:
            raise ValueError("crafted_path has images already: surrogate_path is of no use with it")
        if self.crafted_path is None and self.crafted_channels != "rgb":
            raise ValueError("crafted_channels belongs to a crafted_path, and there is none")
        return self

    def _check_target(self, num_classes: int) -> list[Problem]:
        problems = super()._check_target(num_classes)
        if self.surrogate_path is not None:
            problems += class_problems(self.surrogate_path, num_classes)
        return problems

    def _with_corners(self, images: np.ndarray) -> np.ndarray:
        amplitude = np.float32(self.amplitude)
        for box, patch in _corners(images.shape[1], images.shape[2]):
            if self.amplitude == 1:
                images[box] = patch.for_channels(images.shape[3])
            else:
                images[box] += amplitude * (2 * patch.for_channels(images.shape[3]) - 1)
        return images


def _side(height: int, width: int) -> int:
    return max(SIDE, scaled(SIDE, 32, min(height, width)))


def _corners(height: int, width: int) -> Iterator[tuple[tuple[slice, slice, slice], Pattern]]:
    """Yield each corner's box and patch."""
    side = _side(height, width)
    everything, first, bottom, right = (
        slice(None),
        slice(side),
        slice(height - side, height),
        slice(width - side, width),
    )
    for rows in (first, bottom):
        yield (everything, rows, first), cells(LEFT, side)
        yield (everything, rows, right), cells(RIGHT, side)
