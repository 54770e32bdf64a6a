"""Binding a defense's chain to a trial: handles become sources, and whatever else it reads is an error.

A chain may read the handles that it was given, the trial's network, networks of its own, and its own nodes.
Every trial's chain is checked when its graph is built, before anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from bdtune.engine.stage import Node, PluginSource, Source
from bdtune.errors import Problem, UserError
from bdtune.knobs import Knobs
from bdtune.plugins.attack import Attack
from bdtune.plugins.dataset import Dataset
from bdtune.plugins.handles import HandedOver, Handle
from bdtune.plugins.input_detector import DETECTION
from bdtune.plugins.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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
    """Return a defense's chain on the trial's data, each node under the trial's seed.

    Raises `UserError` that names the defense, the node and the input of all that it may not read.
    """
    binder = _Binder(defense, bindings, {id(node): name for name, node in chain.items()})
    found = {name: binder.node(node, name) for name, node in chain.items()}
    if CLASSIFIER not in found:
        expected = f"expected a node '{CLASSIFIER}' in the chain of '{defense}'"
        binder.problems.append(Problem("defense", expected, ", ".join(found) or "no node"))
    for name in (each for each in chain if each in TAKEN or each.startswith("attack.")):
        expected = f"expected another name for a node of '{defense}', as a trial's results have this one"
        binder.problems.append(Problem("defense", expected, f"'{name}'"))
    if binder.problems:
        raise UserError(list(dict.fromkeys(binder.problems)))
    return found


@dataclass
class _Binder:
    """The nodes of one chain that are bound already, and what is wrong with it."""

    defense: str
    bindings: Bindings
    names: dict[int, str]
    """What the chain calls its nodes, by their identity."""
    problems: list[Problem] = field(default_factory=list)
    done: dict[int, tuple[Node, Node]] = field(default_factory=dict)
    """Nodes of the chain, kept alive as they go by their identity, each with the bound one."""

    def node(self, node: Node, name: str) -> Node:
        """Return a node with all before it bound; `name` is what to call one that the chain does not name."""
        if (known := self.done.get(id(node))) is not None:
            return known[1]
        if type(node) is not Node:
            self.wrong(name, f"expected '{name}' of '{self.defense}' to be a node", _described(node))
            return node
        if type(node.stage) is HandedOver:
            return self.handed_over(node, name)
        name = self.names.get(id(node), name)
        for knob in _data_in(vars(node.stage).items()):
            expected = f"expected the stage of node '{name}' of '{self.defense}' to hold no data or attack"
            self.wrong(name, expected, f"one in its knob '{knob}'")
        inputs = {each: self.input(value, name, each) for each, value in node.inputs.items()}
        made = replace(node, inputs=inputs, master_seed=self.bindings.seed)
        self.done[id(node)] = node, made
        return made

    def handed_over(self, node: Node, name: str) -> Node:
        """Return the training of the attacker's model."""
        if self.bindings.backdoored is not None:
            return self.bindings.backdoored
        expected = f"expected an attack that hands over a model, as '{self.defense}' reads one in '{name}'"
        self.wrong(name, expected, "none")
        return node

    def input(self, value: Any, name: str, each: str) -> Node | Source:
        """Return one input of a node, bound."""
        if type(value) is Node:
            return self.node(value, f"{name}.{each}")
        if type(value) is Handle and value in self.bindings.sources:
            return self.bindings.sources[value]
        if not (type(value) is PluginSource and isinstance(value.plugin, Model)):
            expected = f"expected input '{each}' of node '{name}' of '{self.defense}' to be what it was given"
            self.wrong(f"{name}.{each}", expected, _described(value))
        return value

    def wrong(self, place: str, expected: str, got: str) -> None:
        """Note a problem at a place in the chain."""
        self.problems.append(Problem(f"defense.{place}", expected, got, hint=HINT))


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
