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

    splits: ClassVar[bool] = False
    """Whether a batch may pass in parts, where its network and its loss see one sample at a time."""

    def images_per_step(self, samples: int) -> int:
        """Return how many images pass the network together, there and back, of so many samples; 0: unknown.

        For what is said of memory before the training begins.
        """
        return 0

    def moments(self) -> int:
        """Return how many tensors of the weights' sizes the optimizer keeps."""
        return 2

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
        import torch

        from bdtune.training import compiled
        from bdtune.training.memory import Guard
        from bdtune.training.session import deterministic, say_if_emulated

        compiled.begin(ctx.numerics)
        say_if_emulated(ctx.numerics)
        guard = Guard(self, inputs, ctx.numerics)
        guard.look()
        why, training = "", None
        try:
            with deterministic(ctx.numerics):
                training = self.training(ctx, *args, **inputs)
            return training if isinstance(training, Artefact) else (yield from training.run(ctx))
        except torch.OutOfMemoryError as error:
            why = str(error)
        # outside of the handler, as the error and the training hold what is on the device
        coupling = training.coupling() if training is not None and not isinstance(training, Artefact) else ""
        training = None
        raise guard.failure(why, coupling)
