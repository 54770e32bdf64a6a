"""Encoder and decoder of hidden bit strings, and the similarity that keeps them hidden.

Shape letters: B batch, S bits of the secret, C channels, H height, W width. Pixels are float32 in [0, 1].
Source: StegaStamp (Tancik et al., 2020), arXiv:1904.05343, section 3, as ISSBA uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, relu

WINDOW, SIGMA = 11, 1.5  # of SSIM, as Wang et al. (2004) choose them
C1, C2 = 0.01**2, 0.03**2


class _Up(nn.Module):
    """Nearest upsampling by two and a 2x2 convolution that keeps the side."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c_in, h, w] to [B, c_out, 2h, 2w]."""
        batch, channels, height, width = x.shape
        # copies rather than an interpolation, whose gradient is not repeatable on a GPU
        wide = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        wide = wide.reshape(batch, channels, 2 * height, 2 * width)
        return relu(self.conv(pad(wide, (0, 1, 0, 1))))


class Encoder(nn.Module):
    """A U-Net that turns a secret and an image into the residual to add; H and W are divisible by 16."""

    def __init__(self, secret_size: int, image_shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        self.image_shape = image_shape
        height, side, channels = image_shape
        levels = [width, width, 2 * width, 4 * width, 8 * width]
        self.secret = nn.Linear(secret_size, channels * height * side)
        inputs = [2 * channels, *levels[:-1]]
        self.down = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, 1 if i == 0 else 2, 1)
            for i, (c_in, c_out) in enumerate(zip(inputs, levels, strict=True))
        )
        rising = [levels[3], levels[2], levels[1], levels[0]]
        self.up = nn.ModuleList(
            _Up(c_in, c_out) for c_in, c_out in zip([levels[4], *rising[:-1]], rising, strict=True)
        )
        skips = [2 * levels[3], 2 * levels[2], 2 * levels[1], 2 * levels[0] + 2 * channels]
        self.join = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, 1, 1) for c_in, c_out in zip(skips, rising, strict=True)
        )
        self.residual = nn.Conv2d(levels[0], channels, 1)

    def forward(self, secret: Tensor, images: Tensor) -> Tensor:
        """Return the residual [B, C, H, W] for secrets [B, S] of zeros and ones and pixels [B, C, H, W]."""
        height, side, channels = self.image_shape
        picture = relu(self.secret(secret - 0.5)).view(-1, channels, height, side)
        seen = torch.cat([picture, images - 0.5], 1)
        found = [seen]
        for layer in self.down:
            found.append(relu(layer(found[-1])))
        x = found[-1]
        for i, (up, join) in enumerate(zip(self.up, self.join, strict=True)):
            skips = [found[4 - i], seen] if i == len(self.up) - 1 else [found[4 - i]]
            x = relu(join(torch.cat([*skips, up(x)], 1)))
        return self.residual(x)


class Decoder(nn.Module):
    """Reads the secret back: seven convolutions, five of which halve the side, and two dense layers."""

    def __init__(self, secret_size: int, image_shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        height, side, channels = image_shape
        widths = [width, width, 2 * width, 2 * width, 2 * width, 4 * width, 4 * width]
        strides = [2, 1, 2, 1, 2, 2, 2]
        layers: list[nn.Module] = []
        c_in = channels
        for c_out, stride in zip(widths, strides, strict=True):
            layers += [nn.Conv2d(c_in, c_out, 3, stride, 1), nn.ReLU()]
            c_in = c_out
        self.body = nn.Sequential(*layers)
        cells = -(-height // 32) * -(-side // 32)
        self.hidden = nn.Linear(c_in * cells, 16 * width)
        self.bits = nn.Linear(16 * width, secret_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, S] of the bits in pixels [B, C, H, W]."""
        found = self.body(images - 0.5).contiguous().flatten(1)
        return self.bits(relu(self.hidden(found)))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean structural similarity of two batches [B, C, H, W], a scalar up to 1.

    Source: Image Quality Assessment (Wang et al., 2004), equation 13, a Gaussian window, no padding.
    """
    channels = first.shape[1]
    window = min(WINDOW, *first.shape[2:])
    at = torch.arange(window, device=first.device, dtype=first.dtype) - (window - 1) / 2
    line = torch.exp(-(at**2) / (2 * SIGMA**2))
    line = line / line.sum()
    kernel = (line[:, None] * line).expand(channels, 1, window, window).contiguous()

    def mean(values: Tensor) -> Tensor:
        return conv2d(values, kernel, groups=channels)

    mean_1, mean_2 = mean(first), mean(second)
    var_1, var_2 = mean(first * first) - mean_1**2, mean(second * second) - mean_2**2
    covariance = mean(first * second) - mean_1 * mean_2
    above = (2 * mean_1 * mean_2 + C1) * (2 * covariance + C2)
    return (above / ((mean_1**2 + mean_2**2 + C1) * (var_1 + var_2 + C2))).mean()
