"""Several networks of one architecture as one module: their channels lie side by side.

Source: "Horizontally Fused Training Array" (HFTA, Wang et al., MLSys 2021): convolutions become grouped ones,
linear layers batched products, batch norm a norm over all channels; what has no weights stays as it is. That
is faster than `torch.func.vmap` of one network, which copies each feature map into another layout and back.

Shape letters: M members, N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, dropout
from torchvision.models.densenet import _DenseBlock, _DenseLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from bdtune.plugins.network import Network

TOLERANCE = 1e-3
"""Of the logits in float32, as a share of the largest: sums of other order differ by about 1e-6."""


class CannotFuse(Exception):  # noqa: N818 - reads as what happened
    """Networks that cannot be computed as one, for a layer or for want of memory."""


class RandomStream:
    """Torch's global generators as one training of its own would have them, for its dropout."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng(devices=_devices()):
            torch.manual_seed(seed)
            self._states = _states()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Draw from this stream inside."""
        with torch.random.fork_rng(devices=_devices()):
            torch.set_rng_state(self._states[0])
            if len(self._states) > 1:
                torch.cuda.set_rng_state(self._states[1])
            yield
            self._states = _states()


def _devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def _states() -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]


class FusedNetwork(nn.Module):
    """M networks as one: maps their inputs, side by side [N, M * C, H, W], to logits [N, M, K].

    From then on the networks' weights, gradients and buffers are views of this module's: they can still be
    used, stepped and saved one by one. Raises `CannotFuse` for a layer that is not known here.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.members = len(networks)
        self.network = _fused(networks)
        self._gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]

    def forward(self, inputs: Sequence[Tensor], streams: Sequence[RandomStream] = ()) -> Tensor:
        """Return logits [N, M, K] of one input [N, C, H, W] per member; `streams` are for their dropout."""
        for layer in self._dropouts():
            layer.streams = streams
        logits: Tensor = self.network(torch.cat(list(inputs), 1))
        return logits.unflatten(1, (self.members, -1))

    def clear_gradients(self) -> None:
        """Set all gradients to zero in place, as the members' are views of them."""
        torch._foreach_zero_(self._gradients)

    def _dropouts(self) -> list[FusedDropout]:
        return [layer for layer in self.modules() if isinstance(layer, FusedDropout)]


def rehearse(fused: FusedNetwork, networks: Sequence[Network], inputs: Sequence[Tensor]) -> int:
    """Compute a batch and its gradients in evaluation mode, which changes neither weights nor buffers.

    Returns the numbers in the largest map that a convolution gives, of one member. Raises `CannotFuse` where
    a member's logits are not those of its own network, as in one whose forward pass mixes channels.
    """
    each = [fused, *networks]
    try:
        for module in each:
            module.eval()
        logits = fused(inputs)
        logits.sum().backward()
        with torch.no_grad():
            alone = torch.stack([network(x) for network, x in zip(networks, inputs, strict=True)], 1)
        bound = TOLERANCE * float(alone.abs().max())
        if not torch.allclose(logits.detach(), alone, rtol=0, atol=bound, equal_nan=True):
            raise CannotFuse("members' logits depend on one another")
        return max((layer.size for layer in fused.modules() if isinstance(layer, FusedConv)), default=0)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # of a layer's forward pass
        raise CannotFuse(f"{type(error).__name__}: {error}") from error
    finally:
        fused.clear_gradients()
        for module in each:
            module.train()


def _fused(parts: Sequence[nn.Module]) -> Any:
    """Return one module for the same part of all networks."""
    first = parts[0]
    make = LAYERS.get(getattr(first, "computes_as", type(first)))
    if make is not None:
        return make(parts)
    if first._parameters or first._buffers:
        raise CannotFuse(f"a layer of type {type(first).__name__}")
    if first._forward_hooks or first._forward_pre_hooks:
        raise CannotFuse(f"a {type(first).__name__} with hooks")
    whole = copy.copy(first)
    whole._modules = {name: _fused([part._modules[name] for part in parts]) for name in first._modules}  # type: ignore[misc]
    return whole


def _joined(parts: Sequence[nn.Module], name: str) -> nn.Parameter | None:
    """Return a weight of all parts along its first axis; theirs become views of it, gradients too."""
    own = [getattr(part, name) for part in parts]
    if own[0] is None:
        return None
    whole = nn.Parameter(torch.cat([weight.detach() for weight in own]))
    whole.grad = torch.zeros_like(whole)
    size = len(own[0])
    pieces = zip(own, whole.detach().split(size), whole.grad.split(size), strict=True)
    for weight, value, gradient in pieces:
        weight.data, weight.grad = value, gradient
    return whole


class FusedConv(nn.Module):
    """Convolutions as one with more groups; 1x1 ones take their stride before, as narrow shortcuts do."""

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__()
        first = parts[0]
        if first.padding_mode != "zeros":
            raise CannotFuse(f"a convolution with padding mode {first.padding_mode}")
        self.weight, self.bias = _joined(parts, "weight"), _joined(parts, "bias")
        self.stride, self.padding, self.dilation = first.stride, first.padding, first.dilation
        self.members, self.groups = len(parts), len(parts) * first.groups
        self.size = 0  # numbers in a member's map, of the last batch
        self.before = first.kernel_size == (1, 1) and first.padding == (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, M * C, H, W] to the members' maps, side by side."""
        stride = self.stride
        if self.before:
            x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
        assert self.weight is not None
        maps = conv2d(x, self.weight, self.bias, stride, self.padding, self.dilation, self.groups)
        self.size = maps.numel() // self.members
        return maps


class FusedNorm(nn.Module):
    """Batch norms as one over all their channels."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__()
        first = parts[0]
        if first.momentum is None or not first.track_running_stats:
            raise CannotFuse("a batch norm without a running mean of fixed momentum")
        self.weight, self.bias = _joined(parts, "weight"), _joined(parts, "bias")
        self.momentum, self.eps = first.momentum, first.eps
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            own = [getattr(part, name) for part in parts]
            whole = torch.stack(own)
            for buffer, view in zip(own, whole, strict=True):
                buffer.data = view
            self.register_buffer(name, whole)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, M * C, ...] by channel."""
        if self.training:
            self.num_batches_tracked.add_(1)
        mean, var = self.running_mean.view(-1), self.running_var.view(-1)
        return batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)


class FusedLinear(nn.Module):
    """Linear layers as one batched product."""

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__()
        self.members = len(parts)
        self.weight, self.bias = _joined(parts, "weight"), _joined(parts, "bias")

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, M * I] to [N, M * O]."""
        x_MNI = x.reshape(len(x), self.members, -1).transpose(0, 1)
        assert self.weight is not None
        weight_MIO = self.weight.unflatten(0, (self.members, -1)).mT
        if self.bias is None:
            out_MNO = torch.bmm(x_MNI, weight_MIO)
        else:
            out_MNO = torch.baddbmm(self.bias.unflatten(0, (self.members, 1, -1)), x_MNI, weight_MIO)
        return out_MNO.transpose(0, 1).flatten(1)


class FusedDropout(nn.Module):
    """Dropouts, each with the random numbers of its own training."""

    streams: Sequence[RandomStream] = ()

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__()
        self.members, self.p = len(parts), parts[0].p

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of [N, M * C, ...]."""
        if not self.training:
            return x
        dropped = []
        for stream, own in zip(self.streams, x.chunk(self.members, 1), strict=True):
            with stream.current():
                dropped.append(dropout(own.contiguous(), self.p))
        return torch.cat(dropped, 1)


class FusedDenseLayer(_DenseLayer):
    """A layer of a dense block, whose inputs are put together member by member."""

    members: int

    def bn_function(self, inputs: list[Tensor]) -> Tensor:
        """Return the bottleneck of several maps [N, M * C, H, W]."""
        found: Tensor = self.conv1(self.relu1(self.norm1(side_by_side(inputs, self.members))))
        return found


class FusedDenseBlock(_DenseBlock):
    """A dense block, whose outputs are put together member by member."""

    members: int

    def forward(self, init_features: Tensor) -> Tensor:
        """Return the maps of all layers."""
        maps = [init_features]
        for layer in self.values():
            maps.append(layer(maps))
        return side_by_side(maps, self.members)


def side_by_side(maps: Sequence[Tensor], members: int) -> Tensor:
    """Concatenate maps [N, M * C, H, W] within each member, channels last."""
    by_member = [each.permute(0, 2, 3, 1).unflatten(3, (members, -1)) for each in maps]
    return torch.cat(by_member, 4).flatten(3).permute(0, 3, 1, 2)


def _dense(kind: type[nn.Module]) -> Callable[[Sequence[Any]], nn.Module]:
    """Return what fuses torchvision's dense layers or blocks: their form stays, as a `kind`."""

    def make(parts: Sequence[Any]) -> nn.Module:
        if getattr(parts[0], "drop_rate", 0.0) or getattr(parts[0], "memory_efficient", False):
            raise CannotFuse("a dense layer with dropout, or with recomputed maps")
        whole: Any = copy.copy(parts[0])
        whole._modules = {name: _fused([part._modules[name] for part in parts]) for name in whole._modules}
        whole.__class__, whole.members = kind, len(parts)
        return whole

    return make


LAYERS: dict[type[nn.Module], Callable[[Sequence[Any]], nn.Module]] = {
    nn.Conv2d: FusedConv,
    nn.BatchNorm1d: FusedNorm,
    nn.BatchNorm2d: FusedNorm,
    nn.Linear: FusedLinear,
    nn.Dropout: FusedDropout,
    _DenseLayer: _dense(FusedDenseLayer),
    _DenseBlock: _dense(FusedDenseBlock),
}
"""What is known to be computed for several members at once, by the very type of a layer."""
