from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bdtune.cluster.trial_source import make_source
from bdtune.config.load import load_sweep
from bdtune.verbs.search_pictures import draw

pytestmark = pytest.mark.slow

SPACE = """
trial: {dataset: tiny, attack: badnets, defense: toy, model: linear}
search:
  sampler: random
  trials: 6
  space: {defense.beta: {uniform: [0, 1]}, attack.rate: {choice: [0.1, 0.2]}}
  metric: METRIC
"""


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """Return a search of which some trials ended."""
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "plugins"))

    def run(metric, trials):
        (tmp_path / "s.yaml").write_text(SPACE.replace("METRIC", metric))
        spec = load_sweep(tmp_path / "s.yaml")
        source = make_source(spec, tmp_path / "study")
        for _ in range(trials):
            ticket, trial = source.ask()
            source.tell(ticket, [trial.defense.beta, 1 - trial.attack.rate][: len(spec.objectives)])
        return spec, tmp_path / "study"

    return run


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        ("oracle_acc", {"search-importance.png", "search-parallel.png"}),
        (
            "[oracle_acc, oracle_asr]",
            {
                f"search-{plot}-{rule}.png"
                for plot in ("importance", "parallel")
                for rule in ("oracle_acc", "oracle_asr")
            },
        ),
    ],
)
def test_a_search_is_drawn_by_importance_and_parallel_coordinates(searched, metric, names):
    spec, folder = searched(metric, 6)
    paths = draw(spec, folder)
    assert {path.name for path in paths} == names
    for path in paths:
        pixels = Image.open(path).convert("L")
        assert pixels.width > 500
        assert pixels.getextrema()[0] < 100  # something is drawn
    assert draw(spec, folder) == paths


@pytest.mark.parametrize("trials", [0, 1])
def test_nothing_is_drawn_of_too_few_trials(searched, trials, caplog):
    assert draw(*searched("oracle_acc", trials)) == []
    assert caplog.text == ""
