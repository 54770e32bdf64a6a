"""Nesterov: a supervised training by sgd with Nesterov's momentum.

Source: "On the importance of initialization and momentum in deep learning" (Sutskever et al., 2013),
section 2, in torch's form.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import SerializeAsAny, ValidationInfo, WrapValidator

from bdtune.training.choices import OptimizerName  # noqa: TC001  pydantic reads it
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    import torch

    from bdtune.models._network import Network


class Nesterov(Supervised):
    """Train as `Supervised` does, but let sgd look ahead along its momentum.

    Inputs, result and errors are those of `Supervised`. Where `looks_ahead` is false, so is the training.
    """

    optimizer: OptimizerName = "sgd"
    """sgd: with momentum, Nesterov's unless `nesterov` is off."""
    nesterov: bool = True
    """Nesterov's momentum, with sgd."""

    @property
    def looks_ahead(self) -> bool:
        """Whether the knobs together come to anything else than `Supervised`."""
        return self.nesterov and self.optimizer == "sgd" and self.momentum > 0

    def new_optimizer(self, network: Network) -> torch.optim.Optimizer:
        optimizer = super().new_optimizer(network)
        if self.optimizer == "sgd":
            for group in optimizer.param_groups:
                group["nesterov"] = self.looks_ahead
        return optimizer

    def alone(self, **changes: Any) -> Supervised:
        """Return this recipe without what subclasses add; a plain one where Nesterov's momentum does nothing.

        So that a recipe is the same stage whoever asks for it. `changes` are knobs with other values.
        """
        cls = Nesterov if self.looks_ahead else Supervised
        return cls(**{**{name: getattr(self, name) for name in cls.model_fields}, **changes})


def _read(value: Any, plain: Any, info: ValidationInfo) -> Supervised:
    """Take a mapping with `nesterov` in it as the knobs of such a training, any other as of a plain one."""
    if not isinstance(value, dict):
        return plain(value)
    cls, knobs = Supervised, value
    if "nesterov" in value:
        if not isinstance(value["nesterov"], bool):
            raise ValueError("expected true or false as nesterov")
        cls, knobs = Nesterov, {**Supervised().model_dump(), **value}  # defaults are the plain one's
    if info.mode == "json":  # where lists stand for tuples, which `plain` no longer knows of
        return cls.model_validate_json(json.dumps(knobs), strict=True)
    return cls.model_validate(knobs)


if TYPE_CHECKING:
    Training = Supervised
else:
    Training = Annotated[SerializeAsAny[Supervised], WrapValidator(_read)]
    """A supervised training as a knob, to which `nesterov: true` may be added."""
