"""BadNets: a fixed patch in a corner, relabelled to one target class (or each class to the next).

Source: BadNets (Gu et al., 2017), arXiv:1708.06733, sections 3 and 5; the patches of the public code
of ABL, DBD and BackdoorBench.
Departures: masks are explicit, so black cells are stamped (public code often takes "value > 0" as mask).
Sides and margins given for 32 pixels scale with the image, but a patch never gets smaller than its cells. A
file's own side is such a side, too: one of 32x32 pixels, as toolkits keep their triggers, covers the image.
Dialect backdoorbench takes its mask per channel as "value > 0", with the black of built-in patches stored as
1; it is exact at 32 pixels, as BackdoorBench resizes a finished picture for other sizes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from bdtune.poisoning.conventions import AABL, ABL, BENCH, BOX, GSSD, LFD
from bdtune.poisoning.patch import PatchAttack


class BadNets(PatchAttack):
    """x' = (1 - a m) x + a m P, with opacity a, mask m and patch P."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gssd/badnets": {**GSSD, "pattern": "corner2x2"},
        "gssd/badnets_dbd": {**GSSD, "pattern": "corner2x2", "colours": "dbd", "inset": 4},
        "gssd/badnets_224": {**GSSD, "pattern": "logo"},
        "lfd/bn_g": {**LFD, "pattern": "grid"},
        "lfd/bn_w": {**LFD, "pattern": "square"},
        "aabl/badnets": {**AABL, "pattern": "square", "inset": 0},
        "abl/badnets": {**ABL, "pattern": "grid"},
        "backdoorbench/badnets": {**BENCH, "pattern": "checker"},
        "backdoorbox/badnets": {**BOX, "pattern": "square", "inset": 0},
    }
