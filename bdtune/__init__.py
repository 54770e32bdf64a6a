"""bdtune: hyperparameter sweeps and ablations of backdoor defenses."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 11):  # noqa: UP036 - the one sentence that an older Python reads
    raise SystemExit(f"bdtune needs Python 3.11 or newer; this is {sys.version.split()[0]}")

if TYPE_CHECKING:
    from bdtune.api import load_model, plan, report, run, sweep, trial
    from bdtune.plugins.attack import Attack
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.defense import Defense
    from bdtune.plugins.model import Model

__version__ = "0.1.0"
__all__ = [
    "attack",
    "dataset",
    "defense",
    "load_model",
    "model",
    "plan",
    "report",
    "run",
    "sweep",
    "trial",
]


def __getattr__(name: str) -> Any:
    """Load what runs sweeps and reads results when it is first asked for: `import bdtune` stays quick."""
    if name in __all__:
        from bdtune import api

        return getattr(api, name)
    raise AttributeError(f"module 'bdtune' has no attribute '{name}'")


def attack(name: str, **knobs: Any) -> Attack:
    """Return the attack called `name`, as in `bdtune.attack("badnets", rate=0.05)`.

    Its `plan(labels, seed=...)` chooses the rows, `apply(images, ids, plan)` stamps them and
    `trigger(images, ids)` stamps test images; images are uint8 [N, H, W, C]. Raises `ConfigError` with the
    nearest name when there is no such attack, pydantic's `ValidationError` for knobs that are unknown or out
    of range.
    """
    return _plugin("attacks", name, knobs)


def dataset(name: str, **knobs: Any) -> Dataset:
    """Return the data set called `name`, as in `bdtune.dataset("digits").load("train")`; raises as `attack`.

    `load(split, root)` returns images, uint8 [N, H, W, 3], and labels, int64 [N].
    """
    return _plugin("datasets", name, knobs)


def defense(name: str, **knobs: Any) -> Defense:
    """Return the defense called `name`: its `build` gives the chain of its stages; raises as `attack`."""
    return _plugin("defenses", name, knobs)


def model(name: str, **knobs: Any) -> Model:
    """Return the model called `name`; raises as `attack`.

    `build(num_classes, (H, W, C))` returns its network, a torch module.
    """
    return _plugin("models", name, knobs)


def _plugin(kind: str, name: str, knobs: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from bdtune.checking import problems_of
    from bdtune.plugins import registry

    cls = registry.load(kind, name)
    try:
        return cls(**knobs)
    except ValidationError as error:
        for problem in problems_of(cls, error.errors(include_url=False), name):
            error.add_note(str(problem))  # a misspelt knob's nearest name
        raise
