"""Attacks that people look for here and do not find: why, and what to do instead."""

from __future__ import annotations

from bdtune.registry import NotOffered

NOT_OFFERED: dict[str, NotOffered] = {
    "dfst": NotOffered(
        what="DFST (Deep Feature Space Trojan, Cheng et al., AAAI 2021)",
        why="its trigger is a style that a generator, trained on photographs of sunsets which are not here, "
        "paints, and its detoxification takes control of the victim's training",
        instead="Make the poisoned set with the authors' code (github.com/Megum1/DFST), then read it with "
        "attack=record",
        presets=("abl/dfst",),
    ),
}
