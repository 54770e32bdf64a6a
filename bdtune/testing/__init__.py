"""What every plugin promises, as checks: `bdtune check`, or `pytest --pyargs bdtune.testing`.

Both find the plugins of `BDTUNE_PLUGINS` and of installed packages. As functions, such as
`check_attack("frame")`, they raise `AssertionError` for the first broken promise.
"""

from __future__ import annotations

import sys

CHECKED = ("attacks", "datasets", "defenses", "described", "models", "tables")

if "pytest" in sys.modules:  # so that it prints the values that an assertion compares
    sys.modules["pytest"].register_assert_rewrite(*(f"{__name__}.{part}" for part in CHECKED))

from bdtune.testing.attacks import check_attack
from bdtune.testing.datasets import check_dataset
from bdtune.testing.defenses import check_defense
from bdtune.testing.models import check_model

__all__ = ["check_attack", "check_dataset", "check_defense", "check_model"]
