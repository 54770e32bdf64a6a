"""Trainings of one network computed together: one pass forward and back for all, all else as for one alone.

Each member keeps its own images, order, augmentation, loss, optimizer, curve and checkpoint, and draws the
same random numbers as by itself. Sums within convolutions are of another order, so that results differ in
the last bits. A member that ends, or fails, leaves; batches that have no equal in size are computed alone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bdtune.engine.key import derive_seed
from bdtune.engine.stage import Artefact, NotComputed, Tick
from bdtune.errors import OutageError, UserError
from bdtune.training import session
from bdtune.training.batches import share_images
from bdtune.training.fit import FitTraining
from bdtune.training.fused_network import CannotFuse, FusedNetwork, RandomStream, rehearse
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from bdtune.engine.stage import Context, Inputs, Stage
    from bdtune.training.batches import Batch
    from bdtune.training.fit import Pass

    Outcome = Tick | Artefact | Exception


CACHED = 2 * 2**20
"""Bytes of the largest map of all members that are computed as one on a CPU, where they are more than two:
larger ones leave its cache, and grouped convolutions are then slower than single ones."""


@dataclass(eq=False)
class Member:
    """One training of a group, with its epoch that is under way."""

    number: int
    training: FitTraining
    ctx: Context

    def begin(self) -> None:
        """Begin the next epoch."""
        self.under_way: Pass = self.training.begin()
        self.batches = iter(self.under_way)
        self.stream = RandomStream(derive_seed(self.ctx.seed, "epoch", self.training.done))

    def next(self) -> Step | None:
        """Return the next step, or None after the last one of the epoch."""
        found = next(self.batches, None)
        return None if found is None else Step(self, *found)


@dataclass
class Step:
    """A member's next batch, with what the network sees of it."""

    member: Member
    batch: Batch
    seen: torch.Tensor

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of the batch's logits [B, K]."""
        return self.member.training.fit.loss(logits.float(), self.batch)

    def descend(self, loss: torch.Tensor, logits: torch.Tensor) -> None:
        """Take the step, whose gradients are there, and count it."""
        self.member.training.fit.optimizer.step()
        hits = (logits.detach().argmax(1) == self.batch.labels).sum()
        self.member.under_way.add(loss, len(logits), hits)


def train_together(
    jobs: Sequence[tuple[Stage, Context, Inputs]],
) -> Generator[tuple[int, Outcome], None, None]:
    """Train all to their ends; yields each one's ticks, and its result or what it failed with, by its number.

    `NotComputed` stands for one that has no place in the group: nothing was computed of it. The first one is
    trained in any case. Raises `UserError` and `OutageError`, which concern all.
    """
    members = []
    for number, (stage, ctx, inputs) in enumerate(jobs):
        training = _prepared(stage, ctx, inputs)
        if isinstance(training, FitTraining):
            members.append(Member(number, training, ctx))
        else:
            yield number, training
    if not members:
        return
    share_images([member.training.fit.images for member in members])
    group = _Group(members)
    for member in group.left_out:
        yield member.number, NotComputed("it was left out of its group")
    while group.members:
        for member in [each for each in group.members if not each.training.goes_on]:
            group.members.remove(member)
            yield member.number, member.training.end()
        began = time.perf_counter()
        over = group.epoch() if group.members else {}
        seconds = (time.perf_counter() - began) / max(len(over), 1)
        for member, found in over.items():
            outcome = _epoch_over(member, found, seconds)
            if isinstance(outcome, Exception):
                group.members.remove(member)
            yield member.number, outcome


def _prepared(stage: Stage, ctx: Context, inputs: Inputs) -> FitTraining | Artefact | Exception:
    """Return what is to be trained, as far as it was before; or the result, or what went wrong."""
    assert isinstance(stage, TorchStage), "only these are computed together here"
    try:
        with session.deterministic(ctx.numerics):
            training = stage.training(ctx, **inputs)
        if isinstance(training, Artefact):
            return training
        assert isinstance(training, FitTraining), f"{stage.name} names `fused_by`, but is no fit's training"
        training.resume(ctx)
    except (UserError, OutageError):
        raise
    except Exception as error:
        return error
    return training


def _epoch_over(member: Member, found: dict[str, float] | Exception, seconds: float) -> Tick | Exception:
    if isinstance(found, Exception):
        return found
    try:
        return member.training.epoch_over(member.ctx, found, seconds)
    except (UserError, OutageError):
        raise
    except Exception as error:
        return error


class _Group:
    """The members that are under way, and the networks that hold their weights."""

    def __init__(self, members: list[Member]) -> None:
        self.members, self.left_out = members, list[Member]()
        self._homes: dict[Member, FusedNetwork] = {}
        self._at_once = len(members)
        self._numerics = members[0].ctx.numerics
        with session.deterministic(self._numerics):
            self._rehearse()

    def _rehearse(self) -> None:
        """Leave out half of the members until the others fit on the device, all but one where none fuse."""
        while len(self.members) > 1:
            networks = [member.training.fit.network for member in self.members]
            inputs = [_example(member) for member in self.members]
            try:
                size = rehearse(self._fused(self.members), networks, inputs)
                self._at_once = self._fitting(size)
                return
            except torch.OutOfMemoryError:
                kept = len(self.members) // 2
            except CannotFuse as error:
                kept = 1
                self.members[0].ctx.log.warning("trainings are not computed together: %s", error)
            self._homes.clear()
            self.members, out = self.members[:kept], self.members[kept:]
            self.left_out += out
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _fitting(self, size: int) -> int:
        """Return how many members are best computed as one, whose largest maps have `size` numbers."""
        if session.device_of(self._numerics).type != "cpu":
            return len(self.members)
        return max(2, CACHED // (max(size, 1) * session.dtype_of(self._numerics).itemsize))

    def epoch(self) -> dict[Member, dict[str, float] | Exception]:
        """Train each member for its next epoch; returns the curve's rows, or what went wrong."""
        found: dict[Member, dict[str, float] | Exception] = {}
        with session.deterministic(self._numerics):
            for member in self.members:
                member.begin()
            left = list(self.members)
            while left:
                steps = {member: self._each(found, member, member.next) for member in left}
                left = [member for member in left if steps[member] is not None]
                for alike in _alike([steps[member] for member in left]):
                    for start in range(0, len(alike), self._at_once):
                        self._take(found, alike[start : start + self._at_once])
                left = [member for member in left if member not in found]
            for member in self.members:
                if member not in found:
                    row = self._each(found, member, member.under_way.row)
                    if row is not None:
                        found[member] = row
        return found

    @staticmethod
    def _each(found: dict[Member, Any], member: Member, work: Any, *values: Any) -> Any:
        """Return what concerns one member alone; None where it fails, which is noted."""
        try:
            return work(*values)
        except (UserError, OutageError):
            raise
        except Exception as error:
            found[member] = error
            return None

    def _take(self, found: dict[Member, Any], steps: list[Step]) -> None:
        """Take a step with all members whose batches have one size."""
        if len(steps) == 1:
            self._each(found, steps[0].member, self._alone, steps[0])
            return
        network = self._fused([step.member for step in steps])
        streams = [step.member.stream for step in steps]
        with session.autocast(self._numerics):
            logits = network([step.seen for step in steps], streams).unbind(1)
        losses = [
            self._each(found, step.member, step.loss, own) for step, own in zip(steps, logits, strict=True)
        ]
        network.clear_gradients()
        known = [loss for loss in losses if loss is not None]
        if known:
            torch.stack(known).sum().backward()
        for step, loss, own in zip(steps, losses, logits, strict=True):
            if loss is not None:
                self._each(found, step.member, step.descend, loss, own)

    def _alone(self, step: Step) -> None:
        """Take a step with one member's own network."""
        fit = step.member.training.fit
        with step.member.stream.current(), session.autocast(self._numerics):
            logits = fit.network(step.seen)
        loss = step.loss(logits)
        fit.optimizer.zero_grad(set_to_none=False)  # they may be views of a fused network's
        loss.backward()
        step.descend(loss, logits)

    def _fused(self, members: Sequence[Member]) -> FusedNetwork:
        """Return these members' networks as one, put together anew where others were."""
        home = self._homes.get(members[0])
        if (
            home is None
            or home.members != len(members)
            or any(self._homes.get(m) is not home for m in members)
        ):
            home = FusedNetwork([member.training.fit.network for member in members])
            self._homes.update(dict.fromkeys(members, home))
        return home


def _alike(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Yield the steps whose batches have one size, together."""
    by_size: Mapping[int, list[Step]] = defaultdict(list)
    for step in steps:
        by_size[len(step.seen)].append(step)
    yield from by_size.values()


def _example(member: Member) -> torch.Tensor:
    """Return a network's input of the size of a batch: noise of the member's own."""
    fit = member.training.fit
    height, width, channels = fit.data.image_shape
    shape = min(fit.recipe.batch_size, fit.samples), channels, height, width
    noise = torch.randn(shape, generator=session.generator(member.number))
    return noise.to(fit.device, memory_format=torch.channels_last)
