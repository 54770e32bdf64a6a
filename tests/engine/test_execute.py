from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bdtune.engine.execute import Executor, StageFailed
from bdtune.engine.plan import make_plan
from bdtune.engine.resolve import Resolver
from bdtune.engine.store import ARRAYS, Store
from tests.engine.toys import chain


@pytest.fixture
def executor(tmp_path):
    return Executor(Store(tmp_path / "store"), resident=None)


def computed(executor, node):
    """Names of the stages that a walk computes."""
    return [event.node.name for event in executor.walk([node]) if event.what == "computed"]


def stored(executor):
    """How many entries of each stage the store has."""
    return Counter(manifest.name for manifest in executor.store.entries())


def test_a_chain_is_computed_once_parents_first(executor):
    assert computed(executor, chain()) == ["toy_train", "toy_threshold", "toy_train"]
    assert computed(executor, chain()) == []
    assert computed(executor, chain(tail=5.0)) == ["toy_train"]


def test_settings_with_the_same_verdict_share_what_follows(executor):
    values = [executor.compute(chain(limit=limit)).arrays["value"] for limit in (-100.0, -99.0, -98.0)]
    assert len({float(value[0]) for value in values}) == 1
    assert stored(executor) == {"toy_train": 2, "toy_threshold": 3}


def test_other_verdicts_do_not_share(executor):
    low, high = (executor.compute(chain(limit=limit)).arrays["value"] for limit in (-100.0, 100.0))
    assert low != high


def test_intermediate_results_nobody_needs_are_not_computed_again(executor):
    executor.compute(chain())
    for manifest in list(executor.store.entries()):
        if manifest.name == "toy_train" and not manifest.preimage["inputs"].get("base"):
            executor.store.remove(manifest.key)
    assert computed(executor, chain()) == []
    assert computed(executor, chain(tail=1.0)) == ["toy_train", "toy_train"]


def test_a_damaged_input_is_computed_again(executor):
    executor.compute(chain())
    first = next(node for node in chain().walk() if not node.parents)
    key = executor.resolver.key(first)
    file = executor.store.place.folder(key) / ARRAYS
    file.write_bytes(file.read_bytes()[:-1])
    value = executor.compute(chain(tail=1.0)).arrays["value"]
    fresh = Executor(Store(executor.store.root.parent / "other"), None).compute(chain(tail=1.0))
    assert np.array_equal(value, fresh.arrays["value"])


def test_a_failure_names_the_stage_and_is_recorded(executor):
    with pytest.raises(
        StageFailed, match=r"toy_train .* failed: RuntimeError: this stage was told"
    ) as caught:
        executor.compute(chain(fail=True))
    assert executor.store.failure(caught.value.key).attempts == 1
    assert not list((executor.store.root / "leases").iterdir())
    with pytest.raises(StageFailed, match="diverged"):
        executor.compute(chain(diverge=True))


def test_a_plan_counts_what_is_shared_and_what_exists(executor):
    trials = [[chain(limit=limit, tail=tail)] for limit in (-100.0, -99.0) for tail in (0.0, 1.0)]
    before = make_plan(trials, 0, Resolver(executor.store))
    assert before.trials == 4
    assert vars(before.stages["toy_train"]) == {
        "unique": 5, "cached": 0, "reused": 0, "without_sharing": 8, "exact": False,
        "written": None, "read": None,
    }  # fmt: skip
    assert before.unpredicted == ("toy_threshold", "toy_train")
    for (node,) in trials:
        executor.compute(node)
    after = make_plan(trials, 0, Resolver(executor.store)).stages
    assert (after["toy_train"].unique, after["toy_train"].cached, after["toy_train"].exact) == (3, 3, True)
    assert after["toy_threshold"].unique == 2
    assert {name: count.unique for name, count in after.items()} == stored(executor)
