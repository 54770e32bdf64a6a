"""A change of what a stage, stamp or network gives needs a new `version`: keys know code by that alone."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.golden.code import closure, code_digest
from tests.golden.results import BLESS, agree, blessed, expected, listed, measured

pytestmark = pytest.mark.slow

BLESSED = blessed()


@pytest.mark.parametrize("name", sorted(expected() | BLESSED))
def test_results_are_as_they_were_blessed(name):
    """Fails for a new plugin or stage without an entry, and for a new result under an old version."""
    then = BLESSED.get(name)
    if name not in expected():
        pytest.fail(f"{name} is gone: run `{BLESS}`")
    now = measured(name)
    if then is None:
        pytest.fail(f"{name} is new: run `{BLESS}`")
    if now["version"] != then["version"]:
        pytest.fail(f"{name} has a new version: run `{BLESS}`")
    if agree(now, then):
        return
    if name.startswith("training "):
        pytest.fail(
            f"the code of {name} changed. If its result can change, raise `version` of "
            f"{expected()[name].__qualname__}; then, either way, run `{BLESS}`"
        )
    pytest.fail(
        f"{name} gives another result: raise `version` of {expected()[name].__qualname__} in "
        f"{expected()[name].__module__}, then run `{BLESS}`; or repair the code if that was not meant"
    )


def test_stages_of_one_name_are_of_one_family():
    """A key knows a stage by its name: two unrelated ones of one name could be taken for each other."""
    by_name = defaultdict(list)
    for cls in listed():
        by_name[cls.full_name()].append(cls)
    assert {name: found for name, found in by_name.items() if len(found) > 1} == {}


def test_the_digest_follows_helpers_and_no_further():
    from bdtune.training.flows import Flows

    used = closure([("training.flows", "Flows")])
    assert ("training.flows", "Flows") in used
    assert any(name != "training.flows" for name, _ in used)
    assert {name.partition(".")[0] for name, _ in used} <= {"training", "metrics"}
    assert code_digest(Flows) == code_digest(Flows)
