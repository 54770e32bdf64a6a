"""Attacks that people look for here and do not find: why, and what to do instead."""

from __future__ import annotations

from bdtune.plugins.registry import NotOffered

NOT_OFFERED: dict[str, NotOffered] = {
    "dfst": NotOffered(
        what="DFST (Deep Feature Space Trojan, Cheng et al., AAAI 2021)",
        why="its trigger is a style that a generator, trained on photographs of sunsets which are not here, "
        "paints, and its detoxification takes control of the victim's training",
        instead="Make its poisoned set with the authors' code (github.com/Megum1/DFST), save it as a record "
        "of BackdoorBench, and take that with attack={name: record, path: FOLDER, hand_over: data}",
        presets=("abl/dfst",),
    ),
}
