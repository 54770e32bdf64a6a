"""The checks of all plugins outside the package; the only module here that needs pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bdtune.testing.cases import cases, plugins_outside

if TYPE_CHECKING:
    from bdtune.testing.cases import Case

CASES = {f"{case.name}-{case.check}": case for case in cases(plugins_outside())}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_plugin(case: Case) -> None:
    """Keep one promise of one plugin."""
    if remark := case.run():
        print(remark)
