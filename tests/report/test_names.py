"""What people call a trial."""

from __future__ import annotations

from bdtune.config.expand import points
from bdtune.config.load import load_sweep
from bdtune.engine.resolve import Resolver
from bdtune.engine.store import Store
from bdtune.report.names import setting_names
from bdtune.trials.ledger import Ledger

WORDS = ["dataset=digits", "attack=badnets,blend", "defense=gssd", "defense.beta_nd=0.6,1.5", "seed=0,1"]


def test_a_trial_is_called_by_what_varies(tmp_path):
    spec = load_sweep(None, WORDS)
    ledger = Ledger("s", Resolver(Store(tmp_path)), "cpu")
    ledger.extend(points(spec))
    named = setting_names(ledger, spec.axis_paths())
    names = [named(trial) for trial in ledger.entries]
    assert len(set(names)) == len(names) == 12
    assert {"badnets beta_nd=0.6 seed=0", "undefended blend seed=1"} < set(names)
    assert named("some other id") == "some other id"


def test_one_of_a_sweep_that_varies_nothing_is_called_by_its_defense(tmp_path):
    ledger = Ledger("s", Resolver(Store(tmp_path)), "cpu")
    ledger.extend(points(load_sweep(None, ["attack=badnets", "defense=gssd"])))
    assert {setting_names(ledger, [])(trial) for trial in ledger.entries} == {"gssd", "undefended"}
