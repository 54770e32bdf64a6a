"""The pictures of the best trials beside the sweep's table."""

from __future__ import annotations

import pytest

from bdtune.config.load import load_trial
from bdtune.engine.execute import Executor
from bdtune.engine.store import Store
from bdtune.reading.resident import InProcess
from bdtune.trials.ledger import Ledger
from bdtune.verbs.pictures import Gallery

BASE = ["dataset=digits", "dataset.side=16", "dataset.train_limit=60", "attack=badnets", "model=lenet_s"]
QUICK = ["numerics.device=cpu", "numerics.precision=fp32"]
DEFENSES = {
    "lfd": ["defense.teacher.epochs=2", "defense.teacher.model=lenet_s", "defense.student.epochs=1"],
    "abl": ["defense.isolate.epochs=2", "defense.recover.epochs=1", "defense.unlearn.epochs=1"],
    "adversarial_training": ["defense.train.epochs=1", "defense.train.pgd.steps=1"],
    "aabl": ["defense.naive.epochs=1", "defense.train.epochs=1", "defense.train.pgd.steps=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFENSES)
def test_the_best_trials_pictures_are_placed_beside_the_table(tmp_path, name):
    executor = Executor(Store(tmp_path / "store"), InProcess(None))
    ledger = Ledger("sweep", executor.resolver)
    entry = ledger.add(load_trial(None, [*BASE, *QUICK, f"defense={name}", *DEFENSES[name]]))
    gallery = Gallery(tmp_path / "pictures", executor.resolver)
    assert [path.name for path in gallery.placed(entry, tmp_path)] == ["best-attack.png"]
    for _ in executor.walk(entry.graph.goals):
        pass
    placed = gallery.placed(entry, tmp_path)
    assert [path.name for path in placed] == ["best-attack.png", "best-defense.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in placed)
    drawn = {path.read_bytes() for path in gallery.folder.iterdir()}
    assert {path.read_bytes() for path in placed} == drawn
