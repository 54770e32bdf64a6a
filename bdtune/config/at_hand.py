"""Which trials' data sets are at hand, so that a plan can be made of the others' absence too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bdtune.config.trial import TrialSpec
    from bdtune.errors import Problem
    from bdtune.plugins.dataset import Dataset


@dataclass(frozen=True)
class Absent:
    """A data set without files, and the trials that a plan leaves out for it."""

    dataset: str
    trials: int
    problem: Problem

    def line(self) -> str:
        """Return one line for a person: which, how many trials, what to do."""
        count = f"{self.trials} trial{'' if self.trials == 1 else 's'}"
        lack = f"not in {self.problem.where}" if self.problem.where else "not found"
        return f"left out: {count} on {self.dataset}, which is {lack}. {self.problem.hint}"

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune plan --json` prints."""
        return {"dataset": self.dataset, "trials": self.trials, "why": str(self.problem)}


def absence(dataset: Dataset, root: Path | None) -> Problem | None:
    """Return why a data set is not there; None where it is, be it wrong or right."""
    return next((problem for problem in dataset.check(root) if problem.path == "data_root"), None)


def parted(trials: Iterable[TrialSpec]) -> tuple[list[TrialSpec], tuple[Absent, ...]]:
    """Return the trials whose data sets are there, and what the others lack, by the data set's name."""
    looked: dict[tuple[Dataset, Path | None], Problem | None] = {}
    present: list[TrialSpec] = []
    problems: dict[str, Problem] = {}
    counts: dict[str, int] = {}
    for trial in trials:
        place = trial.dataset, trial.data_root
        if place not in looked:
            looked[place] = absence(*place)
        problem, name = looked[place], trial.dataset.plugin_name()
        if problem is None:
            present.append(trial)
        else:
            problems.setdefault(name, problem)
            counts[name] = counts.get(name, 0) + 1
    return present, tuple(Absent(name, counts[name], problem) for name, problem in problems.items())
