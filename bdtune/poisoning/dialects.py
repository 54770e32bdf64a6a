"""Dialects: the same attack, with the very bytes and rows that another toolkit trains on.

A dialect fixes the quantiser, the arithmetic of the trigger, how counts are rounded and how rows are chosen.
The trial's seed stands for the number that the toolkit's generators were seeded with; they are rebuilt here
(`np.random.RandomState`, `random.Random`), never seeded globally.

Source: the public code of BackdoorBench (Wu et al., 2022; its version of July 2025) and of BackdoorBox (Li
et al., 2023), whose behaviour was read and rebuilt.
Departures: a toolkit's choice of rows is that of a fresh generator, as both toolkits make it directly after
seeding. Rows of test images are those of bdtune: each toolkit's test rule is a metric (`asr`, `asr_all`).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import PrivateAttr, ValidationInfo, model_validator

from bdtune.errors import ConfigError, Problem
from bdtune.plugins.attack import Attack
from bdtune.poisoning.bench_floats import CIFAR10, Scale, scale_of

if TYPE_CHECKING:
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.poison_plan import Rows

BENCH_BATCH = 128
"""Rows of one batch of BackdoorBench."""
MAX_SEED = 2**32 - 1
"""The largest that NumPy's legacy generators take."""


class DialectAttack(Attack):
    """Base of attacks that other toolkits have too; `bench_bytes` and `box_bytes` are their arithmetic."""

    dialect: Literal["canonical", "backdoorbench", "backdoorbox"] = "canonical"
    """canonical: this file's rules; else quantiser, arithmetic, counts and rows of another toolkit."""

    fixed_by: ClassVar[dict[str, dict[str, Any]]] = {}
    """Knobs that a dialect does not leave open: dialect -> knob -> value; another value is an error."""
    batchwise: ClassVar[frozenset[str]] = frozenset()
    """Dialects in which it poisons while it trains: the stored set has the first rows of each batch."""
    normalises: ClassVar[bool] = False
    """Whether BackdoorBench stamps normalised images, so that its bytes depend on the data set's scale."""

    _scale: Scale = PrivateAttr(CIFAR10)

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, raw: Any, info: ValidationInfo) -> Any:
        if info.mode == "json":  # from here on lists are no JSON, and a strict tuple would refuse them
            raw = _with_tuples(raw)
        if not isinstance(raw, dict) or not isinstance(raw.get("dialect"), str):
            return raw
        fixed = cls._fixed(raw["dialect"]).items()
        # a default counts as not given: a sweep over dialects starts from a trial with all knobs written out
        return {
            **raw,
            **{k: value for k, value in fixed if k not in raw or raw[k] == cls.model_fields[k].default},
        }

    @model_validator(mode="after")
    def _dialect_agrees(self) -> Self:
        for knob, value in self._fixed(self.dialect).items():
            if getattr(self, knob) != value:
                raise ValueError(f"dialect '{self.dialect}' has {knob}: {_yaml(value)}, leave it out")
        for knob in ("count", "cover_count", "source_classes"):
            if self.dialect in self.batchwise and getattr(self, knob, None) is not None:
                how = f"dialect '{self.dialect}' poisons the first rows of every batch, whatever their class"
                raise ValueError(f"{how}, by a rate: leave {knob} out")
        return self

    @classmethod
    def _fixed(cls, dialect: str) -> dict[str, Any]:
        if dialect == "canonical":
            return {}
        # a rate is one of the whole set, and dirty-label attacks take rows of every class
        common = {"quantise": "trunc", "rate_basis": "dataset", "include_target_class": not cls.clean_label}
        if dialect == "backdoorbox" and "all_to_all" in cls.model_fields:
            common["all_to_all"] = False
        return {**common, **cls.fixed_by.get(dialect, {})}

    @property
    def bench_scale(self) -> Scale | None:
        """Mean and deviation of BackdoorBench's images: those of CIFAR-10 until a data set is known.

        None: no image is normalised.
        """
        return self._scale if self.normalises and self.dialect == "backdoorbench" else None

    def for_dataset(self, dataset: Dataset) -> Attack:
        if self.bench_scale is None:
            return self
        copy = self.model_copy()
        copy._scale = scale_of(dataset)
        return copy

    def plan_seed(self, seed: int) -> int:
        """Return the seed of the poison plan; raises `ConfigError` for one that the dialect cannot take."""
        if self.dialect == "canonical":
            return super().plan_seed(seed)
        if self.dialect == "backdoorbench" and self.dialect not in self.batchwise:
            return numpys_seed(seed)
        return seed

    def bench_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        """Return uint8 images [n, H, W, C] stamped as BackdoorBench does; by default the canonical bytes."""
        return super()._stamp_bytes(images, rows)

    def box_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        """Return uint8 images [n, H, W, C] stamped as BackdoorBox does; by default the canonical bytes."""
        return super()._stamp_bytes(images, rows)

    def _stamp_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        if self.dialect == "backdoorbench":
            return self.bench_bytes(images, rows)
        if self.dialect == "backdoorbox":
            return self.box_bytes(images, rows)
        return super()._stamp_bytes(images, rows)

    def _drawn(self, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if self.dialect == "canonical":
            return super()._drawn(labels, seed)
        if self.dialect in self.batchwise:
            return self._batchwise(len(labels))
        n_poison, n_cover = self._counts(labels)
        if self.dialect == "backdoorbench":
            drawn = chosen_by_numpy(self._candidates(labels), n_poison + n_cover, seed)
        else:
            drawn = shuffled_by_random(self._candidates(labels), seed)[: n_poison + n_cover]
        return drawn[:n_poison], drawn[n_poison:]

    def _batchwise(self, total: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of poison and of cover rows of a batchwise attack."""
        return first_of_batches(total, self.rate or 0.0, cover_rate=self.cover_fraction())

    def _counts(self, labels: np.ndarray) -> tuple[int, int]:
        if self.dialect in self.batchwise:
            poison, cover = self._batchwise(len(labels))
            return len(poison), len(cover)
        return super()._counts(labels)

    def _share(self, rate: float, basis: int) -> int:
        if self.dialect == "backdoorbench":
            return round(rate * basis)
        return int(rate * basis) if self.dialect == "backdoorbox" else super()._share(rate, basis)


def chosen_by_numpy(candidates: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return what `np.random.seed(seed); np.random.choice(candidates, count, replace=False)` gives."""
    generator = np.random.RandomState(numpys_seed(seed))
    return generator.choice(candidates, count, replace=False).astype(np.int64)


def numpys_seed(seed: int) -> int:
    """Return the seed if NumPy's legacy generators take it; else raises `ConfigError`."""
    if seed > MAX_SEED:
        expected = f"expected at most {MAX_SEED}, as dialect 'backdoorbench' seeds NumPy's generator with it"
        raise ConfigError(Problem("seed", expected, got=str(seed)))
    return seed


def shuffled_by_random(candidates: np.ndarray, seed: int) -> np.ndarray:
    """Return what `random.seed(seed); random.shuffle(list(candidates))` gives, int64 [n]."""
    order = candidates.tolist()
    random.Random(seed).shuffle(order)
    return np.array(order, np.int64)


def first_of_batches(
    total: int, rate: float, *, cover_ratio: float = 0.0, cover_rate: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of poison and of cover rows where BackdoorBench keeps a batchwise attack's images.

    Of each 128 rows in the set's order the first are poisoned; the next, so many for each poisoned one or
    as a rate of the batch, are cover rows. A batch in which the rate is less than one row has none.
    """
    place = np.arange(total) % BENCH_BATCH
    in_batch = np.minimum(total - (np.arange(total) - place), BENCH_BATCH)
    n_poison = (rate * in_batch).astype(np.int64)
    n_cover = (n_poison * cover_ratio + cover_rate * in_batch).astype(np.int64)
    is_cover = (place >= n_poison) & (place < n_poison + n_cover)
    return np.flatnonzero(place < n_poison), np.flatnonzero(is_cover)


def torch_uniform(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return what `torch.manual_seed(seed); torch.rand(shape)` gives on a CPU, float32."""
    words = np.random.RandomState(seed).randint(0, 2**32, shape, dtype=np.uint32)
    return (words & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)


def box_mixed(images: np.ndarray, weight: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Return (1 - w) u + w p in float32, truncated, as BackdoorBox mixes a picture in.

    `images` uint8 [n, H, W, C]; `weight` float32 and `picture` in grey levels, broadcast against an image.
    """
    added = weight * picture.astype(np.float32)
    return ((np.float32(1) - weight) * images.astype(np.float32) + added).astype(np.uint8)


def grey_levels(colours: np.ndarray) -> np.ndarray:
    """Return colours in [0, 1] as the uint8 levels of the picture that they came from."""
    return np.rint(colours * np.float32(255)).astype(np.uint8)


def _with_tuples(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {name: _with_tuples(value) for name, value in raw.items()}
    return tuple(_with_tuples(value) for value in raw) if isinstance(raw, list) else raw


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
