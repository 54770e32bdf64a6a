"""The space of a search: what is wrong with it, and points drawn from it without an optimiser."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.checking import show, unknown
from bdtune.config.expand import with_values
from bdtune.config.limits import MAX_CHOICES
from bdtune.config.points import PointReader
from bdtune.config.space import Assignment, Space
from bdtune.config.trial import TRIAL_KEYS, TrialSpec
from bdtune.effects import no_effect
from bdtune.engine.key import derive_seed

if TYPE_CHECKING:
    from bdtune.config.document import Document
    from bdtune.config.sweep import Domain, Search, SweepSpec


def preview(spec: SweepSpec, count: int) -> list[TrialSpec]:
    """Return trials drawn independently from a search's space: what it may cost, not what it will try."""
    assert spec.search is not None, "only a search has a space to draw from"
    rng = np.random.default_rng(derive_seed(spec.search.seed, "preview"))
    drawn = [{path: _draw(d, rng) for path, d in spec.search.space.items()} for _ in range(count)]
    return [with_values(spec.trial, values) for values in drawn]


def _draw(domain: Domain, rng: np.random.Generator) -> Any:
    if domain.kind == "choice":
        return domain.values[int(rng.integers(len(domain.values)))]
    low, high = domain.values
    if domain.kind == "int":
        return int(rng.integers(low, high + 1))
    if domain.kind == "log_uniform":
        return float(np.clip(math.exp(rng.uniform(math.log(low), math.log(high))), low, high))
    return float(rng.uniform(low, high))


def check_search(document: Document, space: Space, search: Search, *, check_data: bool) -> None:
    """Check the ends and the middle of each interval and every choice, one setting at a time."""
    reader = PointReader(space, document.report, check_data=check_data)
    if len(space.sections) == len(TRIAL_KEYS):
        reader.trial(())
    for path, domain in search.space.items():
        label = f"search.space.{path}"
        if not known_path(document, "search.space", path) or not _is_domain(document, label, domain):
            continue
        if path in no_effect(TrialSpec):
            document.wrong(label, "expected a setting that can change the result", show(path))
            continue
        for number, value in enumerate(_probes(domain)):
            point = (Assignment(path, value, f"{label}.{domain.kind}[{number}]"),)
            if reader.section(point[0].section, point) is None:
                break
            reader.trial(point)


def _probes(domain: Domain) -> tuple[Any, ...]:
    if domain.kind in ("choice", "int"):
        return domain.values
    low, high = domain.values
    inside = low + 0.381966 * (high - low)  # no whole number, so that an integer knob is noticed
    return (low, high, inside)


def _is_domain(document: Document, label: str, domain: Domain) -> bool:
    at, values = f"{label}.{domain.kind}", domain.values
    if domain.kind == "choice":
        if not values:
            document.wrong(at, "expected at least one value", "[]")
        if len(values) > MAX_CHOICES:
            document.wrong(at, f"expected at most {MAX_CHOICES:,} values", f"{len(values):,}")
            return False
        return bool(values) and distinct(document, at, list(values))
    whole = domain.kind == "int"
    good = len(values) == 2 and all(_number(v) and (not whole or isinstance(v, int)) for v in values)
    if not good or values[0] >= values[1]:
        what = "integers" if whole else "numbers"
        document.wrong(at, f"expected two {what}, the smaller one first", show(list(values)))
        return False
    if domain.kind == "log_uniform" and values[0] <= 0:
        document.wrong(at, "expected numbers above 0", show(list(values)))
        return False
    return True


def distinct(document: Document, at: str, values: list[Any]) -> bool:
    """Report values that a list holds twice; True when there are none."""
    seen: set[str] = set()
    good = True
    for i, value in enumerate(values):
        word = repr(float(value)) if _number(value) else json.dumps(value)  # 1 and 1.0 are one value
        if word in seen:
            document.wrong(f"{at}[{i}]", "expected each value once", f"{show(value)} again")
            good = False
        seen.add(word)
    return good


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def known_path(document: Document, label: str, path: str) -> bool:
    """Report a dotted path that starts with no setting of a trial; True when it does with one."""
    head = path.partition(".")[0]
    if head in TRIAL_KEYS:
        return True
    problem = unknown(head, "", TRIAL_KEYS, "a setting of the trial")
    hint = "Leave out 'trial.'" if head == "trial" else problem.hint
    document.wrong(f"{label}.{path}", problem.expected, show(head), hint)
    return False
