"""Writes the table of the papers' search spaces: python -m tests.contracts.paper_table

Nothing is computed, and no data set is needed: known sizes stand for the files. Hours are those of a GPU that
takes as long for GSSD's retraining on CIFAR-10 as its authors' did.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

from bdtune.config.expand import points
from bdtune.config.load import load_sweep, search_spaces
from bdtune.engine.resolve import Resolver
from bdtune.engine.store import Store
from bdtune.plugins.dataset import Dataset
from bdtune.trials import ledger as ledgers
from bdtune.trials.ledger import Ledger
from bdtune.trials.speed import AROUND, Speed

PAGE = Path(__file__).parents[2] / "search_spaces" / "README.md"
BEGIN, END = "<!-- papers -->", "<!-- end of papers -->"
MISSING = "Missing: "
HEAD = ["space", "what it runs", "data sets", "trials", "baselines", "stages", "GPU hours", "missing"]
IMAGES = {
    "cifar10": (50_000, 10_000, 32),
    "gtsrb": (39_209, 12_630, 32),
    "tiny_imagenet": (100_000, 10_000, 64),
    "mnist": (60_000, 10_000, 28),
    "imagenet30": (39_000, 3_000, 224),
    "vggface2_30": (9_000, 2_250, 224),
}
"""Training images, test images, side in pixels."""
RETRAINED_S = 2945
"""GSSD's retraining and tuning on CIFAR-10 (table G.2): 200 epochs of ResNet-18."""
RESNET18 = 1.11e9
"""Operations of its forward pass on an image of 32 pixels."""


class KnownSpeed(Speed):
    """The speed of the GPU of GSSD's authors."""

    def _pace(self, numerics: object) -> float:
        return 200 * IMAGES["cifar10"][0] * AROUND * RESNET18 / RETRAINED_S


def without_files(patch: pytest.MonkeyPatch) -> None:
    """Let known sizes stand for the files of data sets."""

    def labels(self: Dataset, split: str, root: Path | None = None) -> np.ndarray:
        return np.arange(IMAGES[self.plugin_name()][split == "test"]) % self.num_classes

    def shape(self: Dataset, root: Path | None = None) -> tuple[int, int, int]:
        return (*[self.image_size or IMAGES[self.plugin_name()][2]] * 2, 3)

    def fingerprint(self: Dataset, root: Path | None = None, split: str | None = None) -> str:
        return f"{self.plugin_name()}-{split}"

    for name, stand_in in (("labels", labels), ("image_shape", shape), ("fingerprint", fingerprint)):
        patch.setattr(Dataset, name, stand_in)
    patch.setattr(ledgers, "must_stream", lambda *_: False)


def row(name: str, store: Store) -> list[str]:
    """Return the cells of a space."""
    spec = load_sweep(name, check_data=False)
    ledger = Ledger(spec.name, Resolver(store), "cuda")
    ledger.extend(points(spec))
    plan = ledger.plan(KnownSpeed())
    stages = sum(count.unique for count in plan.stages.values())
    what = re.split(r": |, for a GPU|, as ", spec.description, maxsplit=1)[0]
    hours = plan.seconds_shared / 3600
    datasets = dict.fromkeys(trial.dataset.plugin_name() for trial in points(spec))
    missing = [note.removeprefix(MISSING) for note in spec.notes if note.startswith(MISSING)]
    counts = [len(points(spec)), plan.baselines, stages, f"{hours:,.{0 if hours >= 10 else 1}f}"]
    return [f"`{name}`", what, ", ".join(datasets), *map(str, counts), "; ".join(missing)]


def table() -> str:
    """Return the table of all spaces of papers."""
    names = [space.name for space in search_spaces() if space.name.startswith("paper/")]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        without_files(patch)
        rows = [row(name, Store(Path(folder), create=False)) for name in names]
    lines = [HEAD, ["---", "---", "---", *["---:"] * 4, "---"], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
