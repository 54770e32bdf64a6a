"""ISSBA (SSBA): a hidden bit string, the same in every image, so that each image has a trigger of its own.

Source: Invisible Backdoor Attack with Sample-Specific Triggers (Li et al., 2021), arXiv:2012.03816,
section 4; sizes, weights and 20 epochs as in BackdoorBox, whose setting GSSD takes.
Departures: LPIPS is left out, as it needs weights that would have to be downloaded; the residual's mean
square alone gives about 33 dB. Mean square plus 1 - SSIM can stand in for it, but at LPIPS's weight it gives
38 to 44 dB, too faint to be learned. `strength` is bdtune's own. There is no critic (in public code it is
never updated) and no spatial transformer in the decoder (it undoes camera poses, of which there are none).
Encoder and decoder see training images only. Images are rendered once and kept as bytes, also those of rows
that no plan poisons. The dialects fix rows, counts and rounding; encoder and secret are always bdtune's own,
as both toolkits draw them from a running generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bdtune.attacks._dialects import DialectAttack
from bdtune.attacks._issba_stages import FOLD, SecretCoder, SecretImages
from bdtune.attacks._plan import SplitName
from bdtune.attacks._rendered import looked_up
from bdtune.attacks._surrogate import Attacker
from bdtune.engine.key import sample_generator
from bdtune.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from bdtune.attacks._plan import Rows
    from bdtune.engine.numerics import Numerics
    from bdtune.engine.stage import Node, Source


class ISSBA(DialectAttack):
    """x' = clip(x + a E(s, x)) with an encoder E that was trained to hide bit strings, and one secret s."""

    coder: SecretCoder = SecretCoder()
    """Training of the encoder and of the decoder that it needs."""
    strength: float = Field(1.0, gt=0)
    """a; above 1 the bits are more visible than the encoder was trained to make them."""

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
    def secret(self) -> tuple[int, ...]:
        """The attack's bits, drawn from `trigger_seed`."""
        drawn = sample_generator(self.trigger_seed, "issba", "secret").integers(0, 2, self.coder.secret_size)
        return tuple(int(bit) for bit in drawn)

    def artefacts(self, clean: Source, *, seed: int, numerics: Numerics) -> Mapping[str, Node]:
        attacker = Attacker(clean, self.trigger_seed, numerics)
        coder = attacker.node(self.coder, data=clean)
        knobs: dict[str, Any] = {"channels": self.coder.channels, "strength": self.strength}
        stage = SecretImages(secret=self.secret, quantise=self.quantise, **knobs)
        return {
            "train": attacker.node(stage, data=clean, coder=coder),
            "test": attacker.node(stage, data=attacker.test, coder=coder),
        }

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return looked_up(self.artefact(rows.split), rows)

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        height, width, _ = image_shape
        if height % FOLD or width % FOLD:
            expected = f"expected images with sides divisible by {FOLD}"
            hint = "Set dataset.image_size, to 32 for example"
            return [Problem("", expected, got=f"{height}x{width} pixels", hint=hint)]
        return []
