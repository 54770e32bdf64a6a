"""From a trial's knobs by dotted path, as results hold them, back to the trial."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bdtune.config.trial import TrialSpec, parse_trial
from bdtune.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bdtune.trials.results import Scalar

OWN = ""
"""Key of the value that a path has itself beside those below it: the name of a plugin."""


def spec_from_params(params: Mapping[str, Scalar], data_root: Path | None) -> TrialSpec:
    """Return the trial of which `config.trial.to_params` made these knobs; its data lie in `data_root`.

    Raises `ConfigError` where this version has no such settings.
    """
    tree: dict[str, Any] = {}
    for path, value in params.items():
        node = tree
        for part in path.split("."):
            node = node.setdefault(part, {})
        node[OWN] = value
    raw = {key: _value(node) for key, node in tree.items()}
    if raw.get("attack") == "none":
        raw["attack"] = None
    if data_root is not None:
        raw["data_root"] = str(data_root)
    spec, problems = parse_trial(raw, check_data=False)
    if spec is None:
        raise ConfigError(problems)
    return spec


def _value(node: dict[str, Any]) -> Any:
    """Return a setting as YAML has it: a plain value, a list, a mapping, or a plugin with its name."""
    inner = {key: _value(value) for key, value in node.items() if key != OWN}
    if not inner:
        return _listed(node[OWN])
    return {"name": node[OWN], **inner} if OWN in node else inner


def _listed(value: Scalar) -> Any:
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value
