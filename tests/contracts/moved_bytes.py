"""How large the results of GSSD and LfD are with the papers' settings, from shapes; nothing is trained.

To write the table of bdtune/README.md anew: python -m tests.contracts.moved_bytes

Arrays alone are counted: a file's header and curves are a few kilobytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bdtune.config.expand import points
from bdtune.config.load import load_sweep
from bdtune.engine.plan import StageCount
from bdtune.engine.traffic import Traffic
from bdtune.report.table import size
from bdtune.training._flowbank import FlowShape
from bdtune.training.weights import HEAD, PREFIX
from bdtune.trials.graph import trial_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bdtune.config.sweep import SweepSpec
    from bdtune.engine.node import Node

PAGE = Path(__file__).parents[2] / "bdtune/README.md"
BEGIN, END = "<!-- moved -->", "<!-- end of moved -->"
SHOWN = {
    "GSSD": ("paper/gssd_k1", "attack={preset: gssd/lc}"),
    "LfD": ("paper/lfd_2", "attack={preset: lfd/cl}", "defense=lfd"),
}
"""A trial of each paper, under an attack that crafts images."""
SWEEPS = ("paper/gssd_k1", "paper/gssd_k2", "paper/gssd_k4")
LAID_OUT = 500
F32, I64, F64 = 4, 8, 8


@dataclass(frozen=True)
class Sizes:
    """Sizes of results in bytes, for a data set of so many training images of this shape."""

    samples: int = 50_000
    classes: int = 10
    image: tuple[int, int, int] = (32, 32, 3)
    known: dict[str, int] = field(default_factory=dict)

    def bytes(self, node: Node) -> int:
        """Return the size of a node's arrays; of a subset of the samples the largest that it can be."""
        if node.recipe not in self.known:
            self.known[node.recipe] = RULES[node.name](self, node)
        return self.known[node.recipe]

    def state(self, node: Node) -> dict[str, torch.Tensor]:
        """Return the network that a node trains, without its numbers."""
        model: Any = node.inputs["model"]
        with torch.device("meta"):
            network: dict[str, torch.Tensor] = model.plugin.build(self.classes, self.image).state_dict()
        return network

    def weights(self, node: Node) -> int:
        return _bytes(self.state(node).values())

    def backbone(self, node: Node) -> int:
        return _bytes(v for name, v in self.state(node).items() if not (PREFIX + name).startswith(HEAD))

    def width(self, node: Node) -> int:
        """Return the number of a network's features."""
        return self.state(node)["head.weight"].shape[1]

    def flows(self, node: Node) -> int:
        stage, features = node.stage, _input(node, "features")
        shape = FlowShape(self.width(features), stage.depth, stage.width)  # type: ignore[attr-defined]
        each = sum(math.prod(parameter) for parameter in shape.parameters().values())
        return self.classes * (each * F32 + I64)

    def crafted(self, node: Node) -> int:
        return self.samples // self.classes * (I64 + math.prod(self.image))


def _bytes(values: Iterable[torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)


def _input(node: Node, name: str) -> Node:
    found: Any = node.inputs[name]
    return found


def _traced(sizes: Sizes, node: Node) -> int:
    epochs: int = node.stage.epochs  # type: ignore[attr-defined]
    return sizes.weights(node) + epochs * sizes.samples * F32


def _subset(sizes: Sizes, node: Node) -> int:
    return sizes.samples * (I64 + I64)


def _nothing(sizes: Sizes, node: Node) -> int:
    return 0


RULES: dict[str, Callable[[Sizes, Node], int]] = {
    "all_samples": _subset,
    "supervised": Sizes.weights,
    "evaluate": _nothing,
    "diagnose": _nothing,
    "robust_surrogate": _traced,
    "crafted_images": Sizes.crafted,
    "simclr": Sizes.backbone,
    "features": lambda sizes, node: (sizes.samples * F32 + F32 + F32 + I64) * sizes.width(node),
    "flows": Sizes.flows,
    "density": lambda sizes, _: sizes.samples * (sizes.classes * F32 + I64),
    "class_tests": lambda sizes, _: sizes.classes * (1 + F64),
    "split": _subset,
    "relabel": _subset,
    "finetune": Sizes.weights,
    "lfd_teacher": _traced,
    "sample_losses": lambda sizes, _: sizes.samples * (F64 + I64),
    "lfd_threshold": lambda sizes, _: F64 + sizes.samples,
    "lfd_weights": lambda sizes, _: sizes.samples * F32,
    "embedding": lambda sizes, _: min(LAID_OUT, sizes.samples) * (I64 + 2 * F32),
    "lfd_student": Sizes.weights,
}
"""By a stage's name: what its docstring says of its arrays."""
HELD = {
    "simclr": "weights of the encoder",
    "features": "features [N, 512]",
    "flows": "a flow for each class",
    "density": "log-densities [N, K], labels",
    "class_tests": "a verdict for each class",
    "split": "rows and labels that are kept",
    "relabel": "rows and labels that are new",
    "crafted_images": "crafted images [N / K, 32, 32, 3]",
    "all_samples": "rows and labels",
    "robust_surrogate": "weights, losses by epoch [100, N]",
    "lfd_teacher": "weights, losses by epoch [5, N]",
    "sample_losses": "losses, predictions [N]",
    "lfd_threshold": "which rows are candidates",
    "lfd_weights": "a weight for each row",
    "embedding": "500 points for the picture",
}


def first_trial(words: tuple[str, ...]) -> list[Node]:
    """Return the goals of a paper's trial, on the built-in data set: its stages are those of any other."""
    return trial_graph(points(_space(*words))[0]).goals


def _space(name: str, *words: str) -> SweepSpec:
    return load_sweep(name, ["dataset=digits", *words])


def moved(goals: Iterable[list[Node]], sizes: Sizes) -> dict[str, StageCount]:
    """Return what trials write and read by stage, in an empty store, where no results turn out equal."""
    stages: dict[str, StageCount] = {}
    traffic, computed = Traffic(stages, sizes), set[str]()
    for nodes in goals:
        traffic.next_trial()
        for step in {step.recipe: step for node in nodes for step in node.walk()}.values():
            stages.setdefault(step.stage.full_name(), StageCount())
            traffic.enter(step, None, None)
            if step.recipe not in computed:
                computed.add(step.recipe)
                traffic.compute(step)
    return stages


def table() -> str:
    """Return the sizes by stage, then what whole tables of the paper move."""
    rows = [("trial", "stage", "result", "bytes", "reads"), ("---", "---", "---", "---:", "---:")]
    sizes = Sizes()
    for paper, words in SHOWN.items():
        steps = {step.recipe: step for node in first_trial(words) for step in node.walk()}.values()
        for step in steps:
            own, read = sizes.bytes(step), sum(map(sizes.bytes, step.parents))
            if own:
                held = HELD.get(step.name, "weights of the classifier")
                rows.append((paper, step.name, held, size(own), size(read) if read else "-"))
    whole = [("table", "trials", "written", "read, at most"), ("---", "---:", "---:", "---:")]
    for name in SWEEPS:
        trials = points(_space(name))
        counts = moved((trial_graph(trial).goals for trial in trials), sizes).values()
        written, read = (sum(getattr(count, what) for count in counts) for what in ("written", "read"))
        whole.append((f"`{name}`", str(len(trials)), size(written), size(read)))
    return "\n\n".join("\n".join("| " + " | ".join(row) + " |" for row in each) for each in (rows, whole))


def written() -> str:
    """Return the tables on the page."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
