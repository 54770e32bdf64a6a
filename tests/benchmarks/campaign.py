"""A campaign of 10,000 trials on 800 GPUs, simulated: how long the real queue's order makes it.

    python -m tests.benchmarks.campaign [--trials 10000] [--nodes 100] [--gpus 8] [--lost 0.05] [--png FILE]

The trials are a grid of GSSD: a threshold, a kept fraction and two settings of the retraining for each
poisoning rate and seed, with their real graphs, keys and verdicts; trainings leave made-up results. Stages
take the seconds of GSSD's table G.2, of an RTX 2080 Ti on CIFAR-10 (search_spaces/paper/published/gssd). What
it does not name takes none. Once without losses and once with a share of the nodes lost in each hour.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.faked import faked_sweep, made_up
from tests.benchmarks.memory_store import MemoryStore
from tests.benchmarks.simulated import Cluster, Course, Simulation

if TYPE_CHECKING:
    from bdtune.engine.node import Node
    from bdtune.trials.ledger import Ledger

TABLE = Path(__file__).parents[2] / "search_spaces/paper/published/gssd/table-g2.csv"
STAGES = {"simclr": "simclr", "flows": "flows_filter_relabel", "supervised": "retrain_finetune"}
"""The training that each row of the table is about, by the stage's name."""
HOUR_S = 3600.0


def published_seconds() -> dict[str, float]:
    """Return the seconds of each stage on CIFAR-10, by its name."""
    with TABLE.open(newline="") as file:
        rows = {row["stage"]: row for row in csv.DictReader(file) if row["dataset"] == "cifar10"}
    return {stage: float(rows[name]["seconds"]) for stage, name in STAGES.items()}


class Campaign:
    """The trials of a grid, whose graphs are made once for several simulations."""

    def __init__(self, trials: int, folder: Path) -> None:
        from bdtune.cluster.sweep import make_ledger
        from bdtune.config.expand import points

        spec = faked_sweep(trials, folder)
        self.folder, self.data_root = folder, spec.trial.data_root
        self.ledger: Ledger = make_ledger(spec, MemoryStore(folder / "plan"))[0]
        self.ledger.extend(points(spec)[:trials])
        self.labels = spec.trial.dataset.labels("train", self.data_root)
        self._seconds = published_seconds()

    def seconds(self, node: Node) -> float:
        """Return how long a stage takes."""
        return self._seconds.get(node.stage.name, 0.0)

    def simulated(self, cluster: Cluster, seed: int) -> tuple[Course, MemoryStore]:
        """Return the course of all trials on a cluster, and the store that they fill."""
        from bdtune.engine.execute import Executor
        from bdtune.engine.manifest import Cost
        from bdtune.engine.ready_queue import Job
        from bdtune.reading.resident import InProcess

        store = MemoryStore(self.folder / f"simulated-{time.monotonic_ns()}")
        executor = Executor(store, InProcess(self.data_root, "auto"))

        def finish(node: Node, key: str, made_for: str) -> None:
            artefact, preimage = made_up(node, self.labels, int(key, 16)), executor.resolver.preimage(node)
            cost = Cost(self.seconds(node), 0)
            store.publish(key, node.stage.kind, preimage, artefact, cost=cost, made_for=made_for)

        jobs = [
            Job(
                entry.id,
                entry.graph.goals,
                made_for=f"s/{entry.id}",
                compared_with=entry.baseline_id or "",
            )
            for entry in self.ledger.entries.values()
        ]
        return Simulation(executor, cluster, self.seconds, finish, seed).run(jobs), store


def row(course: Course, cluster: Cluster) -> dict[str, Any]:
    """Return the numbers of a course, times in hours, shares of all GPU hours of the makespan."""
    bound, all_s = course.lower_bound(cluster.slots), cluster.slots * course.makespan
    shares = {
        "computing": course.work / all_s,
        "lost": course.lost / all_s,
        "gone": course.gone / all_s,
        "held back": course.idle_held / all_s,
        "at the end": course.idle_end / all_s,
        "waiting inside": course.waited_inside / all_s,
    }
    return {
        "makespan_h": round(course.makespan / HOUR_S, 2),
        "lower_bound_h": round(bound / HOUR_S, 2),
        "ratio": round(course.makespan / bound, 3),
        "work_h": round(course.work / HOUR_S),
        "longest_trial_h": round(course.longest_path / HOUR_S, 2),
        "utilisation": round(shares["computing"], 4),
        "shares": {name: round(share, 4) for name, share in shares.items()},
        "trials": {"started": course.started, "settled": course.settled, "lost": course.trials_lost},
        "nodes_lost": course.nodes_lost,
        "computed_twice": len(course.twice),
    }


def draw(courses: dict[str, Course], cluster: Cluster, file: Path) -> None:
    """Draw busy GPUs and trials held back over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for (name, course), colour in zip(courses.items(), ("#1F78B4", "#E31A1C"), strict=False):
        hours = [at / HOUR_S for at, _, _ in course.curve]
        above.step(hours, [busy for _, busy, _ in course.curve], where="post", color=colour, label=name, lw=1)
        below.step(hours, [held for _, _, held in course.curve], where="post", color=colour, lw=1)
        above.axvline(course.lower_bound(cluster.slots) / HOUR_S, color=colour, linestyle=":", lw=1)
    above.set_ylabel("busy GPUs")
    above.set_ylim(0, cluster.slots * 1.05)
    above.legend(fontsize="small", loc="lower center", title="dotted: lower bound", title_fontsize="small")
    below.set_ylabel("held back")
    below.set_xlabel("hours")
    for axes in (above, below):
        axes.grid(alpha=0.25)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument("--lost", type=float, default=0.05, help="share of the nodes lost in an hour")
    parser.add_argument("--seed", type=int, default=0, help="of the losses")
    parser.add_argument("--png", type=Path, help="draw busy GPUs over time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        campaign, courses, rows = Campaign(options.trials, Path(name)), {}, {}
        for lost in (0.0, options.lost):
            cluster = Cluster(options.nodes, options.gpus, lost)
            title = f"{lost:.0%} of the nodes lost an hour" if lost else "no node lost"
            started = time.process_time()
            courses[title], _ = campaign.simulated(cluster, options.seed)
            rows[title] = row(courses[title], cluster)
            rows[title]["simulated_in_s"] = round(time.process_time() - started, 1)
    if options.png:
        draw(courses, cluster, options.png)
    if options.json:
        print(json.dumps({"cluster": asdict(cluster), "courses": rows}, indent=1))
        return
    print(f"{len(campaign.ledger.entries)} trials on {cluster.slots} GPUs of {cluster.nodes} nodes")
    for title, found in rows.items():
        print(f"\n{title}")
        flat = {**found, **{f"share {key}": f"{value:.2%}" for key, value in found.pop("shares").items()}}
        for key, value in flat.items():
            if key != "shares":
                print(f"  {key:22} {value}")


if __name__ == "__main__":
    main()
