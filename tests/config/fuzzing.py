"""Wrong input by the hundred: search spaces and command lines, changed at random from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bdtune.config.document import SWEEP_KEYS
from bdtune.config.load import read_file
from bdtune.config.trial import TRIAL_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = (Path(__file__).parents[2] / "search_spaces").rglob("*.yaml")
SPACES = sorted(file for file in FILES if not read_file(file).holds_sweeps)
VALUES = r"""
~ none true 0 1 -1 3 1.5 -0.0 1e308 -1e308 1e-320 1e400 .inf .nan 0x1f 9999999999999999999999 [] {} [~] [[]]
[{}] [1,{}] {name:} {name:3} '' "\0" "\ud800" ~nouser/x / . .. a/b badnets gssd digits toy tiny none
select_acc oracle_der robust_acc 0,1,2 1,1.0 ~,~ a, ,a range(0,3) range(3,0) range(0,1e9) range(a) choice(1,2)
choice() {unquoted [open 2] &a *a !!python/object:os.system !!int # % {uniform:[0,1]}
"""
TEXTS = ["{name: ~}", "{name: badnets}", "{preset: 3}", "{preset: gssd/badnets}", "{uniform: [0, 1]}"]
TEXTS += ["{int: [0, 3]}", "{choice: []}", "{log_uniform: [0, 1e308]}", "!!int x", "a b", " "]
TEXTS += [f"0x{'f' * 300}", "9" * 5000, "x" * 3000, "\udcff", "\x7f"]
WORDS = VALUES.split() + TEXTS
PATHS = """
attack.rate attack.target attack.seed attack.name attack.preset attack.pattern.x attack..rate defense.beta_nd
defense.simclr.epochs defense.name dataset.train_limit dataset.name model.width seed. .seed trial trial.seed
search.space.attack.rate search.trials search.metric search.sampler select.metric select.mode scheduler.name
resources.gpu resources.cpu grid.attack.rate grid.attack vary.defense.beta_nd zip.seed when.0 exclude.0
evaluation.robust evaluation.metrics numerics.device published nonsense
"""
KEYS = [*TRIAL_KEYS, *SWEEP_KEYS, *PATHS.split()]
OTHERS = [None, True, 0, -1, 2**70, 1e308, float("inf"), float("nan"), "", [], {}, "gssd"]
SIGNS = "{}[],:#&*!|>'\"%@`\t\n-?"


@dataclass(frozen=True)
class Case:
    """A file's text, if any, and the words of a command line."""

    text: str | None
    words: tuple[str, ...]


def cases(seed: int, count: int) -> Iterator[Case]:
    """Yield so many cases, the same ones for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        text = rng.choice([None, _broken, _changed])
        words = tuple(f"{rng.choice(KEYS)}={rng.choice(WORDS)}" for _ in range(rng.choice([0, 1, 1, 2, 3])))
        yield Case(text(rng) if text else None, words)


def _broken(rng: random.Random) -> str:
    """Return a search space with some characters taken out, doubled or put in."""
    text = rng.choice(SPACES).read_text(encoding="utf-8")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text))
        size = rng.choice([1, 1, 3, 20])
        put = rng.choice(["", text[at : at + 2 * size], rng.choice(WORDS), rng.choice(SIGNS)])
        text = text[:at] + put + text[at + size :]
    return text.replace("\udcff", "?")


def _changed(rng: random.Random) -> str:
    """Return a search space in which some values are others."""
    data = yaml.safe_load(rng.choice(SPACES).read_text(encoding="utf-8"))
    data["trial"] = {**data["trial"], "dataset": "toy"}
    for _ in range(rng.randint(1, 3)):
        _change(data, rng)
    return yaml.safe_dump(data).replace("\udcff", "?")


def _change(data: Any, rng: random.Random) -> None:
    """Replace one value somewhere below a mapping or list, or add one under another name."""
    inner = list(data.items()) if isinstance(data, dict) else list(enumerate(data))
    key, value = rng.choice(inner)
    if isinstance(value, dict | list) and value and rng.random() < 0.7:
        _change(value, rng)
        return
    new = rng.choice([*OTHERS, [value] * 3])
    if isinstance(data, dict) and rng.random() < 0.3:
        key = rng.choice(KEYS)
    data[key] = new
