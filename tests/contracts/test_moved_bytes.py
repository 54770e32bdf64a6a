"""The table of bytes is that of the shapes, and the shapes are those of the real arrays."""

from __future__ import annotations

import pytest

from bdtune.config.load import load_trial
from bdtune.engine.execute import Executor
from bdtune.engine.store import Store
from bdtune.reading.resident import InProcess
from bdtune.trials.graph import trial_graph
from tests.contracts.moved_bytes import RULES, SHOWN, Sizes, first_trial, table, written
from tests.trained import one_thread

SAMPLES = 200
SMALL = (
    f"dataset={{name: digits, train_limit: {SAMPLES}, test_limit: 40}}",
    "attack={name: label_consistent, target: 0, rate: 0.5}",
    "attack.robust.epochs=1",
    "attack.robust.pgd.steps=1",
    "attack.pgd.steps=1",
    "attack.surrogate_model={name: resnet18, width: 2}",
    "model={name: resnet18, width: 4}",
    "numerics.device=cpu",
)
SHORT = {
    "gssd": ("defense=gssd", "simclr.epochs=1", "flows.epochs=1", "retrain.epochs=1", "finetune.epochs=1"),
    "lfd": ("defense=lfd", "teacher.epochs=2", "student.epochs=1"),
}
MOST = {"split", "relabel", "crafted_images"}
"""Results that hold a part of the samples, which depends on the data: the table has the most."""


@pytest.mark.slow
@pytest.mark.parametrize("defense", SHORT)
def test_shapes_are_those_of_what_the_stages_write(defense, tmp_path):
    first, *rest = SHORT[defense]
    spec = load_trial(None, [*SMALL, first, *(f"defense.{each}" for each in rest)])
    graph, store = trial_graph(spec), Store(tmp_path)
    executor = Executor(store, InProcess(None))
    with one_thread():
        for _ in executor.walk(graph.goals):
            pass
    sizes = Sizes(SAMPLES, 10, spec.dataset.image_shape(None))
    for node in graph.stages.values():
        artefact = store.open(executor.resolver.key(node))
        real = sum(array.nbytes for array in artefact.arrays.values())
        if node.name in MOST:
            assert real <= sizes.bytes(node) * (2 if node.name == "crafted_images" else 1), node.name
        elif node.name == "features":  # dimensions that do not vary are left out
            kept = len(artefact.arrays["kept"])
            assert real * sizes.width(node) == sizes.bytes(node) * kept, node.name
        elif node.name == "flows":
            assert real <= sizes.bytes(node)
        else:
            assert real == sizes.bytes(node), node.name


def test_every_stage_of_the_papers_has_a_rule():
    for words in SHOWN.values():
        names = {step.name for node in first_trial(words) for step in node.walk()}
        assert names <= RULES.keys()


def test_the_table_on_the_page_is_that_of_the_shapes():
    assert written() == table(), "write the table anew: python -m tests.contracts.moved_bytes"
