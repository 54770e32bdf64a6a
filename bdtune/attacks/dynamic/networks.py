"""The generators of the input-aware attack, and the terms of its loss.

Shape letters: B batch, C channels, H height, W width. Pixels are float32 in [0, 1].
Source: Input-Aware Dynamic Backdoor Attack (Nguyen and Tran, 2020), arXiv:2010.08138, section 3 and appendix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

BN_MOMENTUM = 0.05
SHARPNESS = 20.0  # of the mask's threshold at one half
TINY = 1e-7
"""Added to what is divided by; below it a difference has no gradient, as the root's is infinite at 0."""


def _block(c_in: int, c_out: int, *, active: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, 3, 1, 1), nn.BatchNorm2d(c_out, momentum=BN_MOMENTUM)]
    return [*layers, nn.ReLU(inplace=True)] if active else layers


class Generator(nn.Module):
    """Down and up again by 2 for each width; ends in values from 0 to 1.

    `twice`: the last layer's values pass tanh twice, as in BackdoorBench: from 0.12 to 0.88.
    """

    def __init__(self, c_in: int, c_out: int, widths: Sequence[int], *, twice: bool = False) -> None:
        super().__init__()
        self.twice = twice
        layers: list[nn.Module] = []
        now = c_in
        for width in widths:
            layers += [*_block(now, width), *_block(width, width), nn.MaxPool2d(2)]
            now = width
        layers += _block(now, now)
        for i, width in enumerate([*reversed(widths[:-1]), c_out]):
            last = i == len(widths) - 1
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            layers += [*_block(now, now), *_block(now, width, active=not last)]
            now = width
        self.body = nn.Sequential(*layers)

    def forward(self, seen: Tensor) -> Tensor:
        """Map normalised images [B, C, H, W] to [B, c_out, H, W] in [0, 1]."""
        made = self.body(seen)
        return 0.5 + 0.5 * (made.tanh() if self.twice else made).tanh()


def mask_of(generator: nn.Module, seen: Tensor) -> Tensor:
    """Return the mask [B, 1, H, W] of normalised images: almost 0 or 1."""
    return 0.5 + 0.5 * (SHARPNESS * (generator(seen) - 0.5)).tanh()


def stamped(planes: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Return pixels [B, C, H, W] with the pattern where the mask is."""
    return planes + mask * (pattern - planes)


def diversity(seen: Tensor, other: Tensor, made: Tensor, made_other: Tensor) -> Tensor:
    """Return a scalar that is small where different images get different masks or patterns.

    The mean over pairs of rms(x1 - x2) / (rms(g1 - g2) + 1e-7).
    """
    return (_rms(seen - other) / (_rms(made - made_other) + TINY)).mean()


def _rms(difference: Tensor) -> Tensor:
    return difference.square().mean((1, 2, 3)).clamp_min(TINY**2).sqrt()
