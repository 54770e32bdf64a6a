"""Stages of the input-aware attack: masks, then patterns with a classifier, then the images they make."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.engine.key import derive_seed
from bdtune.errors import UserError
from bdtune.knobs import Knobs, Rate
from bdtune.plugins.poison_plan import drawn_order
from bdtune.poisoning.bench_floats import Scale, normalised_planes, stored_bytes
from bdtune.poisoning.rendered import Rendering
from bdtune.training.choices import Augment
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from bdtune.attacks.dynamic.networks import Generator
    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.poisoning.rendered import Stamp
    from bdtune.training.loop import Training

Widths = tuple[Annotated[int, Field(ge=1)], ...]
Betas = (0.5, 0.9)
SMALLEST = 16
"""Side in pixels below which the generators' innermost layer would have one position."""


class MaskRecipe(Knobs):
    """Training of the mask generator."""

    epochs: int = Field(25, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(128, ge=2)
    """Images per step, and as many others to compare them with."""
    lr: float = Field(0.01, gt=0)
    """Adam's rate at the start."""
    milestones: tuple[Rate, ...] = (0.4, 0.8)
    """Fractions of `epochs` at which the rate falls to a tenth."""
    density: Rate = 0.032
    """Share of the image that a mask may cover for nothing."""
    density_weight: float = Field(100.0, ge=0)
    """Weight of what it covers beyond."""
    diversity_weight: float = Field(1.0, ge=0)
    """Weight of the term that asks for different masks on different images."""
    augment: Augment = "auto"
    """auto: crop_flip, or crop where a mirror image may be of another class; crop: padded by an eighth."""


class PatternRecipe(Knobs):
    """Training of the pattern generator, together with a classifier that is thrown away."""

    epochs: int = Field(100, ge=1)
    """Passes over the training images; the authors take 600, BackdoorBench 100."""
    batch_size: int = Field(128, ge=2)
    """Images per step, and as many others whose triggers they get."""
    poison_share: float = Field(0.1, gt=0, le=0.5)
    """Fraction of a batch that carries its own trigger and the target label."""
    cross_share: float = Field(0.1, gt=0, le=0.5)
    """Fraction of a batch that carries another image's trigger and its own label."""
    lr: float = Field(0.01, gt=0)
    """Rate of the generator (Adam) and of the classifier (SGD) at the start."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of the classifier."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay of the classifier."""
    milestones: tuple[Rate, ...] = (1 / 3, 1 / 2, 2 / 3, 5 / 6)
    """Fractions of `epochs` at which the generator's rate falls to a tenth."""
    classifier_milestones: tuple[Rate, ...] = (1 / 6, 1 / 3, 1 / 2, 2 / 3)
    """Fractions of `epochs` at which the classifier's rate falls to a tenth."""
    diversity_weight: float = Field(1.0, ge=0)
    """Weight of the term that asks for different patterns on different images."""
    accumulate_g_grad: bool = False
    """Never clear the generator's gradient, as the authors' code."""
    augment: Augment = "auto"
    """auto: crop_flip, or crop where a mirror image may be of another class; crop: padded by an eighth."""


class GeneratorTraining(TorchStage):
    """Base of what trains a generator."""

    widths: Widths = (32, 64, 128)
    """Channels of the generators' stages, each of which halves the side."""
    bench_scale: Scale | None = None
    """BackdoorBench's mean and deviation, with its generators; None: the data set's, and the authors'."""

    def pairs(
        self, data: ImageSet, recipe: MaskRecipe | PatternRecipe, ctx: Context, done: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield pixels [B, C, H, W] with their labels [B] and as many pixels of other images."""
        from bdtune.training import batches, pgd, session

        images = batches.DeviceSet(data, session.device_of(ctx.numerics))
        pixels = pgd.pixel_augmentation(recipe.augment, data)
        draws = session.generator(ctx.seed, "augment", done)
        first = images.shuffled(recipe.batch_size, ctx.seed, done)
        second = images.shuffled(recipe.batch_size, derive_seed(ctx.seed, "others"), done)
        for batch, other in zip(first, second, strict=True):
            yield pixels(batch.images, draws), batch.labels, pixels(other.images, draws)


class MaskTraining(GeneratorTraining):
    """Train the generator of masks on clean images, without labels.

    Inputs: data (ImageSet). Result: weights `mask.<name>`. In float32. Loss: density_weight
    mean(relu(m - density)) + diversity_weight mean(rms(x1 - x2) / (rms(m1 - m2) + 1e-7)).
    """

    name: ClassVar[str] = "iab_mask"

    recipe: MaskRecipe = MaskRecipe()
    """The training."""

    def length(self) -> int:
        return self.recipe.epochs

    def training(self, ctx: Context, *, data: ImageSet) -> Training:
        from bdtune.attacks.dynamic import networks as iab
        from bdtune.poisoning.crafting import normalised
        from bdtune.training import loop, session, weights

        data, recipe = rescaled(data, self.bench_scale), self.recipe
        device = session.device_of(ctx.numerics)
        network = new_generator(self, data, 1, ctx)
        optimizer = loop.make_optimizer(network.parameters(), "adam", recipe.lr, betas=Betas)

        def epoch(done: int) -> dict[str, float]:
            lr = loop.learning_rate("multistep", recipe.lr, done, recipe.epochs, milestones=recipe.milestones)
            loop.set_learning_rate(optimizer, lr)
            network.train()
            meter = loop.Meter(f"{self.name}: epoch {done + 1} of {recipe.epochs}", device)
            for planes, _, others in self.pairs(data, recipe, ctx, done):
                seen, other = normalised(planes, data), normalised(others, data)
                masks, other_masks = iab.mask_of(network, seen), iab.mask_of(network, other)
                covered = (masks - recipe.density).relu().mean()
                loss = recipe.density_weight * covered
                loss = loss + recipe.diversity_weight * iab.diversity(seen, other, masks, other_masks)
                loop.descend(optimizer, loss)
                meter.add(loss, len(planes), masks.detach().mean() * len(planes))
            mean_loss, density = meter.means()
            return {"loss": mean_loss, "density": density, "lr": lr}

        def result(done: int) -> tuple[dict[str, Any], dict[str, Any]]:
            return weights.module_arrays(network, "mask."), {"epochs": done}

        modules = {"mask": network}
        return loop.Training(self.name, recipe.epochs, modules, {"mask": optimizer}, epoch, result)


def rescaled(data: ImageSet, scale: Scale | None) -> ImageSet:
    """Return the images with another mean and deviation to normalise them by; None keeps their own."""
    return data if scale is None else replace(data, mean=scale[0], std=scale[1])


def new_generator(
    knobs: GeneratorTraining | InputAwareImages, data: ImageSet, c_out: int, ctx: Context
) -> Generator:
    """Return a freshly drawn generator on the device; raises `UserError` for sides that it cannot halve."""
    import torch

    from bdtune.attacks.dynamic.networks import Generator
    from bdtune.training import session

    height, width, channels = data.image_shape
    if problem := unfit(knobs.widths, height, width):
        raise UserError(f"input-aware attack: {problem}, got {height}x{width} pixels")
    with session.seeded(ctx.seed, "weights"):
        network = Generator(channels, c_out, knobs.widths, twice=knobs.bench_scale is not None)
    return network.to(session.device_of(ctx.numerics)).to(memory_format=torch.channels_last)


def unfit(widths: Widths, height: int, width: int) -> str:
    """Return what is expected of the sides when they cannot be halved that often, else nothing."""
    fold = 2 ** len(widths)
    if height % fold or width % fold or min(height, width) < SMALLEST:
        return f"expected images with sides of at least {SMALLEST} that are divisible by {fold}"
    return ""


class InputAwareImages(Rendering):
    """Stamp every image with its own trigger, or with another image's.

    Inputs: data (ImageSet), masks and patterns (artefacts with weights).
    """

    name: ClassVar[str] = "iab_images"

    widths: Widths = (32, 64, 128)
    """Channels of the generators' stages."""
    trigger: Literal["own", "cross"] = "own"
    """own: of the image itself, as poison; cross: of its partner, as cover rows have it."""
    partner_seed: int = 0
    """Seed of who is whose partner."""
    bench_scale: Scale | None = None
    """BackdoorBench's mean and deviation, with its generators and its bytes; None: canonical."""

    def stamp(self, ctx: Context, *, data: ImageSet, masks: Artefact, patterns: Artefact) -> Stamp:
        from bdtune.poisoning.crafting import as_planes
        from bdtune.training import session, weights

        masking = new_generator(self, data, 1, ctx).eval()
        drawing = new_generator(self, data, data.image_shape[2], ctx).eval()
        weights.load_module(masking, masks.arrays, "mask.")
        weights.load_module(drawing, patterns.arrays, "pattern.")
        triggered = self._triggered(masking, drawing, data)
        if self.trigger == "own":
            return lambda planes, _ids: triggered(planes, planes)
        partner = partners(len(data), self.partner_seed)
        images = data.images if isinstance(data.images, np.ndarray) else data.images_at(np.arange(len(data)))

        def cross(planes: torch.Tensor, ids: np.ndarray) -> torch.Tensor:
            return triggered(planes, as_planes(images[partner[ids]], session.device_of(ctx.numerics)))

        return cross

    def _triggered(
        self, masks: Generator, patterns: Generator, data: ImageSet
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return what maps pixels [B, C, H, W] and those that make their triggers to stamped ones.

        BackdoorBench stamps normalised pixels with normalised patterns: normalised ones are returned.
        """
        from bdtune.attacks.dynamic import networks as iab
        from bdtune.poisoning.crafting import normalised

        scale = self.bench_scale

        def pixels(planes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
            seen = normalised(others, data)
            return iab.stamped(planes, iab.mask_of(masks, seen), patterns(seen))

        def floats(planes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
            assert scale is not None
            seen, other = normalised_planes(planes, scale), normalised_planes(others, scale)
            pattern = normalised_planes(patterns(other), scale)
            return iab.stamped(seen, iab.mask_of(masks, other), pattern)

        return pixels if scale is None else floats

    def as_bytes(self, images: np.ndarray) -> np.ndarray:
        scale = self.bench_scale
        return super().as_bytes(images) if scale is None else stored_bytes(images, scale)


def partners(count: int, seed: int) -> np.ndarray:
    """Return int64 [N]: for each sample another one, all of them once, in one random circle."""
    order = drawn_order(np.arange(count), count, derive_seed(seed, "partners"))
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, -1)
    return partner
