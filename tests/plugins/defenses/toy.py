"""A defense that only takes time: a long stage, a verdict, a training; each notes when it starts and ends.

Lines go to the file named by BDTUNE_TOY_LOG, so that tests can count what was computed, where and when.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.engine.key import digest_of
from bdtune.engine.stage import Artefact, Context, Kind, Stage, Tick
from bdtune.errors import Diverged
from bdtune.plugins.defense import Defense
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Inputs
    from bdtune.plugins.data import LabelSet, Truth
    from bdtune.plugins.defense import DefenseInputs

CLASSES, SIDE = 4, 8
Trouble = Literal["none", "raise", "diverge", "kill", "kill_once", "meet"]
MEET_S = 240.0


def note(what: str, stage: Stage, inputs: dict[str, Any], ctx: Context, **more: Any) -> None:
    """Append a line: the stage with all that its result depends on."""
    if "BDTUNE_TOY_LOG" not in os.environ:
        return
    digests = {n: digest_of(v.arrays, v.info) for n, v in inputs.items() if isinstance(v, Artefact)}
    line = {
        "what": what,
        "stage": stage.name,
        "identity": [stage.identity()["knobs"], ctx.seed, digests],
        "pid": os.getpid(),
        "time": time.time(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        **more,
    }
    with Path(os.environ["BDTUNE_TOY_LOG"]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def cause(trouble: Trouble) -> None:
    """Fail in the way that a test asks for."""
    if trouble == "raise":
        raise RuntimeError("this stage was told to fail")
    if trouble == "diverge":
        raise Diverged("loss is nan in epoch 1")
    if trouble == "kill_once":
        before = Path(os.environ["BDTUNE_TOY_LOG"]).with_suffix(".killed")
        if before.exists():
            return
        before.touch()
    if trouble in ("kill", "kill_once"):
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "meet":
        _meet(Path(os.environ["BDTUNE_TOY_LOG"]))


def _meet(log: Path) -> None:
    """Wait until a second process has noted something."""
    last = time.monotonic() + MEET_S
    while len({json.loads(line)["pid"] for line in log.read_text().splitlines()}) < 2:
        if time.monotonic() > last:
            raise RuntimeError(f"no second process came within {MEET_S:.0f} s")
        time.sleep(0.1)


def in_turns(
    jobs: Sequence[tuple[Stage, Context, Inputs]],
) -> Generator[tuple[int, Tick | Artefact | Exception], None, None]:
    """Compute several together, an epoch of each in turn: what a stage with `fused_by` does."""
    under_way = {number: stage.steps(ctx, **inputs) for number, (stage, ctx, inputs) in enumerate(jobs)}
    while under_way:
        for number, steps in list(under_way.items()):
            try:
                yield number, next(steps)
                continue
            except StopIteration as end:
                yield number, end.value
            except (RuntimeError, Diverged) as error:
                yield number, error
            del under_way[number]


class Prefix(Stage):
    """Wait, then give each sample a score in [0, 1)."""

    name: ClassVar[str] = "toy_prefix"
    kind: ClassVar[Kind] = "train"
    computes: ClassVar[str] = "steps"
    fused_by: ClassVar[tuple[str, ...]] = ("epochs", "trouble")
    together = staticmethod(in_turns)

    level: int = 0
    epochs: int = Field(1, ge=1)
    seconds: float = Field(0.0, ge=0)
    """Of each epoch."""
    trouble: Trouble = "none"
    passes: bool = False
    """Whether longer ones pass what shorter ones end with."""

    def length(self) -> int:
        return self.epochs

    def at(self, epochs: int) -> Prefix | None:
        return self.model_copy(update={"epochs": epochs}) if self.passes else None

    def steps(self, ctx: Context, *, data: LabelSet) -> Generator[Tick, None, Artefact]:
        saved = ctx.checkpoint.load()
        done = int(saved[1]["done"]) if saved else 0
        note("start", self, {}, ctx, done=done)
        cause(self.trouble)
        count = len(data)
        while done < self.epochs:
            time.sleep(self.seconds)
            done += 1
            if ctx.checkpoint.due():
                ctx.checkpoint.save({"x": np.zeros(1)}, {"done": done})
            yield Tick(done, self.epochs, {"loss": 1.0 / done}, lambda: self._scores(count))
        note("end", self, {}, ctx)
        return self._scores(count)

    def _scores(self, count: int) -> Artefact:
        return Artefact({"score": (np.arange(count) + self.level) % 10 / 10}, {"level": self.level})


class Threshold(Stage):
    """Keep the samples whose score is at least `beta`."""

    name: ClassVar[str] = "toy_threshold"
    kind: ClassVar[Kind] = "derive"

    beta: float = 0.5

    def run(self, ctx: Context, *, prefix: Artefact) -> Artefact:
        note("start", self, {"prefix": prefix}, ctx)
        score = prefix.arrays["score"]
        return Artefact({"ids": np.flatnonzero(score >= self.beta).astype(np.int64)})


class Tail(Stage):
    """Make a linear classifier that is right about a share of the classes, more of them each epoch."""

    name: ClassVar[str] = "toy_tail"
    kind: ClassVar[Kind] = "train"
    classifier: ClassVar[bool] = True
    fused_by: ClassVar[tuple[str, ...]] = ("epochs", "trouble")
    together = staticmethod(in_turns)

    quality: float = Field(1.0, ge=0, le=1)
    epochs: int = Field(1, ge=1)
    seconds: float = Field(0.0, ge=0)
    """Of each epoch."""
    trouble: Trouble = "none"
    trouble_at: int = Field(0, ge=0)
    """Epochs before the trouble."""

    def length(self) -> int:
        return self.epochs

    def steps(self, ctx: Context, **inputs: Any) -> Generator[Tick, None, Artefact]:
        saved = ctx.checkpoint.load()
        done, noise = (
            (int(saved[1]["done"]), saved[0]["noise"]) if saved else (0, np.zeros((CLASSES, SIDE**2)))
        )
        note("start", self, inputs, ctx, done=done)
        while done < self.epochs:
            if done >= self.trouble_at:
                cause(self.trouble)
            time.sleep(self.seconds)
            noise = noise + 1e-3 * np.random.default_rng([ctx.seed % 2**32, done]).normal(size=noise.shape)
            done += 1
            if ctx.checkpoint.due():
                ctx.checkpoint.save({"noise": noise}, {"done": done})
            result = self._classifier(noise, done)
            yield Tick(done, self.epochs, {"loss": 1.0 / done}, lambda result=result: result)
        note("end", self, inputs, ctx)
        return self._classifier(noise, done)  # also of one that was killed after its last checkpoint

    def _classifier(self, noise: np.ndarray, done: int) -> Artefact:
        half = SIDE // 2
        template = -np.ones((CLASSES, SIDE, SIDE))
        for label in range(CLASSES):
            row, column = divmod(label, 2)
            template[label, row * half : (row + 1) * half, column * half : (column + 1) * half] = 3.0
        right = round(self.quality * done / self.epochs * CLASSES)
        template[right:] *= -1
        weight = np.repeat((template.reshape(CLASSES, -1) + noise)[:, None], 3, axis=1).reshape(CLASSES, -1)
        arrays = {"model.head.weight": weight.astype(np.float32), "model.head.bias": np.zeros(4, np.float32)}
        return Artefact(arrays, {"epochs": done}, ({"epoch": done, "loss": 1.0 / done},))


class Toy(Defense):
    """A prefix that settings share, a verdict, and a tail of each verdict's own."""

    prefix: Prefix = Prefix()
    beta: float = 0.5
    tail: Tail = Tail()

    evidence: ClassVar[tuple[str, ...]] = ("verdict",)

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        prefix = given.node(self.prefix, data=given.labels)
        verdict = given.node(Threshold(beta=self.beta), prefix=prefix)
        tail = given.node(self.tail, data=given.fit, verdict=verdict, model=given.model)
        return {"prefix": prefix, "verdict": verdict, "classifier": tail}

    def baseline_training(self) -> Supervised:
        return Supervised(epochs=1, lr=0.01)

    def diagnose(self, artefacts: Any, truth: Truth) -> dict[str, float]:
        return {"kept": len(artefacts["verdict"].arrays["ids"]) / len(truth.observed)}
