from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bdtune.trials.results import DataUse, StageUse, TrialResult

NOLOAD = (
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"  # mlflow with SQLAlchemy 2.1
)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(NOLOAD))
            if "template_db" in item.fixturenames:  # importing MLflow alone takes ten seconds
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def template_db(tmp_path_factory) -> Path:
    """A migrated database, made once: creating one takes seconds, copying it milliseconds."""
    import warnings

    from bdtune.tracking.deliver import connect
    from bdtune.tracking.store import TrackingStore

    run_dir = tmp_path_factory.mktemp("template")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        connect(TrackingStore.of(run_dir, f"sqlite:///{run_dir}/mlflow.db"))
    return run_dir / "mlflow.db"


@pytest.fixture
def run_dir(tmp_path, template_db, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(template_db, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="session")
def make_trial():
    def make(number: int = 0, **changes) -> TrialResult:
        values = {
            "id": f"trial{number:03d}",
            "status": "done",
            "params": {
                "dataset": "digits",
                "attack.rate": 0.1,
                "defense.beta_nd": 0.5 + number,
                "defense.verbose": True,
                "seed": number % 2,
            },
            "metrics": {"acc": 0.99, "asr": 0.01 * number, "gssd/detected_target": 1.0},
            "stages": {
                "simclr": StageUse("a" * 16, computed=number == 0, seconds=20.0),
                "supervised": StageUse(f"{number:016x}", computed=True, seconds=5.0),
            },
            "data": DataUse("digits+badnets", "0123456789abcdef" * 3),
            "curves": {"supervised": [{"epoch": e, "loss": 1.0 / e, "lr": 0.1} for e in (1, 2, 3)]},
            "started": 1_700_000_000.0 + number,
            "ended": 1_700_000_030.5 + number,
        }
        return TrialResult(**{**values, **changes})

    return make
