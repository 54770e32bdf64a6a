"""What a stage is: a pure function of its knobs, its inputs and a seed, whose result is an artefact."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import SerializeAsAny, SkipValidation

from bdtune.engine.key import canonical_json, canonical_object, derive_seed, key_of, key_of_text
from bdtune.engine.numerics import Numerics
from bdtune.engine.wires import input_problems
from bdtune.errors import ConfigError
from bdtune.knobs import Frozen, Knobs
from bdtune.source import code_identity, file_of, owner_of, source_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    import numpy as np

    from bdtune.plugins.dataset import Dataset, Split, SplitName

Kind = Literal["train", "derive"]
NUMERICS = Numerics()
"""Those of a node that is given none."""
NODE_PARTS = ("inputs", "seed", "numerics")
"""What a node adds to its stage's identity in a key."""


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


class Resident(Protocol):
    """Hands out data sets as resident arrays: loaded in process, or shared by all trials of a node."""

    def split(self, dataset: Dataset, split: SplitName) -> Split:
        """Return images and labels of a data set."""

    def labels(self, dataset: Dataset, split: SplitName) -> np.ndarray:
        """Return a split's true labels, int64 [N], without reading its images."""


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
        raise NotImplementedError(f"{cls.__name__} names `fused_by`, but computes each by itself")

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


def config_hash_of(preimage: Mapping[str, Any]) -> str:
    """Return the configuration hash of the stage whose node's key hashes this."""
    return key_of({name: value for name, value in preimage.items() if name not in NODE_PARTS})


def scale_of(inputs: Mapping[str, Any]) -> str:
    """Return a hash of what decides, beside knobs, how long a stage takes: its data and network.

    `inputs` are those of a preimage, where the results of other stages say nothing of their size.
    """
    parts = ("source", "data", "given")
    sized = {
        name: {part: value[part] for part in parts if part in value}
        for name, value in inputs.items()
        if isinstance(value, dict)
    }
    return key_of({name: found for name, found in sized.items() if found})


_classes: dict[str, type[Stage]] = {}
"""The class of each full name."""


def _check_unique(cls: type[Stage]) -> None:
    """Note a class's name; raises `ConfigError` with both files if its owner has another stage called so."""
    known = _classes.setdefault(cls.full_name(), cls)
    if known.__qualname__ != cls.__qualname__ or file_of(known) != file_of(cls):
        both = " and ".join(f"{each.__qualname__} in {file_of(each)}" for each in (known, cls))
        raise ConfigError(f"two stages are called '{cls.full_name()}': {both}; give one another name")


def result_of(steps: Generator[Tick, None, Artefact]) -> Artefact:
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Artefact = end.value
            return result


class Source(Frozen):
    """An input that is never stored: data seen through an attack, a model's description.

    What it is made of, with its own `upstream` nodes, enters the keys of the stages that read it.
    """

    @abstractmethod
    def made_of(self) -> dict[str, Any]:
        """Return what decides the value that `load` gives, as JSON; the upstream nodes apart."""

    @property
    def upstream(self) -> Mapping[str, Node]:
        """Nodes whose artefacts the source needs (a trained trigger, say)."""
        return {}

    @cached_property
    def preimage(self) -> dict[str, Any]:
        """What it is made of, worked out once: many nodes of many trials read the same source."""
        return self.made_of()

    @cached_property
    def text(self) -> str:
        """The same as canonical JSON."""
        return canonical_json(self.preimage)

    @property
    def gives(self) -> type:
        """The type of what `load` returns; `object` where it is not known."""
        return object

    @cached_property
    def digest(self) -> str:
        """A short name for the source's content, without what its upstream nodes add."""
        return key_of_text(self.text)

    @abstractmethod
    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> object:
        """Return the value; `artefacts` holds those of `upstream`."""


class PluginSource(Source):
    """A plugin handed to a stage as it is: the model to train, for instance."""

    plugin: SerializeAsAny[SkipValidation[Knobs]]

    def made_of(self) -> dict[str, Any]:
        return {"given": self.plugin.identity()}

    @property
    def gives(self) -> type:
        return type(self.plugin)

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> object:
        return self.plugin


@lru_cache(maxsize=64)
def _tag(numerics: Numerics) -> str:
    return canonical_json(numerics.tag())


@lru_cache(maxsize=64)
def _alone(numerics: Numerics) -> Numerics:
    return numerics.alone()


@lru_cache(maxsize=4096)
def _seed(master: int, stage: str, replicate: int) -> int:
    return derive_seed(master, stage, replicate)


@dataclass(frozen=True, eq=False)
class Node:
    """A stage with its inputs, master seed and numerics: one point of a trial's graph."""

    stage: Stage
    inputs: Mapping[str, Node | Source]
    master_seed: int = 0
    numerics: Numerics = NUMERICS
    replicate: int = 0

    def __post_init__(self) -> None:
        cls = type(self.stage)
        if "name" not in vars(cls):
            raise ConfigError(f"stage {cls.__qualname__} in {file_of(cls)} needs a `name` of its own")
        given = tuple([(name, _type_of(value)) for name, value in self.inputs.items()])
        if problems := input_problems(cls, self.stage.computes, self.stage.name, given):
            raise ConfigError(problems)

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def seed(self) -> int:
        """The stage's seed: depends on nothing that only other stages use."""
        return _seed(self.master_seed, self.stage.name, self.replicate)

    @cached_property
    def parents(self) -> tuple[Node, ...]:
        """All nodes that must be computed before this one, those of its sources included."""
        found: list[Node] = []
        for value in self.inputs.values():
            found.extend([value] if isinstance(value, Node) else value.upstream.values())
        return tuple(found)

    def preimage(self, parent_identity: Callable[[Node], object]) -> dict[str, Any]:
        """Return what the key hashes; `parent_identity` says how a parent enters it."""
        inputs: dict[str, Any] = {}
        for name, value in sorted(self.inputs.items()):
            if isinstance(value, Node):
                inputs[name] = parent_identity(value)
            else:
                upstream = {key: parent_identity(node) for key, node in sorted(value.upstream.items())}
                inputs[name] = {**value.preimage, **({"upstream": upstream} if upstream else {})}
        tag = self.tagged.tag() if self.stage.kind == "train" else None
        around = dict(zip(NODE_PARTS, (inputs, self.seed, tag), strict=True))
        return {**self.stage.identity(), **around}

    def key(self, parent_identity: Callable[[Node], object]) -> str:
        """Return the hash of the preimage, put together of texts that stages and sources have ready."""
        inputs = {name: _text(value, parent_identity) for name, value in self.inputs.items()}
        tag = _tag(self.tagged.resolved()) if self.stage.kind == "train" else "null"
        around = zip(NODE_PARTS, (canonical_object(inputs), str(self.seed), tag), strict=True)
        return key_of_text(canonical_object({**self.stage.texts, **dict(around)}))

    @property
    def tagged(self) -> Numerics:
        """The numerics that its key is tagged with: of a stage that is always computed alone, as such."""
        return self.numerics if self.stage.fused_by else _alone(self.numerics)

    @cached_property
    def fuse_key(self) -> str | None:
        """What nodes share that may be computed together; None for one that is computed alone.

        That is the stage, its network, the shape of its images and the numerics: seeds, subsets, first
        weights, poison, rates and other numbers may differ.
        """
        if not (self.stage.fused_by and self.numerics.fuses):
            return None
        shared = [self.stage.texts[name] for name in ("stage", "version")]
        shared += [str(getattr(self.stage, knob)) for knob in self.stage.fused_by]
        return key_of([*shared, self.stage.code_digest, self.scale, sorted(self.inputs), self.tagged.tag()])

    @property
    def sources(self) -> dict[str, Source]:
        """The inputs that are no results of other nodes, by name."""
        return {name: value for name, value in self.inputs.items() if not isinstance(value, Node)}

    @property
    def scale(self) -> str:
        """A hash of the data and network that the stage reads: with the same knobs it takes about as long."""
        return scale_of({name: source.preimage for name, source in self.sources.items()})

    def at(self, epochs: int) -> Node | None:
        """Return the node of the same training with another length, where `Stage.at` has one."""
        stage = self.stage.at(epochs)
        return None if stage is None else replace(self, stage=stage)

    @cached_property
    def recipe(self) -> str:
        """A hash of the whole recipe, known before anything is computed: equal recipes, equal results.

        Different recipes may still share a key, when a derived stage between gives the same result.
        """
        return self.key(_recipe)

    def walk(self) -> list[Node]:
        """Return this node and all before it, parents first, each recipe once."""
        return list(steps_of([self]).values())


def _type_of(value: Node | Source) -> type:
    return Artefact if isinstance(value, Node) else value.gives


def _recipe(node: Node) -> str:
    return node.recipe


def _text(value: Node | Source, parent_identity: Callable[[Node], object]) -> str:
    """Return how an input enters a key, as canonical JSON."""
    if isinstance(value, Node):
        return canonical_json(parent_identity(value))
    if not value.upstream:
        return value.text
    upstream = {name: parent_identity(node) for name, node in value.upstream.items()}
    return canonical_json({**value.preimage, "upstream": upstream})


def steps_of(goals: Iterable[Node]) -> dict[str, Node]:
    """Return nodes and all before them by recipe, parents first."""
    seen: dict[str, Node] = {}
    for goal in goals:
        _visit(goal, seen)
    return seen


def _visit(node: Node, seen: dict[str, Node]) -> None:
    """Enter a node into `seen`, after all before it."""
    if node.recipe not in seen:
        for parent in node.parents:
            _visit(parent, seen)
        seen[node.recipe] = node
