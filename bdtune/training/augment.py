"""Augmentation in batches, on the device: uint8 images in, normalised network input out.

Shape letters: B batch, H height, W width, C channels. Every random number comes from the generator handed in,
one row of draws per image, so that equal generators give equal batches on every device.
Source: SimCLR (Chen et al., 2020), appendix A, for crop, jitter, grayscale and blur, as torchvision defines
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch

from bdtune.training.choices import settled_name

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet
    from bdtune.training.choices import Augment

    Kind = Augment | Literal["simclr"]

PAD_SHARE = 4 / 32  # the customary 4 pixels on a side of 32
HOLE_SHARE = 3 / 32  # of ABL's code; 16 / 32 in the paper of cutout
AREA = (0.08, 1.0)  # share of the image's area that a resized crop covers
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
TRIES = 10  # draws of area and ratio before a resized crop settles for the whole image
JITTER_RATE, GRAY_RATE = 0.8, 0.2
STRENGTH = (0.8, 0.8, 0.8)  # brightness, contrast, saturation
HUE = 0.2  # in turns
LUMA = (0.2989, 0.587, 0.114)
SIGMA = (0.1, 2.0)  # of a blur, in pixels


@dataclass(frozen=True)
class Augmentation:
    """A named augmentation for one data set, ending in the network's input.

    Called with uint8 images [B, H, W, C] and a CPU generator, it returns [B, C, H, W], channels last, in
    `dtype`. Shifted crops are padded with black. Departure from torchvision: the order of the four jitter
    steps is drawn once per batch, not per image.
    """

    kind: Kind
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype = torch.float32
    flip: bool = True  # of kind "simclr"; the others say it in their name
    smallest_crop: float = AREA[0]  # least share of the area that a resized crop covers
    jitter: float = 1.0  # of kind "simclr": factor of STRENGTH and HUE
    blur: float = 0.0  # of kind "simclr": share of images that are blurred

    @staticmethod
    def of(kind: Kind, data: ImageSet, dtype: torch.dtype = torch.float32, **views: Any) -> Augmentation:
        """Return the augmentation with a data set's mean and standard deviation; `views`: flip to blur."""
        settled: Any = settled_name(kind, mirrors=data.mirrors)  # a trial's graph has done so already
        return Augmentation(settled, tuple(data.mean), tuple(data.std), dtype, **views)

    def __call__(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return the batch as the network sees it; `generator` may be missing for kind "none" only."""
        if self.kind == "none":
            return to_input(images, self.mean, self.std, self.dtype)
        assert generator is not None
        if self.kind not in ("resized_crop_flip", "simclr"):
            pad = round(PAD_SHARE * images.shape[1]) if "crop" in self.kind else 0
            shifted = shift_flip(images, generator, pad, flip="flip" in self.kind)
            if "cutout" in self.kind:
                shifted = cutout(shifted, generator)
            return to_input(shifted, self.mean, self.std, self.dtype)
        crops = resized_crop(images, generator, flip=self.flip, smallest=self.smallest_crop)
        if self.kind == "simclr" and images.shape[3] == 3:
            crops = grayscale(colour_jitter(crops, generator, self.jitter), generator)
        if self.kind == "simclr" and self.blur:
            crops = blur(crops, generator, self.blur)
        return normalise_planes(crops, self.mean, self.std, self.dtype)


def to_input(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Normalise uint8 [B, H, W, C] to [B, C, H, W] in `dtype`; channels last without a copy."""
    scale, shift = _affine(mean, std, images.device, 255.0)
    return torch.addcmul(shift, images.float(), scale).to(dtype).permute(0, 3, 1, 2)


@cache
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, white: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift [C]; kept, since making them anew would have a GPU wait at every batch."""
    with torch.inference_mode(False):
        mean_C, std_C = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        return 1 / (std_C * white), -mean_C / std_C


def normalise_planes(
    planes: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Normalise float [B, C, H, W] in [0, 1] into `dtype`, channels last."""
    scale, shift = _affine(mean, std, planes.device, 1.0)
    out = torch.addcmul(shift[:, None, None], planes, scale[:, None, None])
    return out.to(dtype=dtype, memory_format=torch.channels_last)


def _draws(count: int, columns: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Return uniform draws [columns, count] in [0, 1); made on the CPU, hence equal for all devices."""
    return torch.rand(columns, count, generator=generator).to(device, non_blocking=True)


def shift_flip(images: torch.Tensor, generator: torch.Generator, pad: int, *, flip: bool) -> torch.Tensor:
    """Crop uint8 [B, H, W, C] at a random place of its black-padded self, and mirror about half of them."""
    count, height, width, channels = images.shape
    down, right, mirror = _draws(count, 3, generator, images.device)
    rows = torch.arange(height, device=images.device).expand(count, -1)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    if flip:
        columns = torch.where(mirror[:, None] < 0.5, width - 1 - columns, columns)
    if pad:
        rows = rows + (down[:, None] * (2 * pad + 1)).long()
        columns = columns + (right[:, None] * (2 * pad + 1)).long()
        images = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
    stride = width + 2 * pad
    image = torch.arange(count, device=images.device)[:, None, None] * ((height + 2 * pad) * stride)
    pixels = image + rows[:, :, None] * stride + columns[:, None, :]
    return images.reshape(-1, channels).index_select(0, pixels.flatten()).view(count, height, width, channels)


def cutout(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blacken in uint8 [B, H, W, C] a square around a random pixel of each image, cut at the borders.

    Source: DeVries and Taylor (2017), whose code takes [p - s // 2, p + s // 2), with the s of ABL's code.
    """
    count, height, width, _ = images.shape
    half = max(1, round(HOLE_SHARE * height) // 2)
    down, right = _draws(count, 2, generator, images.device)
    rows = torch.arange(height, device=images.device) - (down[:, None] * height).long()
    columns = torch.arange(width, device=images.device) - (right[:, None] * width).long()
    hole = ((rows >= -half) & (rows < half))[:, :, None] & ((columns >= -half) & (columns < half))[:, None]
    return images.masked_fill(hole[..., None], 0)


def resized_crop(
    images: torch.Tensor, generator: torch.Generator, *, flip: bool, smallest: float = AREA[0]
) -> torch.Tensor:
    """Crop uint8 [B, H, W, C] at random, resize to H x W and return float planes [B, C, H, W] in [0, 1].

    A crop covers at least the share `smallest` of the area. Interpolation is bilinear, written as one small
    matrix per image and axis; a flip is part of the second.
    """
    count, height, width, channels = images.shape
    draws = _draws(count, 2 * TRIES + 3, generator, images.device)
    size, ratio = draws[:TRIES], draws[TRIES : 2 * TRIES]
    area = (smallest + (AREA[1] - smallest) * size) * (height * width)
    ratio = torch.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * ratio)
    crop_w, crop_h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (crop_w <= width) & (crop_h <= height) & (crop_w > 0) & (crop_h > 0)
    first = fits.int().argmax(0, keepdim=True)
    fitting = fits.any(0)
    crop_h = torch.where(fitting, crop_h.gather(0, first)[0], height)
    crop_w = torch.where(fitting, crop_w.gather(0, first)[0], width)
    top = (draws[-3] * (height - crop_h + 1)).floor()
    left = (draws[-2] * (width - crop_w + 1)).floor()
    mirror = draws[-1] < 0.5 if flip else torch.zeros_like(draws[-1], dtype=torch.bool)
    down_BHH = _interpolation(top, crop_h, height, torch.zeros_like(mirror))
    across_BWW = _interpolation(left, crop_w, width, mirror)
    planes = (images.permute(0, 3, 1, 2).float() / 255).reshape(count, channels * height, width)
    planes = torch.bmm(planes, across_BWW.mT).view(count, channels, height, width)
    return torch.matmul(down_BHH[:, None], planes)


def _interpolation(
    start: torch.Tensor, length: torch.Tensor, size: int, mirror: torch.Tensor
) -> torch.Tensor:
    """Return [B, size, size]: row i holds the weights of the input pixels that make output pixel i."""
    pixel = torch.arange(size, device=start.device, dtype=torch.float32)
    output = torch.where(mirror[:, None], size - 1 - pixel, pixel)
    source = (output + 0.5) * (length / size)[:, None] - 0.5
    source = torch.minimum(source.clamp_min(0), length[:, None] - 1) + start[:, None]
    return (1 - (source[:, :, None] - pixel).abs()).clamp_min_(0)


def colour_jitter(planes: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of float RGB [B, 3, H, W], each image with rate 0.8."""
    order = torch.randperm(4, generator=generator).tolist()
    draws = _draws(len(planes), 5, generator, planes.device)[:, :, None, None, None]
    applied = draws[4] < JITTER_RATE
    for step in order:
        if step == 3:
            turn = torch.where(applied, (2 * draws[3] - 1) * (HUE * strength), 0.0)
            planes = rotate_hue(planes, turn)
            continue
        factor = torch.where(applied, 1 + (2 * draws[step] - 1) * (STRENGTH[step] * strength), 1.0)
        planes = _blend(planes, factor, step)
    return planes


def _blend(planes: torch.Tensor, factor: torch.Tensor, step: int) -> torch.Tensor:
    """Move away from black (0), from the image's mean gray (1) or from its own gray (2)."""
    if step == 0:
        return (planes * factor).clamp_(0, 1)
    base = _luma(planes)
    if step == 1:
        base = base.mean((2, 3), keepdim=True)
    return torch.lerp(base, planes, factor).clamp_(0, 1)


def _luma(planes: torch.Tensor) -> torch.Tensor:
    red, green, blue = planes.split(1, 1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def rotate_hue(planes: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the HSV hue of float RGB [B, 3, H, W] by `turn` [B, 1, 1, 1], in turns."""
    red, green, blue = planes.split(1, 1)
    value = planes.amax(1, keepdim=True)
    chroma = value - planes.amin(1, keepdim=True)
    safe = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    hue = torch.where(value == red, (green - blue) / safe, hue) + 6 * turn
    corners = torch.arange(5, 0, -2, device=planes.device)[:, None, None]  # of red, green and blue
    sector = (hue + corners).remainder_(6)
    weight = torch.minimum(sector, 4 - sector).clamp_(0, 1)
    return value - chroma * weight


def grayscale(planes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Take the colour out of every fifth image of float RGB [B, 3, H, W]."""
    gray = _draws(len(planes), 1, generator, planes.device)[0] < GRAY_RATE
    return torch.where(gray[:, None, None, None], _luma(planes), planes)


def blur(planes: torch.Tensor, generator: torch.Generator, rate: float) -> torch.Tensor:
    """Blur the share `rate` of float [B, C, H, W] by a Gaussian of random width, cut off at the borders.

    Written as one small matrix per image and axis. Departure from torchvision, whose kernel has a tenth of
    the side: the Gaussian is not cut off inside the image.
    """
    applied, width = _draws(len(planes), 2, generator, planes.device)
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * width
    down, across = (_gaussian(sigma, applied < rate, side) for side in planes.shape[2:])
    return torch.matmul(torch.matmul(down[:, None], planes), across[:, None].mT)


def _gaussian(sigma: torch.Tensor, applied: torch.Tensor, size: int) -> torch.Tensor:
    """Return [B, size, size]: row i holds the weights of the pixels that make pixel i, of sum 1."""
    pixel = torch.arange(size, device=sigma.device, dtype=torch.float32)
    distance = (pixel[:, None] - pixel) ** 2
    weights = torch.softmax(-distance / (2 * sigma[:, None, None] ** 2), 2)
    return torch.where(applied[:, None, None], weights, torch.eye(size, device=sigma.device))
