"""The contract of attacks: a plan made once from the labels, and a pure function that stamps the trigger.

An attack file fills `stamp`; where it needs to, also `stamp_test`, `test_labels`, `test_rows`, `extras`,
`cover_fraction`, `budget`, `artefacts`, `for_dataset`, `shown_beside`, `check_files`, `check_image` and
`check_trial`; where the attacker trains the model, `hands_over` and `backdoored_model`. Counts, selection,
quantisation and flags are done here once; only another toolkit's dialect (`poisoning.dialects`) replaces
them. `poisoning.dirty_label` adds the choice of classes to attacks that relabel, `poisoning.cover_rows` the
number of cover rows to those that have some. A knob that changes training images alone, or test images
alone, is marked `TrainOnly` or `TestOnly` (`bdtune.effects`): trials that differ in others share the rest.

Shape letters: N samples, n rows of a batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, final

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from bdtune.effects import Only, OnlyIf, TrainOnly
from bdtune.engine.key import derive_seed, sample_generator
from bdtune.engine.stage import Artefact
from bdtune.errors import BdtuneError, ConfigError, Problem
from bdtune.knobs import Rate
from bdtune.plugins.budget import Budget
from bdtune.plugins.poison_plan import PoisonPlan, Role, Rows, SplitName, drawn_order, exact_count
from bdtune.plugins.registry import Plugin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bdtune.engine.input_source import Source
    from bdtune.engine.node import Node
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.model import Model
    from bdtune.poisoning.train_sources import Attacker, FitSet

TestLabels = Callable[[], np.ndarray | None]
"""Reads the true classes int64 [N] of the test images; None where the data set is not there."""
RateBasis = Literal["dataset", "non_target", "target_class"]

CHUNK_BYTES, CHUNK_IMAGES = 2 * 2**20, 16
"""Float32 pixels stamped at a time, so that they stay in the processor's cache, but at least so many images;
cannot change the result, as a stamp is per image."""


class Attack(Plugin):
    """Base of all attacks.

    Pixels: uint8 RGB after resizing, v = u / 255 in float32 while stamping, uint8 again afterwards. There is
    no float output: every consumer (store, Ray Data, augmentation on the device) holds uint8, so references
    that keep floats are followed up to one rounding.
    """

    rate: Annotated[Rate | None, TrainOnly] = 0.1
    """Fraction of `rate_basis` that is poisoned: floor(rate * basis) rows; null where `count` is given."""
    count: Annotated[int | None, TrainOnly] = Field(None, ge=1)
    """Number of poisoned rows, instead of `rate`."""
    rate_basis: Annotated[RateBasis, TrainOnly] = "dataset"
    """What `rate` and `cover_rate` are fractions of: all rows, all but the target class, or that class."""
    target: Annotated[int, OnlyIf(one_target=True)] = Field(0, ge=0)
    """Class that triggered images shall be classified as."""
    include_target_class: Annotated[bool, TrainOnly, OnlyIf(of_sources=False)] = False
    """Whether images of the target class are among those that may be poisoned (and then keep their label)."""
    quantise: Literal["round", "trunc"] = "round"
    """How stamped pixels become uint8: floor(255 v + 0.5), or floor(255 v) as many public toolkits do."""
    trigger_seed: int = Field(0, ge=0)
    """Seed of what is random in the trigger itself; one trigger serves all of a trial's seeds and rates."""
    seed: Annotated[int | None, Only("plan")] = Field(None, ge=0)
    """Seed of the poison plan, and of a model that the attacker trains; none: the trial's `data_seed`."""

    clean_label: ClassVar[bool] = False
    """Whether only images of the target class are poisoned and no label changes."""
    stamps_test: ClassVar[bool] = True
    """Whether test images carry a trigger; if not, success is counted on chosen ones as they are."""
    lacks: ClassVar[dict[str, str]] = {}
    """Knobs of other attacks that this one cannot have, each with the reason, a sentence without its end."""
    one_split: ClassVar[dict[str, SplitName]] = {}
    """Artefacts that only one split's stamp reads, by name: nothing of the other split depends on them."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Papers' conventions: "paper/attack" -> knobs."""
    min_undefended_asr: ClassVar[float] = 0.95
    """Undefended attack success below which the attack "did not take"; see `asr_band`."""

    _artefacts: dict[str, Artefact] = PrivateAttr(default_factory=dict)
    _test_role: Role = PrivateAttr(Role.POISON)

    # --- what attack files fill -----------------------------------------------------------------------------

    @abstractmethod
    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        """Return the images (float32 [n, H, W, C] in [0, 1]) with the trigger in them, same shape.

        Pure and per image: row i depends on images[i], rows[i] and the knobs alone. Values outside [0, 1] are
        clipped afterwards. The input may be overwritten.
        """

    def stamp_test(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        """Return test images with the trigger in them; by default the trigger of the training set."""
        return self.stamp(images, rows)

    def test_labels(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the class (int64) that the attacker wants for images of the given true classes."""
        return np.full_like(labels, self.target)

    def test_rows(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Return bool [N]: the test images that the attack is measured on, by their true classes.

        All by default. No knob may decide it that is not in the attack's identity for view "test".
        """
        return np.ones(len(labels), bool)

    def tests_complete(self) -> bool:
        """Return whether those are all images that `asr_all` counts; not so where a record lacks some."""
        return True

    def extras(
        self, poison_ids: np.ndarray, cover_ids: np.ndarray, labels: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Return what the plan must fix for each sample (trigger id, partner id): arrays [N, ...] by id.

        The ids come in the order in which they were drawn, so that "rank modulo 4" is a balanced choice.
        """
        return {}

    def cover_fraction(self) -> float:
        """Return the fraction of `rate_basis` that becomes cover rows: triggered, with their true label."""
        return 0.0

    def cover_rows(self, n_poison: int, basis: int) -> int:
        """Return the number of cover rows beside `n_poison` poisoned ones; `basis` is what rates count."""
        return self._share(self.cover_fraction(), basis)

    @property
    def cover_knob(self) -> str:
        """The knob that decides how many cover rows there are, to be named in problems."""
        return "cover_rate"

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        """Return the most that the trigger may change in one image of shape (H, W, C)."""
        return Budget()

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        """Return the nodes whose results the trigger needs; `stamp` reads them with `self.artefact(name)`.

        `attacker` makes them, of the unpoisoned data set.
        """
        return {}

    def for_dataset(self, dataset: Dataset) -> Attack:
        """Return the attack as it is made on a data set; by default the same on all.

        It may be another attack that makes the same images: trials of both then share their stages.
        """
        return self

    def shown_beside(self, rows: Rows) -> dict[str, np.ndarray]:
        """Return images (uint8 [n, H, W, C]) by name that the poisoned rows are to be compared with."""
        return {}

    @property
    def hands_over(self) -> bool:
        """Whether the attacker trains the model and hands it over: `backdoored_model` then gives a node."""
        return False

    def backdoored_model(self, fit: FitSet, model: Source) -> Node | None:
        """Return the node of the classifier that the attacker hands over; None: only the data are poisoned.

        Its artefact holds weights of the trial's network `model`, as a training's does. `fit` is the fit part
        of the poisoned training set; the clean one, `attack_seed` and numerics are found in it.
        """
        return None

    def check_trial(self, model: Model, dataset: Dataset, test_labels: TestLabels) -> list[Problem]:
        """Return what keeps the attack from being made on a network, or on a data set's test images.

        The problems' paths are relative to the trial.
        """
        return []

    def check_files(self) -> list[Problem]:
        """Return what is wrong with the files that the knobs name."""
        return []

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        """Return what keeps the trigger from fitting on images of shape (H, W, C)."""
        return []

    @property
    def covers_test(self) -> bool:
        """Whether accuracy is also measured on test images stamped as cover rows are (`noise_acc`)."""
        return False

    @property
    def single_target(self) -> int | None:
        """The one target class, or None when there is none."""
        return self.target

    @property
    def one_target(self) -> bool:
        """Whether there is one target class."""
        return self.single_target is not None

    @property
    def of_sources(self) -> bool:
        """Whether the rows to poison are chosen by a knob of their classes, not by `include_target_class`."""
        return False

    @property
    def asr_band(self) -> float:
        """Undefended attack success in [0, 1] below which the attack "did not take".

        Without one target class it is at most 0.6: a triggered image must be recognised to be moved on, so
        success is bounded by accuracy.
        """
        bounded = self.single_target is None
        return min(0.6, self.min_undefended_asr) if bounded else self.min_undefended_asr

    # --- what everyone else calls ---------------------------------------------------------------------------

    @final
    def plan(self, labels: np.ndarray, *, seed: int, num_classes: int | None = None) -> PoisonPlan:
        """Return which samples are poisoned or covered, and the labels everyone sees.

        `labels`: true classes, int64 [N]; `seed`: that of the trial which has this plan. Raises `ConfigError`
        when the request cannot be met.
        """
        return self.drawn_plan(labels, self.plan_seed(self.attacker_seed(seed)), num_classes=num_classes)

    @final
    def drawn_plan(self, labels: np.ndarray, seed: int, *, num_classes: int | None = None) -> PoisonPlan:
        """Return the plan of true classes int64 [N] that is drawn by a seed which `plan_seed` gave."""
        labels = np.asarray(labels, np.int64)
        num_classes = num_classes if num_classes is not None else int(labels.max(initial=0)) + 1
        if problems := self.check(num_classes, labels):
            raise ConfigError(problems)
        poison, cover = self._drawn(labels, seed)
        observed = labels.copy()
        if not self.clean_label:
            observed[poison] = self.test_labels(labels[poison], num_classes)
        extras = self.extras(poison, cover, labels, seed)
        assert all(len(array) == len(labels) for array in extras.values()), "extras are arrays by sample id"
        return PoisonPlan(np.sort(poison), np.sort(cover), observed, extras, seed)

    @final
    def attacker_seed(self, data_seed: int) -> int:
        """Return the attacker's own seed in a trial of this data seed."""
        return data_seed if self.seed is None else self.seed

    def plan_seed(self, seed: int) -> int:
        """Return the seed of the poison plan that an attacker of this seed draws: no knob changes it."""
        return derive_seed(seed, "poison", self.plugin_name())

    @final
    def apply(self, images: np.ndarray, ids: np.ndarray, plan: PoisonPlan) -> np.ndarray:
        """Return a copy of training images (uint8 [n, H, W, C]) with the planned rows stamped.

        `ids` are the images' sample ids, int64 [n]. All other rows keep their bytes, and the result does not
        depend on how the rows are ordered or batched.
        """
        ids = _checked_ids(images, ids)
        role = plan.role()[ids]
        stamped = images.copy()
        at = np.flatnonzero(role != Role.CLEAN)
        extras = {name: array[ids[at]] for name, array in plan.extras.items()}
        self._stamp_into(stamped, at, Rows("train", ids[at], role[at], extras))
        return stamped

    @final
    def trigger(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return a copy of test images (uint8 [n, H, W, C]) with the trigger in every row.

        Of an attack made by `as_cover`, with the stamp of cover rows.
        """
        ids = _checked_ids(images, ids)
        stamped = images.copy()
        role = np.full(len(ids), self._test_role, np.uint8)
        self._stamp_into(stamped, np.arange(len(ids)), Rows("test", ids, role))
        return stamped

    @final
    def check(
        self,
        num_classes: int,
        labels: np.ndarray | None = None,
        image_shape: tuple[int, int, int] | None = None,
    ) -> list[Problem]:
        """Return all that is wrong with the request, as far as the data set is known.

        Without labels counts are not checked, without a shape (H, W, C) not whether the trigger fits.
        The problems' paths are relative to the attack.
        """
        problems = self._check_target(num_classes)
        if labels is not None and not problems:
            problems += self._check_counts(np.asarray(labels))
        problems += self.check_files()
        if image_shape is not None:
            problems += self.check_image(image_shape)
        return problems

    @final
    def equip(self, artefacts: Mapping[str, Artefact]) -> Self:
        """Return a copy that holds the results of the nodes that `artefacts` names."""
        if not artefacts:
            return self
        copy = self.model_copy()
        copy._artefacts = dict(artefacts)
        return copy

    @final
    def as_cover(self) -> Self:
        """Return a copy that stamps test images as cover rows are stamped."""
        copy = self.model_copy()
        copy._test_role = Role.COVER
        return copy

    @final
    def artefact(self, name: str) -> Artefact:
        """Return a result that `equip` was given; raises `BdtuneError` when it was not."""
        if name not in self._artefacts:
            raise BdtuneError(f"attack '{self.plugin_name()}' needs its trained '{name}': call equip() first")
        return self._artefacts[name]

    @final
    def generators(self, rows: Rows) -> Iterator[np.random.Generator]:
        """Yield one generator per row: a function of trigger seed, attack, split and sample id alone."""
        for sample_id in rows.ids:
            yield sample_generator(self.trigger_seed, self.plugin_name(), rows.split, int(sample_id))

    # --- inside ---------------------------------------------------------------------------------------------

    @model_validator(mode="after")
    def _rate_or_count(self) -> Self:
        one_of(self, "rate", "count")
        return self

    def _share(self, rate: float, basis: int) -> int:
        """Return how many rows a rate of `basis` rows is."""
        return exact_count(rate, basis)

    def _stamp_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        """Return uint8 images [n, H, W, C] stamped: floats in [0, 1] in between, quantised afterwards."""
        stamp = self.stamp if rows.split == "train" else self.stamp_test
        after = stamp(images.astype(np.float32) / np.float32(255), rows)
        assert after.shape == images.shape, "a stamp keeps the shape"
        return quantised(after, self.quantise)

    def _stamp_into(self, images: np.ndarray, at: np.ndarray, rows: Rows) -> None:
        step = max(CHUNK_IMAGES, CHUNK_BYTES // (4 * int(np.prod(images.shape[1:]))))
        for start in range(0, len(at), step):
            part = slice(start, start + step)
            images[at[part]] = self._stamp_bytes(images[at[part]], rows[part])

    def _check_target(self, num_classes: int) -> list[Problem]:
        if self.single_target is None or self.target < num_classes:
            return []
        return [Problem("target", f"expected a class from 0 to {num_classes - 1}", got=str(self.target))]

    def _check_counts(self, labels: np.ndarray) -> list[Problem]:
        basis, available = self._basis(labels), len(self._candidates(labels))
        n_poison, n_cover = self._counts(labels)
        where = f"{available} images {self._candidates_text()}"
        if n_poison == 0:
            hint = "For a clean run set the attack to null" if self.rate == 0 else ""
            expected = f"expected a rate that poisons at least one of {basis} rows ({self.rate_basis})"
            return [Problem("rate", expected, got=str(self.rate), hint=hint)]
        if n_poison > available:
            knob = "rate" if self.count is None else "count"
            got = f"{self.rate} of {basis} ({self.rate_basis}) = {n_poison}"
            return [Problem(knob, f"expected at most the {where}", str(n_poison) if self.count else got)]
        if n_poison + n_cover > available:
            got = f"{n_poison} poison and {n_cover} cover rows"
            return [Problem(self.cover_knob, f"expected poison and cover rows among the {where}", got=got)]
        return []

    def _candidates_text(self) -> str:
        if self.clean_label:
            return f"of class {self.target}, the only ones a clean-label attack may change"
        if self.include_target_class or self.single_target is None:
            return "of the training set"
        return "that are not of the target class"

    def _candidates(self, labels: np.ndarray) -> np.ndarray:
        if self.clean_label:
            return np.flatnonzero(labels == self.target)
        if self.include_target_class or self.single_target is None:
            return np.arange(len(labels))
        return np.flatnonzero(labels != self.target)

    def _basis(self, labels: np.ndarray) -> int:
        in_target = int(np.count_nonzero(labels == self.target))
        return {
            "dataset": len(labels),
            "non_target": len(labels) - in_target,
            "target_class": in_target,
        }[self.rate_basis]

    def _drawn(self, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of poison and of cover rows, each in the order in which they were drawn."""
        n_poison, n_cover = self._counts(labels)
        drawn = drawn_order(self._candidates(labels), len(labels), seed)[: n_poison + n_cover]
        return drawn[:n_poison], drawn[n_poison:]

    def _counts(self, labels: np.ndarray) -> tuple[int, int]:
        """Return the numbers of poison and of cover rows."""
        basis = self._basis(labels)
        n_poison = self._share(self.rate or 0.0, basis) if self.count is None else self.count
        return n_poison, self.cover_rows(n_poison, basis)


def one_of(attack: Attack, rate: str, count: str) -> None:
    """Keep one of two knobs: a count takes the place of a rate that was not given, which becomes None.

    Raises `ValueError` where both are given, or none.
    """
    given = getattr(attack, rate), getattr(attack, count)
    if given[1] is None:
        if given[0] is None:
            raise ValueError(f"either {rate} or {count} is needed, and both are null")
    elif given[0] is not None:
        if rate in attack.model_fields_set:
            raise ValueError(f"{rate} {given[0]} and {count} {given[1]} say the same thing: leave one out")
        object.__setattr__(attack, rate, None)  # of an instance that is still being made


def quantised(images: np.ndarray, how: Literal["round", "trunc"]) -> np.ndarray:
    """Return float images in [0, 1] as uint8: floor(255 clip(v) + 0.5), or truncated.

    Truncation lifts by 1e-3 of a grey level first, so that an untouched u / 255 in float32 stays u.
    """
    lift = np.float32(0.5 if how == "round" else 1e-3)
    levels: np.ndarray = np.floor(np.clip(images, 0, 1) * np.float32(255) + lift)
    return levels.astype(np.uint8)


def _checked_ids(images: np.ndarray, ids: np.ndarray) -> np.ndarray:
    ids = np.asarray(ids, np.int64)
    assert images.dtype == np.uint8, f"images are uint8, got {images.dtype}"
    assert images.ndim == 4, f"images are [n, H, W, C], got shape {images.shape}"
    assert ids.shape == images.shape[:1], f"one sample id per image, got {ids.shape} for {images.shape}"
    return ids
