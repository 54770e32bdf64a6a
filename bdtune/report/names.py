"""What people call a trial: the settings that its sweep varies, not its id."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from bdtune.config.trial import PLUGIN_KINDS, to_params
from bdtune.knobs import short_names
from bdtune.trials.results import show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bdtune.trials.ledger import Ledger


def setting_names(ledger: Ledger, paths: Sequence[str]) -> Callable[[str], str]:
    """Return a function from a trial's id to its values of some dotted paths: "badnets beta_nd=1.5 seed=0".

    An undefended trial is named without its defense's knobs; an id that the ledger lacks stays as it is.
    """
    short = short_names(paths)

    @cache
    def named(trial: str) -> str:
        entry = ledger.entries.get(trial)
        if entry is None:
            return trial
        params = to_params(entry.spec)
        shown = [path for path in paths if path in params]
        if entry.is_baseline:
            shown = [path for path in shown if path.partition(".")[0] != "defense"]
        values = [
            show(params[path]) if path in PLUGIN_KINDS else f"{short[path]}={show(params[path])}"
            for path in shown
        ]
        first = ["undefended"] if entry.is_baseline else [] if values else [show(params["defense"])]
        return " ".join([*first, *values])

    return named
