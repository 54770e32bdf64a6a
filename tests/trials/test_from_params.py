"""Results hold every setting of their trial: it can be made of them again."""

from __future__ import annotations

import pytest

from bdtune.config.expand import points
from bdtune.config.load import load_sweep, search_spaces
from bdtune.config.search import preview
from bdtune.config.trial import to_params, trial_id
from bdtune.errors import ConfigError
from bdtune.trials.from_params import spec_from_params
from bdtune.trials.graph import undefended


@pytest.mark.parametrize("name", [space.name for space in search_spaces()])
def test_trials_of_every_search_space_are_made_of_their_params_again(name):
    spec = load_sweep(name, check_data=False)
    trials = preview(spec, 4) if spec.search else points(spec)
    for trial in [*trials[:3], *trials[-3:]]:
        for each in filter(None, (trial, undefended(trial))):
            again = spec_from_params(to_params(each), each.data_root)
            assert trial_id(again) == trial_id(each)
            assert to_params(again) == to_params(each)
            assert again.data_root == each.data_root


def test_settings_that_this_version_lacks_are_named():
    params = to_params(load_sweep("gssd").trial)
    with pytest.raises(ConfigError, match="Did you mean 'beta_nd'"):
        spec_from_params({**params, "defense.beta_ndd": 1.0}, None)
