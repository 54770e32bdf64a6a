"""Time of training K flows together, beside the same flows one by one: `python tests/benchmarks/flows.py`.

The one-by-one loop is the obvious program: a `torch.nn.Module` per class, autograd and `torch.optim.Adam`,
once with its default settings and once with `fused=True`. All three run in turn within one process; the best
of several rounds counts.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Context
from bdtune.training._flowtrainer import FlowTrainer
from bdtune.training.flows import Flows

if TYPE_CHECKING:
    from collections.abc import Callable


class Flow(nn.Module):
    """One class's flow, written with autograd."""

    def __init__(self, features: int) -> None:
        super().__init__()
        half = features // 2
        self.shift = nn.ParameterList([nn.Parameter(torch.zeros(features)) for _ in range(2)])
        self.log_scale = nn.ParameterList([nn.Parameter(torch.zeros(features)) for _ in range(2)])
        nets = [nn.Sequential(nn.Linear(half, half), nn.ReLU(), nn.Linear(half, features)) for _ in range(2)]
        for net in nets:
            nn.init.zeros_(net[2].weight)
            nn.init.zeros_(net[2].bias)
        self.nets = nn.ModuleList(nets)

    def initialise(self, x: torch.Tensor) -> None:
        """Set the actnorms from the first batch."""
        with torch.no_grad():
            for shift, log_scale in zip(self.shift, self.log_scale, strict=True):
                shift.copy_(x.mean(0))
                log_scale.copy_((x.std(0) + 1e-6).log())
                first, second = ((x - shift) * torch.exp(-log_scale)).chunk(2, dim=1)
                x = torch.cat([second, first], dim=1)  # a fresh coupling is the identity

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the log-density per dimension, [B]."""
        logdet: torch.Tensor | float = 0.0
        for step, net in enumerate(self.nets):
            x = (x - self.shift[step]) * torch.exp(-self.log_scale[step])
            first, second = x.chunk(2, dim=1)
            ratio, shift = net(first).chunk(2, dim=1)
            ratio = torch.tanh(ratio)
            second = torch.exp(ratio) * second + shift
            logdet = logdet + ratio.sum(1) - self.log_scale[step].sum()
            x = torch.cat([second, first] if step == 0 else [first, second], dim=1)
        log_p = -0.5 * x.square().sum(1) - 0.5 * x.shape[1] * float(np.log(2 * np.pi)) + logdet
        return log_p / x.shape[1]


def one_by_one(z: torch.Tensor, classes: int, fused: bool) -> Callable[[], None]:
    """Return a function that trains every class for one epoch, one after the other."""
    parts = z.view(classes, -1, z.shape[1])
    flows = [Flow(z.shape[1]).to(z.device) for _ in range(classes)]
    adams = [
        torch.optim.Adam(flow.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=fused or None) for flow in flows
    ]
    for flow, part in zip(flows, parts, strict=True):
        flow.initialise(part[:16])

    def epoch() -> None:
        for flow, adam, part in zip(flows, adams, parts, strict=True):
            for rows in torch.randperm(len(part), device=z.device).split(16):
                adam.zero_grad()
                (-flow(part[rows]).mean()).backward()
                adam.step()

    return epoch


def together(z: torch.Tensor, classes: int) -> Callable[[], None]:
    """Return a function that trains all classes for one epoch with `Flows`."""
    labels = np.repeat(np.arange(classes), len(z) // classes)
    ctx = Context(numerics=Numerics(device=z.device.type))  # type: ignore[arg-type]
    trainer = FlowTrainer(Flows(), z.cpu().numpy(), labels, classes, ctx)
    epochs = iter(range(10**6))
    return lambda: trainer.epoch(next(epochs) % 40)  # type: ignore[return-value]


def seconds(epoch: Callable[[], None], device: str) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    epoch()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print one line per number of classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 43, 200])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--batches", type=int, default=4, help="batches of 16 per class and epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, d={args.features}")
    print("ms per epoch and class    loop, Adam  loop, fused   together   ratio  ratio to fused")
    for classes in args.classes:
        z = torch.randn(classes * args.batches * 16, args.features, device=args.device)
        ways = [one_by_one(z, classes, False), one_by_one(z, classes, True), together(z, classes)]
        for way in ways:
            seconds(way, args.device)  # warm up
        rounds = [[seconds(way, args.device) for way in ways] for _ in range(args.rounds)]
        best = [1000 * min(times) / classes for times in zip(*rounds, strict=True)]
        print(
            f"K = {classes:<22}{best[0]:10.2f}{best[1]:13.2f}{best[2]:11.2f}"
            f"{best[0] / best[2]:8.2f}{best[1] / best[2]:16.2f}"
        )


if __name__ == "__main__":
    main()
