"""Names that knobs of training stages choose from; apart, so that reading a configuration loads no torch."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from bdtune.knobs import Knobs

Augment = Literal[
    "auto",
    "auto_cutout",
    "none",
    "flip",
    "crop",
    "crop_flip",
    "crop_cutout",
    "crop_flip_cutout",
    "resized_crop_flip",
]
"""What a supervised training does to its images; cutout blackens a small square, as ABL's code does.

The two `auto` are crop_flip and crop_flip_cutout, without the flip where a data set says that a mirror image
may be of another class (`mirrors`). A name that flips is obeyed on every data set.
"""

OptimizerName = Literal["sgd", "adam", "adamw"]

Schedule = Literal["multistep", "cosine", "constant"]

_AUTO = {"auto": ("crop", "crop_flip"), "auto_cutout": ("crop_cutout", "crop_flip_cutout")}

Settings = TypeVar("Settings", bound=Knobs)


def settled_name(augment: str, *, mirrors: bool) -> str:
    """Return the augmentation that a name means for a data set that may, or may not, be mirrored."""
    return _AUTO[augment][mirrors] if augment in _AUTO else augment


def settled(knobs: Settings, *, mirrors: bool) -> Settings:
    """Return knobs, inner ones included, with what they leave to the data set written out.

    These are augmentations called `auto`, and each `flip` that is None. Keys are made of the result, and so
    say what is really done.
    """
    changed: dict[str, Any] = {}
    for name in type(knobs).model_fields:
        value = getattr(knobs, name)
        if isinstance(value, Knobs):
            inner = settled(value, mirrors=mirrors)
            changed |= {} if inner is value else {name: inner}
        elif name == "augment" and value in _AUTO:
            changed[name] = settled_name(value, mirrors=mirrors)
        elif name == "flip" and value is None:
            changed[name] = mirrors
    return knobs.model_copy(update=changed) if changed else knobs
