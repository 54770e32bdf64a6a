"""What of a sweep uses test data, or knowledge of the attack: what no defender has.

A rule called `oracle_...` reads the clean and triggered test images. A knob called `oracle_...` is set by
whoever knows the attack; it counts wherever it has another value than its default.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bdtune.config.trial import sections_of
from bdtune.knobs import Knobs
from bdtune.metrics import ORACLE, is_oracle
from bdtune.trials.results import OracleRead, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bdtune.config.sweep import SweepSpec
    from bdtune.config.trial import TrialSpec


def oracle_reads(spec: SweepSpec, knobs: Iterable[OracleRead]) -> tuple[OracleRead, ...]:
    """Return all readers of a sweep: its search, scheduler and selection, then the `knobs` of its trials."""
    rules = [("search", metric) for metric, _ in spec.objectives] if spec.search is not None else []
    if spec.scheduler.judges:
        rules.append(("scheduler", spec.objectives[0][0]))
    rules.append(("select", spec.select.metric))
    decided = [OracleRead(reader, metric) for reader, metric in rules if is_oracle(metric)]
    return (*decided, *dict.fromkeys(knobs))


def section_reads(key: str, value: Any) -> tuple[OracleRead, ...]:
    """Return the knobs of one setting of a trial that were set by what no defender knows."""
    return tuple(_reads(key, value)) if isinstance(value, Knobs) else ()


def oracle_knobs(
    trial: TrialSpec, reads_of: Callable[[str, Any], tuple[OracleRead, ...]] = section_reads
) -> tuple[OracleRead, ...]:
    """Return the knobs of a trial that were set by what no defender knows, each with its value.

    `reads_of`: `section_reads`, or what returns the same of many trials without working it out each time.
    """
    return tuple([read for key, value in sections_of(trial).items() for read in reads_of(key, value)])


def _reads(path: str, value: Any) -> Iterator[OracleRead]:
    if isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _reads(f"{path}[{index}]", inner)
    if not isinstance(value, Knobs):
        return
    for name, field in type(value).model_fields.items():
        inner = getattr(value, name)
        at = f"{path}.{field.alias or name}"
        if not name.startswith(ORACLE):
            yield from _reads(at, inner)
        elif inner != field.get_default(call_default_factory=True):
            yield OracleRead(at, _text(inner))


def _text(value: Any) -> str:
    plain = value is None or isinstance(value, str | int | float | bool)
    return show(value) if plain else json.dumps(value, default=str)
