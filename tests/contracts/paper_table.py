"""Writes the tables of the papers' search spaces and campaigns: python -m tests.contracts.paper_table

Nothing is computed, and no data set is needed: known sizes stand for the files. Hours are those of a GPU that
takes as long for GSSD's retraining on CIFAR-10 as its authors' did.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bdtune.config.expand import points
from bdtune.config.load import campaigns, load_sweep, search_spaces
from bdtune.engine.resolve import Resolver
from bdtune.engine.store import Store
from bdtune.plugins.dataset import Dataset
from bdtune.trials import ledger as ledgers
from bdtune.trials.ledger import Ledger
from bdtune.trials.speed import Speed
from bdtune.verbs import campaign_plan

if TYPE_CHECKING:
    from bdtune.errors import Problem

PAGE = Path(__file__).parents[2] / "search_spaces" / "README.md"
SPACES, CAMPAIGNS = "papers", "campaigns"
"""What stands between `<!-- papers -->` and `<!-- end of papers -->`, and so on."""
MISSING = "Missing: "
HEAD = ["space", "what it runs", "data sets", "trials", "baselines", "stages", "GPU hours", "missing"]
CAMPAIGN_HEAD = [
    "campaign", "sweeps", "trials", "baselines", "stages", "as sweeps", "not shared", "GPU hours",
    "as sweeps", "not shared", "saved", "saved in all",
]  # fmt: skip
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
IMAGES_PER_S = 200 * IMAGES["cifar10"][0] / RETRAINED_S
"""Of a training of ResNet-18 on the GPU of GSSD's authors: `speed.images_per_s`."""


def without_files(patch: pytest.MonkeyPatch) -> None:
    """Let known sizes stand for the files of data sets."""

    def labels(self: Dataset, split: str, root: Path | None = None) -> np.ndarray:
        return np.arange(IMAGES[self.plugin_name()][split == "test"]) % self.num_classes

    def shape(self: Dataset, root: Path | None = None) -> tuple[int, int, int]:
        return (*[self.image_size or IMAGES[self.plugin_name()][2]] * 2, 3)

    def fingerprint(self: Dataset, root: Path | None = None, split: str | None = None) -> str:
        return f"{self.plugin_name()}-{split}"

    def check(self: Dataset, root: Path | None = None) -> list[Problem]:
        return []

    stand_ins = {"labels": labels, "image_shape": shape, "fingerprint": fingerprint, "check": check}
    for name, stand_in in stand_ins.items():
        patch.setattr(Dataset, name, stand_in)
    patch.setattr(ledgers, "must_stream", lambda *_: False)


def row(name: str, store: Store) -> list[str]:
    """Return the cells of a space."""
    spec = load_sweep(name, check_data=False)
    ledger = Ledger(spec.name, Resolver(store), "cuda")
    ledger.extend(points(spec))
    plan = ledger.plan(Speed(images_per_s=IMAGES_PER_S))
    stages = sum(count.unique for count in plan.stages.values())
    what = re.split(r": |, for a GPU|, as ", spec.description, maxsplit=1)[0]
    datasets = dict.fromkeys(trial.dataset.plugin_name() for trial in points(spec))
    missing = [note.removeprefix(MISSING) for note in spec.notes if note.startswith(MISSING)]
    counts = [len(points(spec)), plan.baselines, stages, hours_of(plan.seconds_shared)]
    return [f"`{name}`", what, ", ".join(datasets), *map(str, counts), "; ".join(missing)]


def hours_of(seconds: float) -> str:
    """Return hours as a cell."""
    hours = seconds / 3600
    return f"{hours:,.{0 if hours >= 10 else 1}f}"


def campaign_row(name: str, folder: Path) -> list[str]:
    """Return the cells of a campaign, as `bdtune plan` counts it."""
    made = campaign_plan.plan(name, [f"speed.images_per_s={IMAGES_PER_S}"], folder)
    whole, counts = made.whole, made.whole.stages.values()
    stages = sum(count.unique for count in counts)
    every = sum(count.without_sharing for count in counts)
    apart = sum(sweep.stages for sweep in made.sweeps)
    alone = sum(sweep.alone_s or 0.0 for sweep in made.sweeps)
    hours = [hours_of(each) for each in (whole.seconds_shared, alone, whole.seconds_unshared)]
    factors = [f"{each / whole.seconds_shared:.2f}" for each in (alone, whole.seconds_unshared)]
    sizes = [len(made.sweeps), whole.trials, whole.baselines, stages, apart, every]
    return [f"`{name}`", *map(str, sizes), *hours, *factors]


def table() -> str:
    """Return the table of all spaces of papers."""
    names = [space.name for space in search_spaces() if space.name.startswith("paper/")]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        without_files(patch)
        rows = [row(name, Store(Path(folder), create=False)) for name in names]
    return pipes([HEAD, ["---", "---", "---", *["---:"] * 4, "---"], *rows])


def campaign_table() -> str:
    """Return the table of all campaigns of papers."""
    names = [campaign.name for campaign in campaigns() if campaign.name.startswith("paper/")]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        without_files(patch)
        rows = [campaign_row(name, Path(folder)) for name in names]
    return pipes([CAMPAIGN_HEAD, ["---", *["---:"] * (len(CAMPAIGN_HEAD) - 1)], *rows])


def pipes(lines: list[list[str]]) -> str:
    """Return lines of cells as Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def put(page: str, mark: str, text: str) -> str:
    """Return a page with a text between the marks of its table."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    written = put(PAGE.read_text(encoding="utf-8"), CAMPAIGNS, campaign_table())
    PAGE.write_text(put(written, SPACES, table()), encoding="utf-8")
