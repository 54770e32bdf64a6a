"""Tiny stages with which the engine is tested: numbers in, numbers out, calls counted in a file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from bdtune.engine.input_source import Source
from bdtune.engine.node import Node
from bdtune.engine.stage import Artefact, Context, NotComputed, Stage, Tick
from bdtune.errors import Diverged
from tests.doubles import CPU
from tests.plugins.defenses.toy import in_turns


class Numbers(Source):
    """A source that is its own value."""

    value: float = 1.0

    def made_of(self):
        return {"numbers": self.value}

    def load(self, resident, artefacts):
        return self.value


def note(name: str) -> None:
    """Append a line to the file named by BDTUNE_TOY_LOG, if any: one line per computed stage."""
    if "BDTUNE_TOY_LOG" in os.environ:
        with Path(os.environ["BDTUNE_TOY_LOG"]).open("a") as file:
            file.write(f"{name}\n")


class Train(Stage):
    """Adds its knob to its input, in epochs."""

    name = "toy_train"
    kind = "train"
    classifier = True

    plus: float = 0.0
    epochs: int = 1
    seconds: float = 0.0  # per epoch
    fail: bool = False
    diverge: bool = False

    def steps(self, ctx: Context, **inputs):
        note(f"{self.name} {self.plus}")
        if self.fail:
            raise RuntimeError("this stage was told to fail")
        if self.diverge:
            raise Diverged("loss is nan in epoch 1")
        state = ctx.checkpoint.load()
        begin, total = (int(state[1]["epoch"]), state[0]["total"]) if state else (0, np.zeros(1))
        start = sum(_number(value) for value in inputs.values())
        for epoch in range(begin, self.epochs):
            time.sleep(self.seconds)
            total = total + np.random.default_rng([ctx.seed % 2**32, epoch]).normal(size=1)
            if ctx.checkpoint.due():
                ctx.checkpoint.save({"total": total}, {"epoch": epoch + 1})
            result = Artefact({"value": total + start + self.plus}, {"epochs": epoch + 1})
            yield Tick(epoch + 1, self.epochs, {"loss": float(total[0])}, lambda result=result: result)
        return result


class Pass(Train):
    """The same, and its longer ones pass what shorter ones end with."""

    name = "toy_pass"
    classifier = False

    def length(self):
        return self.epochs

    def at(self, epochs: int):
        return self.model_copy(update={"epochs": epochs})


class Joined(Train):
    """The same, and several are computed together, at most three; `fail` fails alone."""

    name = "toy_joined"
    classifier = False
    fused_by = ("epochs",)

    @classmethod
    def together(cls, jobs):
        note(f"together {len(jobs)}")
        for number in range(3, len(jobs)):
            yield number, NotComputed()
        yield from in_turns(jobs[:3])


class Threshold(Stage):
    """Whether its input is above a limit."""

    name = "toy_threshold"
    kind = "derive"

    limit: float = 0.0

    def run(self, ctx: Context, **inputs) -> Artefact:
        note(self.name)
        return Artefact({"above": np.array([_number(value) > self.limit for value in inputs.values()])})


def _number(value: object) -> float:
    if isinstance(value, Artefact):
        return float(next(iter(value.arrays.values())).sum())
    return float(value)


def chain(*, plus=0.0, limit=0.0, tail=0.0, seconds=0.0, tail_seconds=0.0, seed=0, **knobs) -> Node:
    """A three-stage trial: train, threshold, train."""
    first = Node(Train(plus=plus, seconds=seconds, **knobs), {"x": Numbers(value=1.0)}, seed, CPU)
    middle = Node(Threshold(limit=limit), {"x": first}, seed, CPU)
    return Node(Train(plus=tail, seconds=tail_seconds), {"base": first, "above": middle}, seed, CPU)


def joined(seed=0, *, fused=8, plus=0.0, first=0.0, tail=0.0, **knobs) -> Node:
    """A trial of three trainings, of which the second may be computed together with those of others."""
    numerics = CPU.model_copy(update={"fused": fused})
    before = Node(Train(plus=first), {"x": Numbers(value=1.0)}, seed, numerics)
    middle = Node(Joined(plus=plus, **knobs), {"x": before}, seed, numerics)
    return Node(Train(plus=tail), {"base": middle}, seed, numerics)
