"""The contract of data sets: where records lie, how they become resident uint8 arrays, what is checked.

A data set file fills `records`; everything else (limits, decoding, checks, fingerprint) is done here once.
"""

from __future__ import annotations

import hashlib
import io
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from bdtune.engine.key import derive_seed
from bdtune.errors import DataError
from bdtune.registry import Plugin

if TYPE_CHECKING:
    from collections.abc import Sequence

SplitName = Literal["train", "test"]
