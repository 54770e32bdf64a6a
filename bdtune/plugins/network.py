"""What every network is: features of width d, then one linear layer."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle


class Network(nn.Module):
    """A classifier that lets others reach the features before its last layer.

    `features` maps normalised images [N, C, H, W] to [N, d]; `head` maps these to logits [N, K].
    """

    head: nn.Linear

    @property
    def feature_dim(self) -> int:
        """The width d of the features."""
        return self.head.in_features

    @abstractmethod
    def features(self, images_NCHW: Tensor) -> Tensor:
        """Return [N, d], what the last layer sees."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return logits [N, K]."""
        logits: Tensor = self.head(self.features(images_NCHW))
        return logits

    @property
    def layers(self) -> dict[str, nn.Module]:
        """Its parts by name, from the input to "head": each weight is in one of them.

        For rates by depth, and for losses that compare what networks compute inside.
        """
        parts = dict(self.named_children())
        head = parts.pop("head")
        if len(parts) == 1:
            name, body = parts.popitem()
            parts = {f"{name}.{inner}": part for inner, part in body.named_children()} or {name: body}
        return {**parts, "head": head}

    def with_layers(self, images_NCHW: Tensor, names: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits [N, K] and what the named layers give on the way, with gradients."""
        layers, found = self.layers, {}

        def keep(name: str) -> RemovableHandle:
            return layers[name].register_forward_hook(lambda _layer, _inputs, out: found.update({name: out}))

        hooks = [keep(name) for name in names]
        try:
            with uncompiled(self):  # compiled code does not look for hooks
                return self(images_NCHW), found
        finally:
            for hook in hooks:
                hook.remove()

    def with_maps(self, images_NCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits [N, K] and the feature maps [N, C, H, W] of each group of layers, with gradients.

        A group is what gives maps of one size: of its last layer, by that layer's name, the first group
        first. Maps of one position are left out, unless there are no others; a network without convolutions
        has none.
        """
        logits, found = self.with_layers(images_NCHW, [name for name in self.layers if name != "head"])
        maps = {name: out for name, out in found.items() if out.ndim == 4}
        larger = {name: out for name, out in maps.items() if out.shape[2] * out.shape[3] > 1} or maps
        last = {tuple(out.shape[2:]): name for name, out in larger.items()}
        return logits, {name: larger[name] for name in last.values()}


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Let a network pass as it was written inside."""
    parts = [part for part in network.children() if part._compiled_call_impl is not None]
    before = [part._compiled_call_impl for part in parts]
    for part in parts:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, compiled in zip(parts, before, strict=True):
            part._compiled_call_impl = compiled


class Pooled(Network):
    """A convolutional body, averaged over all positions, and a linear head."""

    def __init__(self, body: nn.Module, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(feature_dim, num_classes)

    def features(self, images_NCHW: Tensor) -> Tensor:
        # in float32, since bf16 would round the features; a mean, since adaptive pooling has no
        # deterministic gradient on a GPU
        maps: Tensor = self.body(images_NCHW)
        return maps.float().mean((2, 3))


def initialise(module: nn.Module) -> None:
    """Draw convolutions from He's normal (fan out) and set norms to identity, as torchvision does."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
