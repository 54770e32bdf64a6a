"""A point of a trial's graph: a stage with its inputs, and the keys that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from bdtune.engine.key import canonical_json, canonical_object, derive_seed, key_of, key_of_text
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact
from bdtune.engine.wires import input_problems
from bdtune.errors import ConfigError
from bdtune.source import file_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from bdtune.engine.input_source import Source
    from bdtune.engine.stage import Stage

NUMERICS = Numerics()
"""Those of a node that is given none."""
NODE_PARTS = ("inputs", "seed", "numerics")
"""What a node adds to its stage's identity in a key."""


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
