"""The one base of all trainings."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, final

from bdtune.engine.stage import Artefact, Context, Kind, Stage, Tick

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from bdtune.engine.stage import Inputs
    from bdtune.training.loop import Training


class TorchStage(Stage):
    """Base of stages that train epoch by epoch: `training` says what, everything around it is done here.

    Around it: seeds by epoch, deterministic algorithms where asked for, checkpoints, the curve, and
    `Diverged` when a weight is not finite. Interrupted and resumed, a training ends with the same bits.
    """

    kind: ClassVar[Kind] = "train"
    computes: ClassVar[str] = "training"

    if TYPE_CHECKING:  # a knob of most trainings; the others say how long they are

        @property
        def epochs(self) -> int:
            """Number of epochs."""

    def length(self) -> int:
        return self.epochs

    @abstractmethod
    def training(self, ctx: Context, *args: Any, **inputs: Any) -> Training | Artefact:
        """Return what is to be trained, or the result where there is nothing to train."""

    @classmethod
    def together(
        cls, jobs: Sequence[tuple[Stage, Context, Inputs]]
    ) -> Generator[tuple[int, Tick | Artefact | Exception], None, None]:
        """Train classifiers of one network together: of stages whose `training` is a fit's."""
        from bdtune.training.fused import train_together

        yield from train_together(jobs)

    @final
    def steps(self, ctx: Context, *args: Any, **inputs: Any) -> Generator[Tick, None, Artefact]:
        from bdtune.training.session import deterministic

        with deterministic(ctx.numerics):
            training = self.training(ctx, *args, **inputs)
        return training if isinstance(training, Artefact) else (yield from training.run(ctx))
