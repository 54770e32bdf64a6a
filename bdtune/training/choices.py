"""Names that knobs of training stages choose from; apart, so that reading a configuration loads no torch."""

from __future__ import annotations

from typing import Literal

Augment = Literal["none", "flip", "crop", "crop_flip", "crop_flip_cutout", "resized_crop_flip"]
"""What a supervised training does to its images; cutout blackens a small square, as ABL's code does."""

OptimizerName = Literal["sgd", "adam", "adamw"]

Schedule = Literal["multistep", "cosine", "constant"]
