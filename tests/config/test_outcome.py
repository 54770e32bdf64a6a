"""What is measured of a classifier while it is being trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bdtune.config.graph import trial_graph
from bdtune.config.outcome import judge_tick
from bdtune.config.trial import parse_trial
from bdtune.engine.stage import Artefact


class Recording:
    """An executor that notes what it is told to evaluate."""

    resolver = SimpleNamespace(manifest=lambda node: None)

    def run_with(self, node: Any, inputs: Any) -> Artefact:
        self.node = node
        return Artefact(info={"acc": 0.5})


@pytest.mark.parametrize(
    ("wanted", "robust"), [((), "none"), (("der",), "none"), (("robust_acc", "der"), "pgd")]
)
def test_robust_accuracy_is_measured_at_ticks_only_where_it_decides(wanted: Any, robust: str) -> None:
    spec, faults = parse_trial({"dataset": "digits", "defense": "lfd", "evaluation": {"robust": "pgd"}})
    assert not faults
    graph, executor = trial_graph(spec), Recording()
    assert judge_tick(executor, graph, Artefact(), {}, wanted) == {"acc": 0.5}  # type: ignore[arg-type]
    assert executor.node.stage.robust == robust
    assert executor.node.seed == graph.evaluate.seed
    assert graph.evaluate.stage.robust == "pgd"
