"""Starts of a campaign of toy sweeps, each a process and a Ray session of its own."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.end_to_end.kills import SPACE, Runs, metrics

if TYPE_CHECKING:
    from pathlib import Path

_TRIAL = SPACE[SPACE.index("  dataset") : SPACE.index("grid:")]
_TRIAL = "".join(f"    {line}\n" for line in _TRIAL.splitlines())


def sweep(name: str, axes: dict[str, list[float]]) -> str:
    """Return a sweep of toy trials as an entry of a campaign's file."""
    grid = "".join(f"      defense.{path}: {values}\n" for path, values in axes.items())
    return f"  - name: {name}\n    trial:\n{_TRIAL}    grid:\n{grid}    select: {{metric: oracle_acc}}\n"


LEVELS = sweep("levels", {"prefix.level": [0, 1], "beta": [0.3]})
BETAS = sweep("betas", {"beta": [0.3, 0.45, 0.5]})
QUALITIES = sweep("qualities", {"tail.quality": [0.5, 1.0], "beta": [0.5]})


class CampaignRuns(Runs):
    """Starts of one campaign; several of them may have one run directory."""

    def __init__(self, folder: Path, name: str, *sweeps: str, slower: float = 1.0) -> None:
        text = f"name: {name}\ntable: {{rows: [defense.beta], cells: [acc]}}\nsweeps:\n{''.join(sweeps)}"
        super().__init__(folder, slower, space=text)
        self.verb = "campaign"


class Together(CampaignRuns):
    """Starts of another campaign in the run directory of a first one."""

    def __init__(self, first: CampaignRuns, name: str, *sweeps: str) -> None:
        super().__init__(first.folder / name, name, *sweeps)
        self.home, self.log = first.home, first.log


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """Return status and metrics by sweep and trial, and the cells of the campaign's tables."""
    cells = {
        stem: [(each["row"], each["mean"], each["missing"]) for each in table["cells"]]
        for stem, table in result["tables"].items()
    }
    return {"tables": cells, **{name: metrics(each) for name, each in result["sweeps"].items()}}


def computed(runs: Runs) -> Counter[str]:
    """Return how many results of each toy stage the store has."""
    return Counter(manifest.name for manifest in runs.store.entries() if manifest.name.startswith("toy"))
