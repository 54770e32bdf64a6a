"""Binding a defense's chain to a trial: handles become sources, and whatever else it reads is an error.

A chain may read the handles that it was given, the trial's network, networks of its own, and its own nodes.
Each defense's chain is checked when the graph of its first trial is built, before anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

from bdtune.engine.input_source import PluginSource, Source
from bdtune.engine.node import Node
from bdtune.engine.shared import Alike
from bdtune.errors import Problem, UserError
from bdtune.knobs import Knobs
from bdtune.plugins.attack import Attack
from bdtune.plugins.dataset import Dataset
from bdtune.plugins.handles import HandedOver, Handle
from bdtune.plugins.input_detector import DETECTION
from bdtune.plugins.model import Model

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

CLASSIFIER = "classifier"
TAKEN = ("evaluate", "diagnose", DETECTION)
"""Roles of what judges every chain: results of a trial go by them."""
HINT = "A chain reads given.fit, .labels, .clean, .clean_labels, .model, given.network(...) and its own nodes"


@dataclass(frozen=True)
class Bindings:
    """What the handles of one trial stand for."""

    sources: Mapping[Handle, Source]
    backdoored: Node | None
    """The training of the model that the attacker hands over, where there is one."""
    seed: int
    """The trial's seed, under which every node of the chain runs."""


def bound(defense: str, chain: Mapping[str, Node], bindings: Bindings) -> dict[str, Node]:
    """Return a defense's chain on a trial's data; raises as `Chains.checked`."""
    chains = Chains(bindings.sources.keys(), handed_over=bindings.backdoored is not None)
    return Binder(bindings).bound(chains.checked(defense, chain))


class Chains:
    """Checks the chains of defenses that are given the same handles; equal nodes of several become one.

    `handed_over`: whether the attacker hands over a model.
    """

    def __init__(self, given: Collection[Handle], *, handed_over: bool) -> None:
        self.given, self.handed_over = frozenset(given), handed_over
        self.alike = Alike()
        self.nodes: dict[tuple[object, ...], Node] = {}
        """Checked nodes by the identities of their stage and inputs, which they keep."""

    def checked(self, defense: str, chain: Mapping[str, Node]) -> dict[str, Node]:
        """Return a chain that reads what it may.

        Raises `UserError` that names the defense, the node and the input of all that it may not read.
        """
        check = _Check(self, defense, {id(node): name for name, node in chain.items()})
        found = {name: check.node(node, name) for name, node in chain.items()}
        if CLASSIFIER not in found:
            expected = f"expected a node '{CLASSIFIER}' in the chain of '{defense}'"
            check.problems.append(Problem("defense", expected, ", ".join(found) or "no node"))
        for name in (each for each in chain if each in TAKEN or each.startswith("attack.")):
            expected = f"expected another name for a node of '{defense}', as a trial's results have this one"
            check.problems.append(Problem("defense", expected, f"'{name}'"))
        if check.problems:
            raise UserError(list(dict.fromkeys(check.problems)))
        return found


@dataclass
class _Check:
    """What is wrong with one chain, and its nodes that were looked at already."""

    chains: Chains
    defense: str
    names: dict[int, str]
    """What the chain calls its nodes, by their identity."""
    problems: list[Problem] = field(default_factory=list)
    done: dict[int, tuple[Node, Node]] = field(default_factory=dict)
    """Nodes of the chain, kept alive as they go by their identity, each with the one for all chains."""

    def node(self, node: Node, name: str) -> Node:
        """Return the node that stands for this one in all chains; `name` is for one that has none."""
        if (known := self.done.get(id(node))) is not None:
            return known[1]
        if type(node) is not Node:
            self.wrong(name, f"expected '{name}' of '{self.defense}' to be a node", _described(node))
            return node
        if type(node.stage) is HandedOver:
            self.handed_over(name)
            return node
        name = self.names.get(id(node), name)
        inputs = {each: self.input(value, name, each) for each, value in node.inputs.items()}
        made = self.one_for_all(node, name, inputs)
        self.done[id(node)] = node, made
        return made

    def one_for_all(self, node: Node, name: str, inputs: Mapping[str, Node | Source]) -> Node:
        """Return a node of this stage on these inputs that was found right before, else this one."""
        stage = self.chains.alike.one(node.stage)
        read = tuple((each, id(value)) for each, value in inputs.items())
        identity = id(stage), read, id(node.numerics), node.master_seed, node.replicate
        if (known := self.chains.nodes.get(identity)) is not None:
            return known
        for knob in _data_in(vars(node.stage).items()):
            expected = f"expected the stage of node '{name}' of '{self.defense}' to hold no data or attack"
            self.wrong(name, expected, f"one in its knob '{knob}'")
        made = replace(node, stage=stage, inputs=inputs)
        return made if self.problems else self.chains.nodes.setdefault(identity, made)

    def handed_over(self, name: str) -> None:
        """Note that nobody hands over the model that a node reads."""
        if not self.chains.handed_over:
            expected = (
                f"expected an attack that hands over a model, as '{self.defense}' reads one in '{name}'"
            )
            self.wrong(name, expected, "none")

    def input(self, value: Any, name: str, each: str) -> Node | Source:
        """Return one input of a node, or what stands for it in all chains."""
        if type(value) is Node:
            return self.node(value, f"{name}.{each}")
        if type(value) is Handle and value in self.chains.given:
            return value
        if type(value) is PluginSource and isinstance(value.plugin, Model):
            return self.chains.alike.one(value)
        expected = f"expected input '{each}' of node '{name}' of '{self.defense}' to be what it was given"
        self.wrong(f"{name}.{each}", expected, _described(value))
        return cast("Source", value)

    def wrong(self, place: str, expected: str, got: str) -> None:
        """Note a problem at a place in the chain."""
        self.problems.append(Problem(f"defense.{place}", expected, got, hint=HINT))


class Binder:
    """Puts the data of a trial in the places of the handles; equal nodes of several chains stay one."""

    def __init__(self, bindings: Bindings) -> None:
        self.bindings = bindings
        self._done: dict[int, tuple[Node, Node]] = {}

    def bound(self, chain: Mapping[str, Node]) -> dict[str, Node]:
        """Return a checked chain on the trial's data, each node under the trial's seed."""
        return {name: self.node(node) for name, node in chain.items()}

    def node(self, node: Node) -> Node:
        """Return a node of a checked chain with all before it bound."""
        if (known := self._done.get(id(node))) is not None:
            return known[1]
        if type(node.stage) is HandedOver:
            assert self.bindings.backdoored is not None, "a checked chain reads what there is"
            made = self.bindings.backdoored
        else:
            inputs = {name: self._input(value) for name, value in node.inputs.items()}
            made = Node(node.stage, inputs, self.bindings.seed, node.numerics, node.replicate)
        self._done[id(node)] = node, made
        return made

    def _input(self, value: Node | Source) -> Node | Source:
        if isinstance(value, Node):
            return self.node(value)
        return self.bindings.sources[value] if isinstance(value, Handle) else value


def _described(value: Any) -> str:
    if type(value) is Handle:
        return f"a handle of '{value.role}'"
    if type(value) is PluginSource:
        return f"the plugin {_described(value.plugin)}"
    return f"{type(value).__name__} of {type(value).__module__}"


@cache
def _sort(cls: type) -> Literal["data", "knobs", "many", "plain"]:
    """Return what the values of a class are; cached, as a plan of 10,000 trials asks a million times."""
    if issubclass(cls, Source | Node | Dataset | Attack):
        return "data"
    if issubclass(cls, Knobs):
        return "knobs"
    return "many" if issubclass(cls, list | tuple | dict) else "plain"


def _data_in(named: Iterable[tuple[Any, Any]], prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of values that are data, a node or an attack."""
    for name, value in named:
        cls: type = type(value)
        sort = _sort(cls)
        if sort == "data":
            yield f"{prefix}{name}"
        elif sort == "knobs":
            yield from _data_in(vars(value).items(), f"{prefix}{name}.")
        elif sort == "many":
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            yield from _data_in(inner, f"{prefix}{name}.")
