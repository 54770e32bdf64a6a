"""What every plugin promises, as checks: `check_attack("frame")`, or `pytest --pyargs bdtune.testing`.

The second finds the plugins of `BDTUNE_PLUGINS` and of installed packages. A check raises `AssertionError`.
"""

from __future__ import annotations

from bdtune.testing.attacks import check_attack
from bdtune.testing.datasets import check_dataset
from bdtune.testing.defenses import check_defense
from bdtune.testing.models import check_model

__all__ = ["check_attack", "check_dataset", "check_defense", "check_model"]
