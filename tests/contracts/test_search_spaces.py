"""Every shipped search space loads, expands, and has a graph for each of its trials."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from bdtune.config.expand import points
from bdtune.config.load import load_sweep, search_spaces
from bdtune.config.search import preview
from bdtune.config.trial import spec_from_dict, spec_to_dict, to_params, trial_id
from bdtune.errors import ConfigError, Problem
from bdtune.plugins.dataset import Dataset
from bdtune.report import cross
from bdtune.trials.graph import trial_graph
from bdtune.trials.results import SweepResult, TrialResult
from tests.contracts.paper_table import without_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.config.sweep import SweepSpec
    from bdtune.config.trial import TrialSpec

NAMES = [space.name for space in search_spaces()]
PAPERS = [name for name in NAMES if name.startswith("paper/")]
PAPERS_SLOW = [
    pytest.param(name, marks=[pytest.mark.slow] if name.startswith("paper/") else []) for name in NAMES
]


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan data sets that are not on this machine: the fingerprint stands for their files."""
    monkeypatch.setattr(
        Dataset, "fingerprint", lambda self, root=None, split=None: f"{self.plugin_name()}-{split}"
    )


@pytest.fixture
def cifar10_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a machine that holds CIFAR-10 and no other data set."""
    without_files(monkeypatch)
    missing = [Problem("data_root", "expected the data set", "nothing")]
    monkeypatch.setattr(
        Dataset, "check", lambda self, root=None: [] if self.plugin_name() == "cifar10" else missing
    )


def trials(spec: SweepSpec) -> Sequence[TrialSpec]:
    return points(spec) if spec.search is None else preview(spec, 20)


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_says_what_it_is_for(name: str) -> None:
    spec = load_sweep(name, check_data=False)
    assert name.rpartition("/")[2] == spec.name
    assert spec.description
    found = trials(spec)
    assert len({trial_id(trial) for trial in found}) == len(found) > 1


@pytest.mark.parametrize("name", PAPERS_SLOW)
def test_its_graphs_build_and_share_their_beginning(name: str, no_files: None) -> None:
    found = trials(load_sweep(name, check_data=False))
    stages: Counter[str] = Counter()
    distinct: dict[str, str] = {}
    data: set[str] = set()
    for trial in found:
        graph = trial_graph(trial)
        stages.update(node.name for node in graph.stages.values())
        distinct |= {recipe: node.name for recipe, node in graph.stages.items()}
        data.add(graph.data_digest)
        assert graph.stages.keys() == trial_graph(spec_from_dict(spec_to_dict(trial))).stages.keys()
    each_has_its_own_data = len(data) == len(found)
    assert len(distinct) < sum(stages.values()) or each_has_its_own_data


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_one_data_set_is_enough_for_a_plan(name: str, cifar10_alone: None) -> None:
    wanted = Counter(trial.dataset.plugin_name() for trial in trials(load_sweep(name, check_data=False)))
    if "cifar10" not in wanted:
        with pytest.raises(ConfigError) as caught:
            load_sweep(name, partial=True)
        assert {problem.path for problem in caught.value.problems} == {"data_root"}
        return
    spec = load_sweep(name, partial=True)
    assert len(trials(spec)) == wanted.pop("cifar10")
    assert {each.dataset: each.trials for each in spec.absent} == wanted


def test_published_seconds_are_of_stages_that_there_are(no_files: None) -> None:
    spec = load_sweep("paper/gssd_g2", check_data=False)
    named = {name.removeprefix("seconds/") for number in spec.published for name in number.metrics}
    roles = {role for name in named - {"defense"} for role in name.split("+")}
    assert len(roles) == 9
    for trial in trials(spec):
        assert roles <= set(trial_graph(trial).roles.values())


@pytest.mark.parametrize("name", PAPERS_SLOW)
def test_its_table_has_a_cell_for_each_published_number(name: str) -> None:
    """Before anything is run each cell says so, and has the published number that it is about."""
    spec = load_sweep(name, check_data=False)
    if spec.table is None:
        return
    planned = [TrialResult(trial_id(t), "pending", to_params(t)) for t in trials(spec)]
    table = cross.build(SweepResult(spec.name, tuple(planned)), spec.table, published=spec.published)
    cells = [
        (metric, cell)
        for line in table.lines
        for (_, metric), cell in zip(cross.heads(table), line.cells, strict=True)
    ]
    assert {cell.missing for _, cell in cells if " of " not in cell.missing} <= {"not run", "not asked"}
    shown = {(metric, cell.published) for metric, cell in cells}
    for entry in spec.published:
        if entry.params.get("defense") != "none":
            assert {(m, v) for m, v in entry.metrics.items() if m in spec.table.cells} <= shown, entry


def settings(name: str, **wanted: object) -> list[dict[str, object]]:
    """Return the settings of a space's trials, by dotted path, that have the values wanted."""
    rows = [to_params(trial) for trial in trials(load_sweep(name, check_data=False))]
    return [row for row in rows if all(row.get(path) == value for path, value in wanted.items())]


@pytest.mark.parametrize("name", ["paper/abl_1", "paper/abl_isolation", "paper/abl_rates"])
def test_abl_is_run_as_released_and_as_published(name: str) -> None:
    assert all(row["dataset.standardise"] is False for row in settings(name))  # the release: pixels in [0, 1]
    rows = settings(name, defense="abl")
    assert all(row["defense.unlearn.bn_mode"] == "train" for row in rows)
    lengths = ("defense.form", "defense.isolate.epochs", "defense.unlearn.epochs", "defense.unlearn.lr")
    found = {tuple(row[path] for path in lengths) for row in rows}
    assert found == {("recover", 10, 4, 5e-4), ("recover", 20, 20, 1e-4), ("joint", 20, 5, 5e-4)}


@pytest.mark.parametrize("name", ["paper/lfd_2", "paper/lfd_2_gtsrb", "paper/lfd_2_imagenet"])
def test_lfds_table_runs_abl_as_lfds_text_has_it(name: str) -> None:
    for row in settings(name, defense="abl"):
        assert row["defense.isolate.augment"] == row["defense.recover.augment"] == "crop_flip"
        assert row["defense.recover_on"] == "all"


def test_lfd_has_its_own_settings_on_gtsrb() -> None:
    rows = settings("paper/lfd_2_gtsrb", defense="lfd")
    assert {(row["defense.alpha"], row["defense.beta"]) for row in rows} == {(0.2, 3e-3)}


def test_iabs_cover_rows_follow_its_rate() -> None:
    rows = settings("paper/aabl_7", attack="dynamic")
    assert {(row["attack.rate"], row["attack.cover_rate"]) for row in rows} == {
        (rate, rate) for rate in (0.01, 0.05, 0.2)
    }


def test_the_default_sweep_needs_no_files() -> None:
    spec = load_sweep("gssd", ["dataset=digits"])
    assert spec.trial.dataset.plugin_name() == "digits"
    seeds = Counter(trial.seed for trial in points(spec))
    assert len(seeds) >= 2
    assert len(set(seeds.values())) == 1
    assert {"beta_nd", "beta_d", "lambda", "alpha_c", "alpha_p"} <= {
        path.removeprefix("defense.") for path in spec.axis_paths()
    }


def test_the_default_sweep_runs_on_another_data_set(no_files: None) -> None:
    words = ["dataset=cifar10", "dataset.train_limit=10000", "data_root=nowhere"]
    spec = load_sweep("gssd", words, check_data=False)
    assert spec.trial.dataset.train_limit == 10000
    assert trial_graph(points(spec)[0]).evaluate.recipe


@pytest.mark.parametrize("name", PAPERS_SLOW)
def test_it_runs_on_each_of_its_data_sets_alone(name: str) -> None:
    spec = load_sweep(name, check_data=False)
    every = [to_params(trial)["dataset"] for trial in trials(spec)]
    for dataset in dict.fromkeys(every):
        alone = trials(load_sweep(name, [f"dataset={dataset}"], check_data=False))
        assert {to_params(trial)["dataset"] for trial in alone} == {dataset}
        assert len(alone) == every.count(dataset) or spec.search is not None
