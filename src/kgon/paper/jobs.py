"""The runs that the items need, and access to their results."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kgon.files import write_text
from kgon.paper.ensemble import Ensemble
from kgon.record import run_directory
from kgon.record.run_directory import Run


@dataclass(frozen=True)
class Job:
    """A command of kgon that an item needs: one run, or with `sweep` one for each combination.

    Attributes:
        command: train, llc, posterior or atlas.
        overrides: Hydra overrides.
        sweep: the values of each swept key, separated by semicolons.
        quick: overrides added for the ten-minute version.
    """

    command: str
    overrides: tuple[str, ...]
    sweep: Mapping[str, str] = field(default_factory=dict)
    quick: tuple[str, ...] = ()

    def words(self, quick: bool) -> list[str]:
        """The command line after `kgon`."""
        swept = [f"{key}={values.replace(';', ',')}" for key, values in self.sweep.items()]
        flag = ["-m"] if self.sweep else []
        return [self.command, *flag, *self.overrides, *(self.quick if quick else ()), *swept]

    def text(self, quick: bool) -> str:
        """The command line as typed in a shell."""
        return " ".join(["kgon", *(f"'{w}'" if "[" in w else w for w in self.words(quick))])

    def runs(self, quick: bool) -> list[list[str]]:
        """The overrides of each run."""
        fixed = [*self.overrides, *(self.quick if quick else ())]
        values = [[f"{key}={v}" for v in values.split(";")] for key, values in self.sweep.items()]
        return [[*fixed, *chosen] for chosen in itertools.product(*values)]


def _train(experiment: str, *overrides: str, **more: Any) -> Job:
    return Job("train", (f"experiment={experiment}", *overrides), **more)


def _posterior(experiment: str) -> Job:
    few = ("n_samples=[100,200,400,600,800,1200]", "n_datasets=2", "smc.n_particles=256")
    return Job("posterior", (f"experiment={experiment}",), quick=few)


_FEW = ("members=60",)
_SPARSITIES = "0.8;0.9;0.95;0.99;0.999"

JOBS: Mapping[str, Job] = {
    "figure_1": _train("figure_1", quick=("schedule.n_llc=50",)),
    "figure_3": _train("figure_3", quick=("members=100", "callbacks.llc.n_chains=2")),
    "figure_3_c5": _train("figure_3_c5", quick=_FEW),
    "figure_3_c4": _train("figure_3_c4", quick=_FEW),
    # Many snapshots show where runs pass between two phases; estimates are not needed.
    "passes": _train("figure_3", "schedule.n_snapshots=1000",
                     "callbacks=[losses,snapshots,phases,checkpoint,progress]",
                     quick=("members=100",)),
    "near_zero_biases": _train("near_zero_biases", quick=_FEW),
    "normal_start": _train("normal_start", quick=_FEW),
    "normal_start_more": _train(
        "normal_start", "members=100", quick=("members=20",), sweep={"model.n_features": "7;8"}
    ),
    "figure_2": _posterior("figure_2"),
    "figure_2_unhalved": _posterior("figure_2_unhalved"),
    "figure_2_c5": _posterior("figure_2_c5"),
    "figure_2_c4": _posterior("figure_2_c4"),
    "llc": Job("llc", ()),
    "table_k1": Job("llc", ("experiment=table_k1",)),
    "approach": Job("llc", ("experiment=approach",)),
    "approach_k1": Job("llc", (
        "experiment=table_k1", "loss=population", "n_samples=[5000,50000,500000]",
        "lr=[5e-5,6.35e-6,7.7e-7]")),
    "four_gons": Job("llc", ("experiment=four_gons",)),
    "four_gons_k1": Job("llc", ("experiment=table_k1", "point=[4,4+,4++]")),
    "batch_size": _train("first_transition", quick=_FEW, sweep={"batch_size": "5;20;80"}),
    "lr_low": _train("first_transition", "optimizer.lr=0.0025", "trainer.max_steps=450000",
                     quick=_FEW),
    "lr_high": _train("first_transition", "optimizer.lr=0.01", "trainer.max_steps=112500",
                      quick=_FEW),
    "lr_highest": _train("first_transition", "optimizer.lr=0.02", "trainer.max_steps=56250",
                         quick=_FEW),
    "sparsity": _train("sparsity", quick=("members=8", "trainer.max_steps=5000"),
                       sweep={"data.sparsity": _SPARSITIES, "init.label": "4;4+;4++;5;5+;6"}),
    "sparsity_normal": _train("sparsity", "init=normal", "init.bias_std=1", "members=64",
                              quick=("members=16", "trainer.max_steps=5000"),
                              sweep={"data.sparsity": _SPARSITIES}),
    "escape_rates": Job("atlas", ("experiment=escape_rates",), quick=(
        "escape.barriers=[3,5]", "escape.n_chains=100")),
    "escape_sgd": _train("escape_sgd", quick=("members=40", "trainer.max_steps=10000"),
                         sweep={"optimizer.lr": "0.02;0.05;0.1", "batch_size": "1;2;4"}),
    "three_dimensions": _posterior("three_dimensions"),
    "three_dimensions_training": Job("train", (
        "model.n_features=7", "model.n_hidden=3", "init.label=2x2x2", "members=200",
        "schedule.n_llc=15"), quick=("members=40", "callbacks.llc.n_chains=2")),
    "superposition": _train("superposition", sweep={"data.sparsity": "0;0.8;0.9"}),
    "superposition_weights": _train("superposition_weights", quick=("members=2",),
                                    sweep={"data.sparsity": "0;0.7;0.9;0.97"}),
    "superposition_dimensions": _train("superposition_dimensions",
                                       quick=("members=1", "trainer.max_steps=5000"),
                                       sweep={"data.sparsity": "0;0.5;0.7;0.8;0.9;0.95;0.98"}),
    "phase_change": _train("phase_change", quick=("trainer.max_steps=5000",), sweep={
        "data.sparsity": "0;0.5;0.7;0.8;0.9;0.95;0.99",
        "model.importance": "[1,0.1];[1,0.3];[1,1];[1,3];[1,10]"}),
    "phase_change_3": _train("phase_change_3", quick=("trainer.max_steps=5000",), sweep={
        "data.sparsity": "0;0.5;0.7;0.8;0.9;0.95;0.99",
        "model.importance": "[1,1,0.1];[1,1,0.3];[1,1,1];[1,1,3];[1,1,10]"}),
    "learning_dynamics": _train("learning_dynamics", quick=("members=2",)),
    "feature_sparsity": _train("feature_sparsity", quick=("members=4",)),
    "correlated": _train("correlated_pairs", quick=("trainer.max_steps=5000",)),
    "anticorrelated": _train("anticorrelated_pairs", quick=("trainer.max_steps=5000",)),
}  # fmt: skip
"""All jobs of `kgon paper`, by name."""


@dataclass(frozen=True)
class Results:
    """The finished runs of all jobs.

    Attributes:
        folders: the run directories of each job, in the order of `Job.runs`.
        quick: whether the ten-minute version was run.
        kept: the folder that stores the results of `once`.
    """

    folders: Mapping[str, list[Path]]
    quick: bool
    kept: Path

    def once(self, name: str, compute: Callable[..., Any], **settings: Any) -> Any:
        """The result of compute(**settings) after a round trip through JSON.

        It is stored under the name, and computed again only for other settings.
        """
        file = self.kept / f"{name}.json"
        stored = json.loads(file.read_text()) if self.has(name) else {}
        if stored.get("settings") != json.loads(json.dumps(settings)):
            stored = {"settings": settings, "result": compute(**settings)}
            self.kept.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(stored))
            stored = json.loads(file.read_text())
        return stored["result"]

    def has(self, name: str) -> bool:
        """Whether `once` has stored a result under this name."""
        return (self.kept / f"{name}.json").exists()

    def all(self, job: str) -> list[Run]:
        return [run_directory.load(path) for path in self.folders[job]]

    def one(self, job: str) -> Run:
        (run,) = self.all(job)
        return run

    def ensemble(self, job: str) -> Ensemble:
        return Ensemble(self.one(job))
