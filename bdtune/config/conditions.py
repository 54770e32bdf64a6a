"""The `when` and `exclude` entries of a sweep: which points they extend or leave out, and which met none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bdtune.checking import show
from bdtune.config.limits import MAX_COMPARISONS
from bdtune.config.space import crossed, plugin_or_knob
from bdtune.config.trial import PLUGIN_KINDS
from bdtune.errors import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bdtune.config.points import PointReader
    from bdtune.config.space import Point, Space


class Conditions:
    """The `when` and `exclude` entries of a sweep, and which of them no point met."""

    def __init__(self, space: Space, reader: PointReader) -> None:
        self.space, self.reader = space, reader
        self.met: set[str] = set()
        self.seen: set[str] = set()  # settings that some point has
        self._factors = [crossed(f"when[{i}].grid", entry.grid) for i, entry in enumerate(space.when)]

    def too_many(self, count: int) -> list[Problem]:
        """Return what is wrong with comparing so many points with all entries."""
        entries = len(self.space.when) + len(self.space.exclude)
        if count * entries <= MAX_COMPARISONS:
            return []
        expected = f"expected at most {MAX_COMPARISONS:,} comparisons of trials with 'when' and 'exclude'"
        got = f"{count:,} trials and {entries:,} entries"
        return [Problem("exclude" if self.space.exclude else "when", expected, got)]

    def extended(self, point: Point) -> list[Sequence[Point]]:
        """Return the point and the axes of all `when` entries that it meets, to be combined."""
        factors: list[Sequence[Point]] = [(point,)]
        for i, entry in enumerate(self.space.when):
            if self._meets(point, entry.condition, f"when[{i}].if"):
                factors += self._factors[i]
        return factors

    def excluded(self, point: Point) -> bool:
        """Return whether an `exclude` entry leaves the point out."""
        met = [self._meets(point, entry, f"exclude[{i}]") for i, entry in enumerate(self.space.exclude)]
        return any(met)

    def _meets(self, point: Point, condition: Mapping[str, Any], label: str) -> bool:
        values: dict[str, Any] = {a.path: a.value for a in point if a.path not in PLUGIN_KINDS}
        if not condition.keys() <= values.keys():
            values = {**self.reader.params(point), **values}
        self.seen |= values.keys() & condition.keys()
        for path, wanted in condition.items():
            options = wanted if isinstance(wanted, list | tuple) else (wanted,)
            if path not in values or not any(_same(values[path], _as_param(path, o)) for o in options):
                return False
        self.met.add(label)
        return True

    def report_unmet(self, report: Callable[[Problem], None]) -> None:
        """Report entries that no point meets: a wrong name or value, most likely."""
        if self.reader.failed:
            return
        entries = [(f"exclude[{i}]", entry) for i, entry in enumerate(self.space.exclude)]
        entries += [(f"when[{i}].if", entry.condition) for i, entry in enumerate(self.space.when)]
        for label, condition in entries:
            if self._overridden(condition):
                continue
            unknown = [path for path in condition if path not in self.seen]
            for path in unknown:
                hint = nearest(path, {**self.space.params(), **dict.fromkeys(self.seen)})
                report(Problem(f"{label}.{path}", "expected a setting of the trials", show(path), hint=hint))
            if not unknown and label not in self.met:
                report(Problem(label, "expected settings that some trial has", show(dict(condition))))

    def drop_overridden(self) -> None:
        """Take out of the space the entries that no point meets because of the command line."""

        def kept(label: str, condition: Mapping[str, Any]) -> bool:
            return label in self.met or not self._overridden(condition)

        space = self.space
        space.when = tuple(w for i, w in enumerate(space.when) if kept(f"when[{i}].if", w.condition))
        space.exclude = tuple(e for i, e in enumerate(space.exclude) if kept(f"exclude[{i}]", e))

    def _overridden(self, condition: Mapping[str, Any]) -> bool:
        """Return whether the command line gives a setting of a condition, or the plugin whose knob it is."""
        given = {plugin_or_knob(path) for path in self.space.overridden}
        return any(f"{path}.".startswith(tuple(f"{each}." for each in given)) for path in condition)


def _as_param(path: str, value: Any) -> Any:
    return "none" if value is None and path in PLUGIN_KINDS else value


def _same(left: Any, right: Any) -> bool:
    """Compare two settings: 1 and 1.0 are the same, 1 and true are not."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)
