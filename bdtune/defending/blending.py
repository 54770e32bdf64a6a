"""STRIP's stages, of test inputs and of training rows: overlays, entropies, scores and the threshold.

Source: STRIP (Gao et al., ACSAC 2019), sections 4 and 5, and the authors' notebook. Knobs without defaults
are handed down from the defense, where their defaults and ranges are.

Shape letters: n images that are scored, N overlays, K classes, H height, W width, C channels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bdtune.detection import empirical_threshold, flags, normal_threshold
from bdtune.effects import OnlyIf
from bdtune.engine.key import derive_seed
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import Problem, UserError
from bdtune.knobs import Knobs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    import torch

    from bdtune.engine.numerics import Numerics
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.defense import Offer
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network


class Overlays(Stage):
    """Draw the clean images that are blended over inputs; the others are left for the threshold.

    Inputs: data (ImageSet, known to be clean). Arrays: images uint8 [N, H, W, C] in the order of the draw;
    rows int64 [m], the other images, ascending. Raises `UserError` where none would be left.
    """

    name: ClassVar[str] = "overlays"
    kind: ClassVar[Kind] = "train"

    count: int
    """Images that are drawn."""

    def run(self, ctx: Context, *, data: ImageSet) -> Artefact:
        if problems := too_few(len(data), self.count):
            raise UserError(problems)
        order = np.random.default_rng(derive_seed(ctx.seed, "overlays")).permutation(len(data))
        drawn, rows = order[: self.count], np.sort(order[self.count :])
        ascending = np.sort(drawn)
        images = data.images_at(ascending)[np.searchsorted(ascending, drawn)]
        return Artefact({"images": images, "rows": rows.astype(np.int64)})


def too_few(images: int, overlays: int) -> list[Problem]:
    """Return the problem of a clean set of which overlays leave too few images to set a threshold on."""
    if images >= overlays + 2:
        return []
    expected = f"expected at least {overlays + 2} images that are known to be clean"
    hint = f"{overlays} are overlays, the others set the threshold: raise clean, or lower computed"
    return [Problem("clean", expected, str(images), hint=hint)]


class Drawn(Knobs):
    """How many overlays there are."""

    overlays: int = Field(100, ge=1)
    """Clean images that are blended over each input, N: the first of those computed."""
    computed: int = Field(100, ge=1)
    """Overlays whose entropies are computed: settings of `overlays` up to it share them."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.overlays > self.computed:
            raise ValueError(
                f"overlays must be at most computed, got {self.overlays} and {self.computed}; "
                "raise computed, which all settings of overlays share"
            )
        return self

    def lacks_overlays(self, offer: Offer) -> list[Problem]:
        """Return the problem of a clean set that is too small, where its size is known."""
        return [] if offer.clean_images is None else too_few(offer.clean_images, self.computed)


class Blend(Knobs):
    """How an overlay is laid over an input, pixels in [0, 1]."""

    input_weight: float = Field(1.0, gt=0)
    """Factor of the input."""
    overlay_weight: float = Field(1.0, gt=0)
    """Factor of the overlay."""
    clip: Annotated[bool, OnlyIf(space="pixels")] = True
    """Whether sums are clipped to [0, 1], as images are; the authors' notebook leaves them."""
    space: Annotated[Literal["pixels", "normalised"], OnlyIf(space="normalised")] = "pixels"
    """normalised: the network's normalised inputs are summed, unclipped, as toolboxes' filters do."""


class Entropies(Blend, Stage):
    """Blend each overlay over each input, and take the entropy of what the classifier makes of it.

    Inputs: data (ImageSet), model (Model), classifier (artefact with weights), overlays (images); calibration
    (rows), if only these images are to be scored. Of more than `scored` images that many are drawn. Arrays:
    ids int64 [n], ascending; entropies float32 [n, N], bits, from 0 to log2 K; predicted int64 [n], the class
    of the input itself. Computed in float32, whatever the numerics: entropies of 1e-9 count.
    """

    name: ClassVar[str] = "entropies"
    kind: ClassVar[Kind] = "train"

    scored: int | None
    """Images that are scored, at most; null: all."""

    def run(
        self,
        ctx: Context,
        *,
        data: ImageSet,
        model: Model,
        classifier: Artefact,
        overlays: Artefact,
        calibration: Artefact | None = None,
    ) -> Artefact:
        from bdtune.training.batches import images_of
        from bdtune.training.predict import PIXELS, trained_network

        network = trained_network(model, data, classifier, ctx.numerics)
        over = overlays.arrays["images"]
        step = max(1, images_of(PIXELS, data) // len(over))
        blocks = self._blocks(data, calibration, ctx.seed, step)
        ids, found, predicted = self._passed(network, data, blocks, over, ctx.numerics.exact())
        return Artefact({"ids": ids, "entropies": found, "predicted": predicted})

    def _blocks(
        self, data: ImageSet, calibration: Artefact | None, seed: int, step: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids int64 [n], ascending, and images uint8 [n, H, W, C] to be scored, n at most `step`."""
        from bdtune.training.batches import in_order

        if self.scored is None and calibration is None:
            yield from in_order(data, step)
            return
        rows = np.arange(len(data)) if calibration is None else calibration.arrays["rows"]
        draw = np.random.default_rng(derive_seed(seed, "scored")).permutation(len(rows))[: self.scored]
        ids = rows[np.sort(draw)].astype(np.int64)
        images = data.images_at(ids)
        for start in range(0, len(ids), step):
            yield ids[start : start + step], images[start : start + step]

    def _passed(
        self,
        network: Network,
        data: ImageSet,
        blocks: Iterator[tuple[np.ndarray, np.ndarray]],
        overlays: np.ndarray,
        numerics: Numerics,
    ) -> tuple[np.ndarray, ...]:
        """Return ids [n], entropies [n, N] and predictions [n] of images in blocks."""
        import torch

        from bdtune.training.augment import normalise_planes
        from bdtune.training.session import deterministic, device_of
        from bdtune.training.weights import as_array

        device = device_of(numerics)

        def logits(planes: torch.Tensor) -> torch.Tensor:
            seen = normalise_planes(planes, tuple(data.mean), tuple(data.std), torch.float32)
            return network(seen).float()

        found = []
        with torch.inference_mode(), deterministic(numerics):
            over = _planes(overlays, device)
            for ids, images in blocks:
                planes = _planes(images, device)
                blended = self.blended(planes, over, data.mean).flatten(0, 1)
                entropies = as_array(entropy_bits(logits(blended)).view(len(planes), -1))
                predicted = as_array(logits(planes).argmax(1)).astype(np.int64)
                found.append((ids.astype(np.int64), entropies, predicted))
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def blended(self, planes: torch.Tensor, overlays: torch.Tensor, mean: tuple[float, ...]) -> torch.Tensor:
        """Return float [n, N, C, H, W]: each of n images with each of N overlays over it, as pixels."""
        mixed = self.input_weight * planes[:, None] + self.overlay_weight * overlays[None]
        if self.space == "pixels":
            return mixed.clamp(0, 1) if self.clip else mixed
        # what is normalised to the sum of two normalised images
        return mixed - (self.input_weight + self.overlay_weight - 1) * mixed.new_tensor(mean)[:, None, None]


def _planes(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return float32 [n, C, H, W] in [0, 1] of uint8 images [n, H, W, C]."""
    from bdtune.training.weights import as_tensor

    return as_tensor(images).to(device).permute(0, 3, 1, 2).float() / 255


def entropy_bits(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy float32 [n] in bits of the softmax of logits [n, K]; exact near 0."""
    log_p = logits.double().log_softmax(1)
    return (-(log_p.exp() * log_p).sum(1) / math.log(2)).float()


class Scores(Stage):
    """Score inputs by the negative mean of their entropies over the first N overlays: poison has low ones.

    Inputs: entropies (ids, entropies, predicted). Arrays: ids int64 [n], scores float64 [n] in bits,
    predicted int64 [n].
    """

    name: ClassVar[str] = "scores"
    kind: ClassVar[Kind] = "derive"

    overlays: int
    """Overlays that count, N."""

    def run(self, ctx: Context, *, entropies: Artefact) -> Artefact:
        scores = -entropies.arrays["entropies"][:, : self.overlays].mean(1, dtype=np.float64)
        same = {name: entropies.arrays[name] for name in ("ids", "predicted")}
        return Artefact({**same, "scores": scores})


class Boundary(Knobs):
    """Where the threshold lies."""

    frr: float = Field(0.01, gt=0, lt=1)
    """Share of clean inputs that may be rejected."""
    boundary: Literal["normal", "quantile"] = "normal"
    """normal: of a normal distribution fitted to the scores of calibration images; quantile: of the scores
    themselves, which needs 1 / frr - 1 of them."""


class Threshold(Boundary, Stage):
    """Set the threshold that clean inputs exceed at the rate `frr`.

    Inputs: scores of calibration images (scores). Arrays: threshold float64 [1], bits; infinite where the
    calibration images are too few for a quantile. Info: fell_back, whether the normal boundary lies where no
    entropy is.
    """

    name: ClassVar[str] = "threshold"
    kind: ClassVar[Kind] = "derive"

    def run(self, ctx: Context, *, scores: Artefact) -> Artefact:
        values = scores.arrays["scores"]
        normal = normal_threshold(values, self.frr)
        useless = normal >= 0  # an entropy is never negative
        by_quantile = self.boundary == "quantile" or useless
        found = empirical_threshold(values, self.frr) if by_quantile else normal
        fell_back = self.boundary == "normal" and useless
        return Artefact({"threshold": np.array([found])}, {"fell_back": float(fell_back)})


class LowEntropy(Stage):
    """Flag the training rows whose score exceeds the threshold.

    Inputs: scores of all rows (scores float64 [N]), threshold (float64 [1]). Arrays: flagged bool [N].
    """

    name: ClassVar[str] = "low_entropy"
    kind: ClassVar[Kind] = "derive"

    def run(self, ctx: Context, *, scores: Artefact, threshold: Artefact) -> Artefact:
        limit = float(threshold.arrays["threshold"][0])
        return Artefact({"flagged": flags(scores.arrays["scores"], limit)})
