"""Stages of ISSBA: training of encoder and decoder, and the images with the attack's one secret in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Kind
from bdtune.errors import UserError
from bdtune.poisoning.rendered import Rendering
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    import numpy as np
    import torch

    from bdtune.attacks.issba.networks import Decoder, Encoder
    from bdtune.plugins.data import ImageSet
    from bdtune.poisoning.rendered import Stamp
    from bdtune.training.loop import Training

FOLD = 16
"""What the sides of an image must be divisible by."""
ENOUGH = 0.95
"""Share of bits read back below which the attack is not to be relied on."""


class SecretCoder(TorchStage):
    """Train an encoder to hide random bit strings in images, with a decoder that reads them back.

    Inputs: data (ImageSet). Result: weights `encoder.<name>` and `decoder.<name>`; info has the share of
    bits read in the last epoch, the curve also losses. In float32, without augmentation.
    Loss: the secret's cross-entropy alone in the first epochs; then residual_weight mean(r^2) +
    perceptual_weight (mean((x' - x)^2) + 1 - SSIM(x', x)) + secret_weight cross-entropy, x' = clip(x + r).
    """

    name: ClassVar[str] = "issba_coder"
    kind: ClassVar[Kind] = "train"

    secret_size: int = Field(20, ge=1)
    """Bits of a secret."""
    channels: int = Field(32, ge=1)
    """Channels of the networks' first layers; deeper ones have up to eight times as many."""
    epochs: int = Field(20, ge=1)
    """Passes over the training images."""
    secret_epochs: int = Field(2, ge=0)
    """First epochs, in which only the secret counts."""
    batch_size: int = Field(32, ge=2)
    """Images per step."""
    lr: float = Field(1e-4, gt=0)
    """Adam's rate on both networks."""
    residual_weight: float = Field(2.0, ge=0)
    """Weight of the residual's mean square."""
    perceptual_weight: float = Field(0.0, ge=0)
    """Weight of the loss of similarity; 1.5, LPIPS's weight, would swamp the residual's mean square."""
    secret_weight: float = Field(1.5, ge=0)
    """Weight of the secret's cross-entropy."""

    def training(self, ctx: Context, *, data: ImageSet) -> Training:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        from bdtune.training import batches, loop, session, weights

        device = session.device_of(ctx.numerics)
        with session.seeded(ctx.seed, "weights"):
            encoder, decoder = (network.to(device) for network in coders(self, data.image_shape))
        both = [*encoder.parameters(), *decoder.parameters()]
        optimizer = loop.make_optimizer(both, "adam", self.lr)
        images = batches.DeviceSet(data, device)

        def epoch(done: int) -> dict[str, float]:
            meter = loop.Meter(f"{self.name}: epoch {done + 1} of {self.epochs}", device)
            draws = session.generator(ctx.seed, "secrets", done)
            for batch in images.shuffled(self.batch_size, ctx.seed, done):
                clean = (batch.images.float() / 255).permute(0, 3, 1, 2)
                secret = torch.randint(0, 2, (len(clean), self.secret_size), generator=draws)
                secret = secret.to(device).float()
                residual = encoder(secret, clean)
                hidden = (clean + residual).clamp(0, 1)
                logits = decoder(hidden)
                loss = binary_cross_entropy_with_logits(logits, secret)
                if done >= self.secret_epochs:
                    loss = self.secret_weight * loss + self._visible(clean, residual, hidden)
                loop.descend(optimizer, loss)
                read = ((logits > 0) == (secret > 0)).float().mean()
                meter.add(loss, len(clean), read * len(clean))
            mean_loss, read_back = meter.means()
            return {"loss": mean_loss, "bit_acc": read_back}

        def result(done: int) -> tuple[dict[str, Any], dict[str, Any]]:
            last = training.curve[-1]["bit_acc"] if training.curve else 0.0
            return weights.modules_arrays(modules), {"epochs": done, "bit_acc": last}

        def finished(artefact: Artefact) -> None:
            if artefact.info["bit_acc"] < ENOUGH:
                text = "%s: only %.1f %% of the bits are read back; the trigger may not take, train longer"
                ctx.log.warning(text, self.name, 100 * artefact.info["bit_acc"])

        modules, optimizers = {"encoder": encoder, "decoder": decoder}, {"both": optimizer}
        training = loop.Training(self.name, self.epochs, modules, optimizers, epoch, result, finished)
        return training

    def _visible(self, clean: torch.Tensor, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the hidden secret costs in likeness."""
        from bdtune.attacks.issba.networks import ssim

        visible = self.residual_weight * residual.square().mean()
        if self.perceptual_weight == 0:
            return visible
        unlike = (hidden - clean).square().mean() + 1 - ssim(hidden, clean)
        return visible + self.perceptual_weight * unlike


def coders(knobs: SecretCoder | SecretImages, image_shape: tuple[int, int, int]) -> tuple[Encoder, Decoder]:
    """Return freshly drawn networks; raises `UserError` for sides that they cannot fold."""
    from bdtune.attacks.issba.networks import Decoder, Encoder

    height, width, _ = image_shape
    if height % FOLD or width % FOLD:
        raise UserError(f"ISSBA's encoder needs sides divisible by {FOLD}, got {height}x{width} pixels")
    sizes: dict[str, Any] = {"image_shape": image_shape, "width": knobs.channels}
    return Encoder(knobs.secret_size, **sizes), Decoder(knobs.secret_size, **sizes)


class SecretImages(Rendering):
    """Hide one secret in every image. Inputs: data (ImageSet), coder (artefact of `SecretCoder`)."""

    name: ClassVar[str] = "issba_images"

    secret: tuple[int, ...]
    """The bits."""
    channels: int = Field(32, ge=1)
    """Channels of the networks' first layers."""
    strength: float = Field(1.0, gt=0)
    """What the residual is multiplied by."""

    @property
    def secret_size(self) -> int:
        """Number of bits."""
        return len(self.secret)

    def stamp(self, ctx: Context, *, data: ImageSet, coder: Artefact) -> Stamp:
        import torch

        from bdtune.training import session, weights

        device = session.device_of(ctx.numerics)
        encoder, _ = coders(self, data.image_shape)
        weights.load_module(encoder, coder.arrays, "encoder.")
        encoder = encoder.to(device).eval()
        bits = torch.tensor([self.secret], dtype=torch.float32, device=device)

        def hide(planes: torch.Tensor, _ids: np.ndarray) -> torch.Tensor:
            residual = encoder(bits.expand(len(planes), -1), planes)
            return (planes + self.strength * residual).clamp(0, 1)

        return hide
