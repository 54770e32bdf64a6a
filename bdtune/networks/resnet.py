"""Residual networks of any depth and width, out of torchvision's basic block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from torch.nn.functional import conv2d, relu
from torchvision.models.resnet import BasicBlock

from bdtune.plugins.network import Pooled, initialise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bdtune.plugins.network import Network


NARROW = 16
"""Channels below which oneDNN 3.13 writes beyond its buffers in the gradient of a 1x1 convolution with a
stride, on channels-last images of 48 pixels and more."""


class Shortcut(nn.Conv2d):
    """A 1x1 convolution with a stride; with few channels the stride is taken before, as the same sum."""

    computes_as: ClassVar[type[nn.Module]] = nn.Conv2d
    """The layer whose sums it computes: as that it is computed together with those of other networks."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels >= NARROW:
            return super().forward(x)
        down, across = self.stride
        return conv2d(x[:, :, ::down, ::across], self.weight)


class PreActBlock(nn.Module):
    """The basic block with norm and ReLU before each convolution (He et al. 2016, figure 4e)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        changes = stride != 1 or c_in != c_out
        self.shortcut = Shortcut(c_in, c_out, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, c_in, H, W] to [N, c_out, H/stride, W/stride]."""
        active = relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(relu(self.norm2(self.conv1(active)))) + skip


@dataclass(frozen=True)
class LastBlock:
    """The last block of a residual network, with what is around it."""

    before: nn.Sequential  # the network's body up to that block
    rest: nn.Sequential  # that block and what follows, without the head
    conv: nn.Conv2d  # its first convolution, whose outputs are the block's inner channels
    norm: nn.BatchNorm2d  # the norm of these
    reader: nn.Conv2d  # the second convolution, which reads them


def last_block(network: Network) -> LastBlock:
    """Return the last block of a network out of this file."""
    body = network.body
    assert isinstance(body, nn.Sequential), "whoever asks has checked that the network is residual"
    at = max(i for i, layer in enumerate(body) if isinstance(layer, BasicBlock | PreActBlock))
    block: Any = body[at]
    norm = block.bn1 if isinstance(block, BasicBlock) else block.norm2
    return LastBlock(body[:at], body[at:], block.conv1, norm, block.conv2)


def _basic_block(c_in: int, c_out: int, stride: int) -> nn.Module:
    shortcut = None
    if stride != 1 or c_in != c_out:
        shortcut = nn.Sequential(Shortcut(c_in, c_out, stride), nn.BatchNorm2d(c_out))
    return BasicBlock(c_in, c_out, stride, shortcut)


def _stem(channels: int, width: int, small: bool, preact: bool) -> list[nn.Module]:
    if not small:
        conv = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
    return [conv] if preact else [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def residual_network(
    num_classes: int,
    channels: int,
    *,
    blocks: Sequence[int],
    widths: Sequence[int],
    stem_width: int,
    small: bool,
    preact: bool = False,
    final_norm: bool = False,
) -> Pooled:
    """Return a residual network; stage i has `blocks[i]` blocks of `widths[i]` channels and halves the side.

    The first stage keeps it. `small` picks the CIFAR stem, `preact` the pre-activation form; `final_norm`
    adds norm and ReLU after the last block.
    """
    block = PreActBlock if preact else _basic_block
    layers = _stem(channels, stem_width, small, preact)
    c_in = stem_width
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for index in range(count):
            layers.append(block(c_in, width, 2 if stage > 0 and index == 0 else 1))
            c_in = width
    if final_norm:
        layers += [nn.BatchNorm2d(c_in), nn.ReLU(inplace=True)]
    network = Pooled(nn.Sequential(*layers), c_in, num_classes)
    initialise(network)
    return network
