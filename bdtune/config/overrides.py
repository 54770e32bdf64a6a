"""Settings on the command line: `key=value` sets one, `key=a,b,c` sweeps it.

A key is a dotted path as in the file, without `trial.`; values are read like values in YAML, so
`milestones=[0.5,0.75]` is one value and `beta_nd=0.6,1.5` are two. As in Hydra, `beta_nd=range(0.5,3,0.5)`
and `attack=choice(badnets,blend)` are axes; the stop of a range is not in it. What the command line says
holds for the whole sweep: it takes the place of an axis of the file, and of that part of the space of a
search.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from bdtune.checking import show, unknown
from bdtune.config.attack_field import RIVALS
from bdtune.config.document import SWEEP_KEYS, Origin, assign, mapping
from bdtune.config.limits import MAX_RANGE, MAX_WORDS
from bdtune.config.trial import PLUGIN_KINDS, TRIAL_KEYS
from bdtune.config.yaml_file import parse_value
from bdtune.errors import LONGEST_NAME, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.config.document import Document

_BY_PATH = ("grid", "vary", "zip", "search.space")  # sections whose keys are dotted paths themselves


_CALL = re.compile(r"(range|choice)\((.*)\)", re.DOTALL)
LONGEST_SHOWN = 120
"""Characters of a word in a message."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Override:
    """One word of the command line: a path and its values, more than one (`many`) for an axis."""

    path: str
    values: list[Any]
    many: bool
    origin: Origin


def apply_overrides(document: Document, words: Sequence[str], *, axes: bool = True) -> None:
    """Write the words into the document; without `axes`, as for one trial, a comma is a problem."""
    if len(words) > MAX_WORDS:
        document.wrong("", f"expected at most {MAX_WORDS:,} settings on the command line", f"{len(words):,}")
        document.finish()
    taken: set[str] = set()
    for index, word in enumerate(_whole(words)):
        origin = Origin((1, index), f"command line: {_short(word)}")
        if word not in words:
            _say_quote_it(document, word, origin)
            continue
        override = _parse(document, word, origin)
        if override is None:
            continue
        head = override.path.partition(".")[0]
        if head not in (*TRIAL_KEYS, *SWEEP_KEYS):
            known = unknown(head, "", [*TRIAL_KEYS, *SWEEP_KEYS], "a setting", most=64)
            document.wrong(override.path, known.expected, show(head), known.hint, override.origin)
        elif rival := _rival(override, taken):
            expected = f"expected {rival} or {override.path}, as each takes the other's place"
            document.wrong(override.path, expected, "both", at=override.origin)
        elif axes:
            _apply(document, override)
        else:
            _apply_to_one(document, override)


def _rival(override: Override, taken: set[str]) -> str:
    """Return an earlier word's path that this one would undo, or nothing; note the path of this one."""
    head, _, knob = override.path.partition(".")
    if head != "attack" or knob not in RIVALS or override.values == [None]:
        return ""
    taken.add(override.path)
    return next((path for rival in RIVALS[knob] if (path := f"{head}.{rival}") in taken), "")


def _apply(document: Document, override: Override) -> None:
    if override.path.partition(".")[0] in SWEEP_KEYS:
        _set_sweep(document, override)
    elif override.many:
        _set_axis(document, "grid", override.path, override)
    else:
        _set_value(document, override)


def _apply_to_one(document: Document, override: Override) -> None:
    head, hint = override.path.partition(".")[0], "'bdtune sweep' takes it"
    if head in SWEEP_KEYS:
        got = f"'{head}', which is a sweep's"
        document.wrong(override.path, "expected a setting of one trial", got, hint, override.origin)
    elif override.many:
        got = show(override.values)
        document.wrong(override.path, "expected one value for one trial", got, hint, override.origin)
    else:
        document.trial = assign(document.trial, override.path, override.values[0])
        document.moved(override.path, override.origin)


def _whole(words: Sequence[str]) -> list[str]:
    """Return the words; those that the shell made of one mapping (`attack={name:`, `blend}`) as one again."""
    found: list[str] = []
    for word in words:
        if found and "=" not in word and _open(found[-1]):
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def _say_quote_it(document: Document, word: str, origin: Origin) -> None:
    path = word.partition("=")[0]
    document.wrong(path, "expected one word", f"{word.count(' ') + 1} of them", f"Quote it: '{word}'", origin)
    document.unread.add(path.partition(".")[0])


def _open(word: str) -> bool:
    """Return whether brackets are opened in a word, outside quotes, that are not closed in it."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", word)
    return sum(bare.count(bracket) for bracket in "{[(") > sum(bare.count(bracket) for bracket in "}])")


def _short(word: str) -> str:
    return word if len(word) <= LONGEST_SHOWN else f"{word[:LONGEST_SHOWN]}..."


def _parse(document: Document, word: str, origin: Origin) -> Override | None:
    key, equals, text = word.partition("=")
    path = key.strip().removeprefix("trial.")
    if not equals or not path:
        document.wrong("", "expected key=value, as in 'dataset=cifar10'", show(word), at=origin)
        return None
    if len(path) > LONGEST_NAME:
        document.wrong("", f"expected a name of at most {LONGEST_NAME} characters", show(path), at=origin)
        return None
    values, problem = _read(path, text)
    if problem is not None:
        document.report(problem, origin)
        document.unread.add(path.partition(".")[0])
        return None
    return Override(path, values, len(values) > 1 or _CALL.fullmatch(text.strip()) is not None, origin)


def _read(path: str, text: str) -> tuple[list[Any], Problem | None]:
    """Return the values of a setting's text, or what is wrong with it."""
    if not text.strip() or text.rstrip().endswith(","):
        return [], Problem(path, "expected a value after '=' and each comma", show(text))
    try:
        call = _CALL.fullmatch(text.strip())
        values = parse_value(call[2] if call else text)
        if call and call[1] == "range":
            values = range_of(values)
        if not values:
            raise ValueError("nothing to choose from")
    except ValueError as error:
        hint = f"Quote it: '{path}={{name: ...}}'" if text.startswith("{") else ""
        return [], Problem(path, "expected a value as in YAML", f"{show(text)} ({error})", hint=hint)
    if path in PLUGIN_KINDS and (word := _unquoted(values)):
        got, hint = show(word), f"Quote it, as the shell takes braces apart: '{path}={{{word}, ...}}'"
        return [], Problem(path, "expected a name, or a mapping such as {name: ...}", got, hint=hint)
    return values, None


def _unquoted(values: list[Any]) -> str:
    """Return a part of a mapping whose braces the shell expanded: `attack=name:badnets`."""
    return next((v for v in values if isinstance(v, str) and re.match(r"(name|preset):", v)), "")


def range_of(values: list[Any]) -> list[int | float]:
    """Return the numbers from a start (0 unless given) up to a stop, which is not among them, by a step (1).

    Decimal steps are exact: 0.1, 0.2, 0.3. Raises `ValueError` for what is no range.
    """
    numbers = [Decimal(str(v)) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    zero, one = Decimal(0), Decimal(1)
    spelled = {1: [zero, *numbers, one], 2: [*numbers, one], 3: numbers}
    start, stop, step = spelled.get(len(numbers), [zero] * 3)
    good = len(numbers) == len(values) and all(map(Decimal.is_finite, numbers)) and step
    count = math.ceil((stop - start) / step) if good else 0
    if not 1 <= count <= MAX_RANGE:
        raise ValueError(f"expected range(start, stop, step) with 1 to {MAX_RANGE:,} numbers")
    number = int if all(isinstance(value, int) for value in values) else float
    return [number(start + i * step) for i in range(count)]


def _set_value(document: Document, override: Override) -> None:
    path, value = override.path, override.values[0]
    document.overridden.add(path)
    if _drop_axis(document, path, override.origin):
        return
    axes = [axis for section in ("grid", "vary") for axis in mapping(document.sweep.get(section))]
    if any(path.startswith(f"{axis}.") for axis in axes):
        # The file sweeps the plugin (`attack: [badnets, blend]`): set the knob on each of its values.
        _set_axis(document, "grid", path, override)
    document.trial = assign(document.trial, path, value)
    document.moved(path, override.origin)


def _set_axis(document: Document, section: str, path: str, override: Override) -> None:
    values: Any = override.values
    if section == "search.space":
        values = {"choice": values} if override.many else values[0]
    elif len(values) == 1 and isinstance(values[0], list) and not override.many:
        values = values[0]
    document.overridden.add(path)
    if _drop_axis(document, path, override.origin):
        return
    parent = document.sweep
    for part in section.split("."):
        parent[part] = dict(mapping(parent.get(part)))
        parent = parent[part]
    parent[path] = values
    document.moved(f"{section}.{path}", override.origin)


def _drop_axis(document: Document, path: str, origin: Origin) -> bool:
    """Take a path out of the file's axes; True, with a problem reported, where it is zipped with others."""
    sweep = document.sweep
    for section in ("grid", "vary"):
        if path in mapping(sweep.get(section)):
            sweep[section] = {key: value for key, value in sweep[section].items() if key != path}
    space = mapping(mapping(sweep.get("search")).get("space"))
    if path in space:
        rest = {key: value for key, value in space.items() if key != path}
        sweep["search"] = {**sweep["search"], "space": rest}
    if path == "seed":
        sweep.pop("seeds", None)
    groups = sweep["zip"] if isinstance(sweep.get("zip"), list) else [sweep.get("zip")]
    zipped = [group for group in map(mapping, groups) if path in group]
    if zipped:
        expected = f"expected a setting that 'zip' does not sweep together with {_others(zipped[0], path)}"
        hint = "Edit 'zip' in the file, or give it anew as zip={...}"
        document.wrong(path, expected, hint=hint, at=origin)
    return bool(zipped)


def _others(group: dict[str, Any], path: str) -> str:
    return ", ".join(key for key in group if key != path) or "nothing else"


def _set_sweep(document: Document, override: Override) -> None:
    path, values = override.path, override.values
    for section in _BY_PATH:
        if path.startswith(f"{section}."):
            _set_axis(document, section, path.removeprefix(f"{section}."), override)
            return
    document.overridden |= _swept(document, path)
    if path == "seeds":
        _drop_axis(document, "seed", override.origin)
        values = values[0] if isinstance(values[0], list) and not override.many else values
        if not override.many and not isinstance(override.values[0], list):
            _say_one_seed(values[0])
    value = values if override.many or path == "seeds" else values[0]
    document.sweep = assign(document.sweep, path, value)
    document.moved(path, override.origin)


def _say_one_seed(seed: Any) -> None:
    if isinstance(seed, int) and seed > 1:
        several = ",".join(map(str, range(min(seed, 5)))) + (",..." if seed > 5 else "")
        log.warning("seeds=%s is the one seed %s; %s seeds are seed=%s", seed, seed, seed, several)


def _swept(document: Document, section: str) -> set[str]:
    """Return the settings that a section of axes sweeps, which the command line gives anew as a whole."""
    if section not in ("grid", "vary", "zip", "seeds"):
        return set()
    raw = {"seed": None} if section == "seeds" else document.sweep.get(section)
    return {path for axes in (raw if isinstance(raw, list) else [raw]) for path in mapping(axes)}
