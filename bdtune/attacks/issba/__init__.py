"""ISSBA (SSBA): a hidden bit string, the same in every image, so that each image has a trigger of its own.

Source: Invisible Backdoor Attack with Sample-Specific Triggers (Li et al., 2021), arXiv:2012.03816,
section 4; sizes, weights and 20 epochs as in BackdoorBox, whose setting GSSD takes.
Departures: LPIPS is left out, as it needs weights that would have to be downloaded; the residual's mean
square alone gives about 33 dB. Mean square plus 1 - SSIM can stand in for it, but at LPIPS's weight it
gives 38 to 44 dB, too faint to be learned. `strength` is bdtune's own. There is no critic (in public code
it is never updated) and no spatial transformer in the decoder (it undoes camera poses, of which there are
none). Encoder and decoder see training images only. Images are rendered once and kept as bytes, also those
of rows that no plan poisons. The dialects fix rows, counts and rounding; encoder and secret are bdtune's
own, as both toolkits draw them from a running generator, unless an encoder of BackdoorBox (`coder_path`) or
images that any encoder made (`train_images`) are given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from bdtune.attacks.issba.given import GivenCoder, coder_problems, encoder_problems
from bdtune.attacks.issba.stages import FOLD, SecretCoder, SecretImages
from bdtune.effects import ByContent, TestOnly, TrainOnly
from bdtune.engine.key import sample_generator
from bdtune.errors import Problem
from bdtune.knobs import UserFile
from bdtune.plugins.poison_plan import SplitName
from bdtune.poisoning.dialects import DialectAttack
from bdtune.poisoning.dirty_label import DirtyLabelAttack
from bdtune.poisoning.given_images import GivenImages
from bdtune.poisoning.given_rows import GivenRowsAttack
from bdtune.poisoning.image_files import file_problems, image_file, images_digest, shape_problems
from bdtune.poisoning.rendered import looked_up
from bdtune.poisoning.tensor_files import weights_digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bdtune.engine.node import Node
    from bdtune.plugins.attack import TestLabels
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.model import Model
    from bdtune.plugins.poison_plan import Rows
    from bdtune.poisoning.train_sources import Attacker

IMAGES: dict[SplitName, str] = {"train": "train_images", "test": "test_images"}
"""Knobs that name images made elsewhere, by split."""


class ISSBA(DialectAttack, GivenRowsAttack, DirtyLabelAttack):
    """x' = clip(x + a E(s, x)) with an encoder E that was trained to hide bit strings, and one secret s."""

    coder: SecretCoder = SecretCoder()
    """Training of the encoder and of the decoder that it needs."""
    strength: float = Field(1.0, gt=0)
    """a; above 1 the bits are more visible than the encoder was trained to make them."""
    secret: str | None = Field(None, pattern="^[01]+$")
    """The attack's bits, as text such as "0110", `coder.secret_size` of them; null: from `trigger_seed`."""
    coder_path: Annotated[UserFile, ByContent(weights_digest)] = None
    """Trained encoder to use: weights of bdtune's (safetensors), or BackdoorBox's best_model.pth."""
    train_images: Annotated[UserFile, TrainOnly, ByContent(images_digest)] = None
    """Training images with the secret, made elsewhere: NPY, NPZ or a folder of pictures, by sample id."""
    test_images: Annotated[UserFile, TestOnly, ByContent(images_digest)] = None
    """Test images with the secret, likewise; both are given, or none."""

    one_split: ClassVar[dict[str, SplitName]] = {"train": "train", "test": "test"}
    fixed_by: ClassVar[dict[str, dict[str, Any]]] = {
        "backdoorbench": {"quantise": "round"},
        "backdoorbox": {"quantise": "round"},
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gssd/issba": {"rate": 0.1, "target": 0},
        "aabl/ssba": {"rate": 0.1, "target": 0, "include_target_class": True},
        "backdoorbench/ssba": {"dialect": "backdoorbench", "rate": 0.1, "target": 0},
        "backdoorbox/issba": {"dialect": "backdoorbox", "rate": 0.05, "target": 1},
    }

    @property
    def given_train(self) -> tuple[Path | None, str]:
        return self.train_images, "train_images"

    @property
    def bits(self) -> tuple[int, ...]:
        """The attack's bits."""
        if self.secret is not None:
            return tuple(int(bit) for bit in self.secret)
        drawn = sample_generator(self.trigger_seed, "issba", "secret").integers(0, 2, self.coder.secret_size)
        return tuple(int(bit) for bit in drawn)

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        if self.train_images is not None:
            return {
                split: attacker.node(
                    GivenImages(path=getattr(self, knob), knob=knob, split=split, quantise=self.quantise),
                    data=data,
                )
                for (split, knob), data in zip(IMAGES.items(), (attacker.clean, attacker.test), strict=True)
            }
        given = self.coder_path
        coder = (
            attacker.node(self.coder, data=attacker.clean)
            if given is None
            else attacker.node(GivenCoder(path=given))
        )
        knobs: dict[str, Any] = {"channels": self.coder.channels, "strength": self.strength}
        stage = SecretImages(secret=self.bits, quantise=self.quantise, **knobs)
        return {
            "train": attacker.node(stage, data=attacker.clean, coder=coder),
            "test": attacker.node(stage, data=attacker.test, coder=coder),
        }

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return looked_up(self.artefact(rows.split), rows)

    def test_rows(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        found = super().test_rows(labels, num_classes)
        if self.test_images is None:
            return found
        known = image_file(self.test_images, "test_images").known(len(labels))
        return found & np.isin(np.arange(len(labels)), known)

    def check_files(self) -> list[Problem]:
        problems = coder_problems(self.coder_path)
        return problems + [p for knob in IMAGES.values() for p in file_problems(getattr(self, knob), knob)]

    def check_trial(self, model: Model, dataset: Dataset, test_labels: TestLabels) -> list[Problem]:
        labels = test_labels() if self.test_images is not None else None
        if labels is None or self.test_images is None or file_problems(self.test_images, "test_images"):
            return []
        found = image_file(self.test_images, "test_images").problems(len(labels), "test")
        return [replace(problem, path=f"attack.{problem.path}") for problem in found]

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        if self.train_images is not None:
            return [
                p for knob in IMAGES.values() for p in shape_problems(getattr(self, knob), knob, image_shape)
            ]
        height, width, _ = image_shape
        if height % FOLD or width % FOLD:
            expected = f"expected images with sides divisible by {FOLD}"
            hint = "Set dataset.image_size, to 32 for example"
            return [Problem("", expected, got=f"{height}x{width} pixels", hint=hint)]
        return [] if self.coder_path is None else encoder_problems(self.coder_path, self.coder, image_shape)

    @model_validator(mode="after")
    def _knobs_agree(self) -> Self:
        if (self.train_images is None) != (self.test_images is None):
            raise ValueError("train_images and test_images go together, as they have the same secret")
        for knob in ("secret", "coder_path", "strength"):
            changed = getattr(self, knob) != type(self).model_fields[knob].default
            if self.train_images is not None and changed:
                raise ValueError(f"{knob} is of no use with train_images, which have their secret already")
        if self.secret is not None and len(self.secret) != self.coder.secret_size:
            sizes = f"secret has {len(self.secret)} bits and coder.secret_size is {self.coder.secret_size}"
            raise ValueError(f"{sizes}: set it to {len(self.secret)}")
        return self
