"""Trials that are made up, for tests of what rules choose, of stability and of rankings."""

from __future__ import annotations

from typing import Any

from bdtune.trials.results import TrialResult


def trial(
    defense: str = "toy",
    attack: str = "badnets",
    seed: int = 0,
    der: float | None = 0.9,
    *,
    status: Any = "done",
    band: float | None = 0.9,
    undefended_asr: float = 1.0,
    knobs: dict[str, Any] | None = None,
    **metrics: float,
) -> TrialResult:
    """Return a trial of a defense with its knobs, and with der and further metrics if it is done."""
    own = {f"defense.{name}": value for name, value in (knobs or {}).items()}
    params = {
        "dataset": "digits",
        "attack": attack,
        "defense": defense,
        **own,
        "model": "linear",
        "seed": seed,
    }
    ident = "-".join(map(str, (defense, attack, *own.values(), seed)))
    known = {
        "acc": 0.9,
        "asr": 0.1,
        "undefended/asr": undefended_asr,
        **({} if der is None else {"der": der}),
    }
    return TrialResult(
        ident, status, params, {**known, **metrics} if status == "done" else {},
        baseline_id=f"none-{attack}-{seed}", asr_band=band,
    )  # fmt: skip


def baseline(attack: str = "badnets", seed: int = 0, acc: float = 0.95, asr: float = 1.0) -> TrialResult:
    """Return an undefended trial."""
    params = {"dataset": "digits", "attack": attack, "defense": "none", "model": "linear", "seed": seed}
    metrics = {"acc": acc, "asr": asr}
    return TrialResult(f"none-{attack}-{seed}", "done", params, metrics, is_baseline=True, asr_band=0.9)
