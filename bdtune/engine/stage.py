"""What a stage is: a pure function of its knobs, its inputs and a seed, whose result is an artefact."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from bdtune.engine.key import canonical_json, canonical_object, key_of_text
from bdtune.engine.numerics import Numerics
from bdtune.errors import ConfigError, Problem, nearest
from bdtune.knobs import Knobs
from bdtune.source import code_identity, file_of, owner_of, source_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    import numpy as np


Kind = Literal["train", "derive"]


@dataclass(frozen=True)
class Artefact:
    """A stage's result: named arrays, a small JSON-able `info`, and a curve of one row per epoch.

    Arrays and info make the digest; the curve is for people and does not.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class Tick:
    """What a training stage yields after each epoch.

    `artefact` builds the result as it would be if training ended here, for schedulers that judge early.
    """

    epoch: int  # epochs done, counted from 1
    epochs: int
    metrics: Mapping[str, float]
    artefact: Callable[[], Artefact]


class NotComputed(Exception):  # noqa: N818 - reads as what happened
    """Stands for the result of a stage that had no place among those that are computed together."""


class CheckpointSlot(Protocol):
    """Where a long stage keeps its resumable state; emptied when the stage's result is published."""

    def due(self) -> bool:
        """Return whether enough time has passed since the last save."""

    def save(self, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """Replace the stored state atomically."""

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the last state saved, or None."""


class NoCheckpoint:
    """A slot that keeps nothing: for stages called as plain functions, as in tests."""

    def due(self) -> bool:
        return False

    def save(self, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """Forget the state."""

    def load(self) -> None:
        return None


@dataclass(frozen=True)
class Context:
    """What surrounds a stage while it runs."""

    seed: int = 0
    numerics: Numerics = field(default_factory=Numerics)
    checkpoint: CheckpointSlot = field(default_factory=NoCheckpoint)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("bdtune"))


Inputs = dict[str, object]
"""Loaded inputs by name: an `Artefact` for each upstream stage, the loaded value for each source."""


class Stage(Knobs):
    """Base of all stages: fields are knobs, `run` computes.

    `kind = "train"`: expensive or not bit-reproducible across devices; enters later keys by its own key.
    `kind = "derive"`: cheap, deterministic, numpy only; enters later keys by the digest of its result.

    Keys hold the stage's owner beside its name, so that plugins need not know of each other's stages. A class
    of which nodes are made has a `name` of its own, as one that inherits it would share its ancestor's keys.
    """

    name: ClassVar[str]
    """Unique among the stages of its owner: a plugin, or the package's shared trainings."""
    version: ClassVar[int] = 1
    kind: ClassVar[Kind]
    classifier: ClassVar[bool] = False
    """Whether the result is a trained classifier, so that a scheduler can judge its ticks."""
    few_samples: ClassVar[bool] = False
    """Whether it trains on a small part of the samples: such epochs do not count in a classifier's budget."""
    fused_by: ClassVar[tuple[str, ...]] = ()
    """The knobs in which trainings agree that may be computed together (`together`); none: they never are.

    It is not inherited, as a subclass may do more than `together` computes."""
    computes: ClassVar[str] = "run"
    """The method whose keyword parameters are the stage's inputs."""
    code_digest: ClassVar[str | None] = None
    """Of a stage outside the package: a digest of its source, which enters its key as its version does."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.code_digest = source_digest(cls, Knobs)
        cls.fused_by = vars(cls).get("fused_by", ())
        _check_fused_by(cls)
        if "name" in vars(cls):
            _check_unique(cls)

    @classmethod
    @cache
    def full_name(cls) -> str:
        """Return owner and name: "training.supervised", "defenses.gssd.split"."""
        return f"{owner_of(cls)}.{cls.name}"

    def run(self, ctx: Context, *args: Any, **inputs: Any) -> Artefact:
        """Compute the result; stages with epochs override `steps` instead.

        A stage names its inputs as keyword parameters, each with its type: an `Artefact` of a stage before,
        an `ImageSet`, a `Model`. Nodes are checked against them.
        """
        return result_of(self.steps(ctx, *args, **inputs))

    def steps(self, ctx: Context, *args: Any, **inputs: Any) -> Generator[Tick, None, Artefact]:
        """Compute the result and yield a `Tick` after each epoch; by default there are none."""
        return self.run(ctx, *args, **inputs)
        yield  # makes this a generator

    @classmethod
    def together(
        cls, jobs: Sequence[tuple[Stage, Context, Inputs]]
    ) -> Generator[tuple[int, Tick | Artefact | Exception], None, None]:
        """Compute nodes of one `Node.fuse_key`; yields ticks, results and failures with the job's number.

        Of a job that is not computed for want of a place in the group, the last that is yielded is
        `NotComputed`; the first job always has one. What concerns all is raised.
        """
        raise NotImplementedError(f"{cls.__name__} computes each by itself")

    def with_name(self, knobs: dict[str, Any]) -> dict[str, Any]:
        code = code_identity(type(self), self.code_digest)
        return {"stage": self.full_name(), "version": self.version, "knobs": knobs, **code}

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """The parts of its identity as canonical JSON, made once for all nodes of this stage."""
        return {name: canonical_json(part) for name, part in self.identity().items()}

    @cached_property
    def config_hash(self) -> str:
        """A hash of name, version and knobs: stages that share it take about the same time."""
        return key_of_text(canonical_object(self.texts))

    def length(self) -> int:
        """Return the number of ticks the stage will yield, 0 if it yields none."""
        return 0

    def passes_per_epoch(self) -> float:
        """Return how often each sample passes a network, there and back, in an epoch: for estimates."""
        return 1.0

    def at(self, epochs: int) -> Stage | None:
        """Return the same stage with another length, if the longer of the two saves the shorter's result.

        That is: after so many epochs the longer one's tick gives the very artefact. By default none does.
        """
        return None


_classes: dict[str, type[Stage]] = {}
"""The class of each full name."""


def _check_unique(cls: type[Stage]) -> None:
    """Note a class's name; raises `ConfigError` with both files if its owner has another stage called so."""
    known = _classes.setdefault(cls.full_name(), cls)
    if known.__qualname__ != cls.__qualname__ or file_of(known) != file_of(cls):
        both = " and ".join(f"{each.__qualname__} in {file_of(each)}" for each in (known, cls))
        raise ConfigError(f"two stages are called '{cls.full_name()}': {both}; give one another name")


def _check_fused_by(cls: type[Stage]) -> None:
    """Check that a class which names `fused_by` has these knobs and a `together`; raises `ConfigError`."""
    where = f"{cls.__name__}.fused_by"
    problems = [
        Problem(where, "expected a knob of the stage", repr(name), hint=nearest(name, cls.model_fields))
        for name in cls.fused_by
        if name not in cls.model_fields
    ]
    bases = cls.__mro__[: cls.__mro__.index(Stage)]
    if cls.fused_by and not any("together" in vars(base) for base in bases):
        hint = "Override `together`, or leave `fused_by` out"
        problems.append(Problem(where, "expected a stage with `together`", "one without", hint=hint))
    if problems:
        raise ConfigError(problems)


def result_of(steps: Generator[Tick, None, Artefact]) -> Artefact:
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Artefact = end.value
            return result
