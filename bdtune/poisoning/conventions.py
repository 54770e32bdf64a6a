"""What the presets of one paper or toolkit have in common: how much is poisoned, and to which class."""

from __future__ import annotations

from typing import Any

Knobs = dict[str, Any]

GSSD: Knobs = {"rate": 0.1, "target": 0}
LFD: Knobs = {"rate": 0.1, "target": 1, "include_target_class": True}
ABL: Knobs = {"rate": 0.1, "target": 0, "include_target_class": True}
AABL: Knobs = {"rate": 0.1, "target": 0, "include_target_class": True}
BENCH: Knobs = {"dialect": "backdoorbench", "rate": 0.1, "target": 0}
BOX: Knobs = {"dialect": "backdoorbox", "rate": 0.05, "target": 1}
