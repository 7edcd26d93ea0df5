"""The items of the page: which experiments each needs, and what is made of their results."""

import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kgon.paper import bayes, dynamics, superposition, theory
from kgon.paper.dynamics import Ensemble
from kgon.paper.rows import Row
from kgon.paper.theory import Table
from kgon.posterior.transitions import sampled_transitions
from kgon.record import run_directory
from kgon.record.run_directory import Run


@dataclass(frozen=True)
class Job:
    """A command of kgon that an item needs: one run, or with `sweep` one for each combination.

    Attributes:
        command: train, llc or posterior.
        overrides: its words.
        sweep: for each swept key its values, as they are written.
        quick: words added for the ten-minute version.
    """

    command: str
    overrides: tuple[str, ...]
    sweep: tuple[tuple[str, tuple[str, ...]], ...] = ()
    quick: tuple[str, ...] = ()

    def words(self, quick: bool) -> list[str]:
        """What follows `kgon`."""
        swept = [f"{key}={','.join(values)}" for key, values in self.sweep]
        flag = ["-m"] if self.sweep else []
        return [self.command, *flag, *self.overrides, *(self.quick if quick else ()), *swept]

    def line(self, quick: bool) -> str:
        """The command as one types it."""
        return " ".join(["kgon", *(f"'{w}'" if "[" in w else w for w in self.words(quick))])

    def runs(self, quick: bool) -> list[list[str]]:
        """The overrides of each of its runs."""
        fixed = [*self.overrides, *(self.quick if quick else ())]
        values = [[f"{key}={value}" for value in values] for key, values in self.sweep]
        return [[*fixed, *chosen] for chosen in itertools.product(*values)]


def _train(experiment: str, *overrides: str, quick: tuple[str, ...] = (), **sweep: Any) -> Job:
    swept = tuple((key, tuple(values.split(";"))) for key, values in sweep.pop("sweep", {}).items())
    return Job("train", (f"experiment={experiment}", *overrides), swept, quick)


def _posterior(experiment: str) -> Job:
    few = ("n_samples=[100,200,400,600,800,1200]", "n_datasets=2", "smc.n_particles=256")
    return Job("posterior", (f"posterior_experiment={experiment}",), (), few)


_FEW = ("members=60",)
_SPARSITIES = "0.8;0.9;0.95;0.99;0.999"

JOBS: Mapping[str, Job] = {
    "figure_1": _train("figure_1", quick=("schedule.n_llc=50",)),
    "figure_3": _train("figure_3", quick=("members=100", "callbacks.llc.n_chains=2")),
    "figure_3_c5": _train("figure_3_c5", quick=_FEW),
    "figure_3_c4": _train("figure_3_c4", quick=_FEW),
    "near_zero_biases": _train("near_zero_biases", quick=_FEW),
    "normal_start": _train("normal_start", quick=_FEW),
    "normal_start_more": _train(
        "normal_start", "members=100", quick=("members=20",), sweep={"model.n_features": "7;8"}
    ),
    "figure_2": _posterior("figure_2"),
    "figure_2_unhalved": _posterior("figure_2_unhalved"),
    "figure_2_c5": _posterior("figure_2_c5"),
    "figure_2_c4": _posterior("figure_2_c4"),
    "table_k1": Job("llc", ("llc_experiment=table_k1",)),
    "approach": Job("llc", ("llc_experiment=approach",)),
    "four_gons": Job("llc", ("llc_experiment=four_gons",)),
    "four_gons_k1": Job("llc", ("llc_experiment=table_k1", "point=[4,4+,4++]")),
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
    "superposition": _train("superposition", sweep={"data.sparsity": "0;0.8;0.9"}),
    "superposition_weights": _train("superposition_weights", quick=("members=2",),
                                    sweep={"data.sparsity": "0;0.7;0.9;0.97"}),
    "superposition_dimensions": _train("superposition_dimensions",
                                       quick=("members=1", "trainer.max_steps=5000"),
                                       sweep={"data.sparsity": "0;0.5;0.7;0.8;0.9;0.95;0.98"}),
    "phase_change": _train("phase_change", quick=("trainer.max_steps=5000",), sweep={
        "data.sparsity": "0;0.5;0.7;0.8;0.9;0.95;0.99",
        "model.importance": "[1,0.1];[1,0.3];[1,1];[1,3];[1,10]"}),
    "correlated": _train("correlated_pairs", quick=("trainer.max_steps=5000",)),
    "anticorrelated": _train("anticorrelated_pairs", quick=("trainer.max_steps=5000",)),
}  # fmt: skip
"""Everything that `kgon paper` runs, by name."""


@dataclass(frozen=True)
class Results:
    """The finished runs, by job, in the order of `Job.runs`.

    Attributes:
        folders: the run directories.
        quick: whether the ten-minute version was run.
        kept: where what is computed here, and takes long, is kept.
    """

    folders: Mapping[str, list[Path]]
    quick: bool
    kept: Path

    def once(self, name: str, compute: Callable[..., Any], **settings: Any) -> Any:
        """compute(**settings), as JSON has it; of the same settings only once."""
        file = self.kept / f"{name}.json"
        if file.exists():
            stored = json.loads(file.read_text())
            if stored["settings"] == json.loads(json.dumps(settings)):
                return stored["result"]
        result = compute(**settings)
        self.kept.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        partial.write_text(json.dumps({"settings": settings, "result": result}))
        partial.replace(file)
        return json.loads(file.read_text())["result"]

    def all(self, job: str) -> list[Run]:
        return [run_directory.load(path) for path in self.folders[job]]

    def one(self, job: str) -> Run:
        (run,) = self.all(job)
        return run

    def ensemble(self, job: str) -> Ensemble:
        return Ensemble(self.one(job))


@dataclass(frozen=True)
class Block:
    """Rows that one command gave."""

    command: str
    rows: list[Row]


@dataclass(frozen=True)
class Picture:
    """A figure: its name, the function of `drawings`, its data, its caption."""

    name: str
    drawing: str
    data: Mapping[str, Any]
    caption: str


@dataclass(frozen=True)
class Section:
    """What an item shows."""

    blocks: list[Block] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Item:
    """One heading of the page.

    Attributes:
        name: in `kgon paper item=...` and in the table of results.
        title: the heading.
        needs: names of JOBS.
        make: the section, from built results.
        origin: "paper", "beyond" or "elhage".
    """

    name: str
    title: str
    needs: tuple[str, ...]
    make: Callable[[Results], Section]
    origin: str = "paper"


def _here(name: str) -> str:
    return f"kgon paper item={name}"


def _of(name: str, results: Results) -> str:
    return JOBS[name].line(results.quick)


# ------------------------------------------------------------------------------------ the paper


def _lemma(_: Results) -> Section:
    return Section([Block(_here("lemma"), theory.lemma())])


def _table_a1(_: Results) -> Section:
    rows, tables = theory.table_a1()
    return Section([Block(_here("table_a1"), rows)], tables)


def _search(_: Results) -> Section:
    rows, found = theory.search()
    none = [str(k) for k in range(4, 33) if k not in found]
    return Section(
        [Block(_here("search"), rows)],
        notes=[f"No k-gon with k = c: {', '.join(none)}, and every k from 33 to {theory.LARGEST}."]
        if max(found) < 33
        else [],
    )


def _figure_1(results: Results) -> Section:
    one, many = results.ensemble("figure_1"), results.ensemble("figure_3")
    rows, data = dynamics.figure_1(one, many)
    config = one.run.config
    chains = config["callbacks"]["llc"]["n_chains"]
    caption = (
        f"One run of plain SGD from a 4-gon: c = 6, r = 2, n = {config['n_samples']} samples, batch "
        f"{config['batch_size']}, learning rate {config['optimizer']['lr']:g}. Above: its weights at "
        "each stage (columns of W; filled by bias, ring: dead with positive bias, dot: dead with "
        "negative bias, cross: switched off). Middle: population loss (summed over coordinates) "
        f"against SGD steps. Below: λ̂ (dimensionless), mean and standard error of {chains} chains; "
        "dashed: theory."
    )
    return Section(
        [Block(_of("figure_1", results), rows[:-1]), Block(_of("figure_3", results), rows[-1:])],
        pictures=[Picture("figure_1", "staircase", data, caption)],
    )


_FIGURE_2 = (
    ("figure_2", 6, 1.0, ("5", "6")),
    ("figure_2_unhalved", 6, 0.5**0.5, ("5", "6")),
    ("figure_2_c5", 5, 1.0, ("4", "5")),
    ("figure_2_c4", 4, 1.0, None),
)


def _figure_2(results: Results) -> Section:
    blocks, tables, pictures = [], [], []
    for name, c, noise_std, pair in _FIGURE_2:
        found = bayes.diagram(results.one(name))
        rows, data = bayes.figure_2(found, c, noise_std, pair)
        blocks.append(Block(_of(name, results), rows))
        likelihood = "exp(-n L / 2)" if noise_std == 1 else "exp(-n L)"
        tables.append(bayes.share_table(found, f"c = {c}, {likelihood}"))
        caption = (
            f"Share of the posterior by number of vertices k against the sample size n (inputs), "
            f"c = {c}, likelihood {likelihood}, {len(found.datasets)} data sets, {found.n_draws} "
            "draws each by tempered SMC. Lines: mean, bands: range over data sets, by three "
            "labelling rules; vertical lines: crossings of leading-order free energies."
        )
        pictures.append(Picture(name, "shares", data, caption))
    found_in_the_limit = results.once(
        "population_posterior",
        bayes.population_posterior,
        sizes=[300, 400, 500, 550, 600, 700],
        n_particles=256 if results.quick else 1024,
        n_replicates=4,
    )
    row, table = bayes.population_crossing(found_in_the_limit)
    blocks.append(Block(_here("figure_2"), [row]))
    return Section(
        blocks,
        [*tables, table],
        pictures,
        ["The paper samples with NUTS; here tempered SMC, which needs no crossing between phases "
         "(`kgon posterior nuts.run=true` runs NUTS beside). Chains, draws and data sets of the "
         "paper: no source."],
    )  # fmt: skip


def _figure_3(results: Results) -> Section:
    blocks, pictures = [], []
    for name in ("figure_3", "figure_3_c5", "figure_3_c4"):
        many = results.ensemble(name)
        rows, loss, llc = dynamics.figure_3(many)
        config, c = many.run.config, many.n_features
        blocks.append(Block(_of(name, results), rows))
        setting = (
            f"{many.n_members} runs from 4-gons (biases N(0, 1)), c = {c}, n = "
            f"{config['n_samples']} samples, batch {config['batch_size']}, learning rate "
            f"{config['optimizer']['lr']:g}"
        )
        pictures += [
            Picture(name, "losses", loss,
                    f"Population loss (summed over coordinates) against SGD steps: {setting}. "
                    f"Horizontal: the levels of all {len(many.points)} families; colour: final "
                    "phase, with its number of runs."),
            Picture(f"{name}_llc", "llc_against_time", llc,
                    f"λ̂ (dimensionless) against SGD steps: {setting}; median and quartiles over the "
                    "members that are in a phase at that step, where there are at least five."),
        ]  # fmt: skip
    near_zero, normal = results.ensemble("near_zero_biases"), results.ensemble("normal_start")
    for name, rows in (
        ("near_zero_biases", dynamics.starts(near_zero, None)),
        ("normal_start", dynamics.starts(None, normal)),
    ):
        blocks.append(Block(_of(name, results), rows))
    return Section(
        blocks,
        pictures=pictures,
        notes=["Number of runs and the biases at the start: no source in the paper; N(0, 1) is a "
               "proposal, near-zero biases are the other option below."],
    )  # fmt: skip


def _table_k1(results: Results) -> Section:
    found = bayes.estimates(results.one("table_k1"))
    return Section(
        [Block(_of("table_k1", results), bayes.llc_rows(found, "published"))],
        pictures=[Picture("table_k1", "estimates", {"rows": found},
                          "λ̂ (dimensionless) at n = 5000 samples on one data set, c = 6: mean and "
                          f"standard error over {found[0]['n_chains']} chains; dashed: theory, x: "
                          "published with its ±.")],
        notes=["Step size, chains and localization of the paper: likely 5e-5, 10, 0.1 (P through "
               "R). kgon runs ten times the chains, and the paper's rule to discard chains with "
               "more than 5% of draws below L(w*)."],
    )  # fmt: skip


def _approach(results: Results) -> Section:
    found = bayes.estimates(results.one("approach"))
    caption = (
        "λ̂ (dimensionless) under the expected loss against n (samples), c = 6: mean and standard "
        f"error over {found[0]['n_chains']} chains; dashed: theory, x: published."
    )
    return Section(
        [Block(_of("approach", results), bayes.approach_rows(found))],
        pictures=[Picture("approach", "estimates", {"rows": found}, caption)],
    )


def _four_gons(results: Results) -> Section:
    blocks = [
        Block(_of(name, results), bayes.four_gon_rows(bayes.estimates(results.one(name)), along))
        for name, along in (("four_gons", True), ("four_gons_k1", False))
    ]
    return Section(
        blocks,
        notes=["First with the settings along SGD trajectories, then with those of Table K.1. At "
               "finite n an estimate depends on them, and chains leave 4+ and 4++ for lower ground "
               "(verdict escaped): the number is then of what they have seen, not of the point."],
    )  # fmt: skip


def _free_energies(results: Results) -> Section:
    rows, tables = theory.free_energies()
    return Section(
        [Block(_here("free_energies"), rows)],
        tables,
        notes=["What the sampled posterior does is under Figure 2; leading-order free energies miss "
               "several nats at these n."],
    )  # fmt: skip


def _antecedents(results: Results) -> Section:
    many = results.ensemble("figure_3")
    posterior = sampled_transitions(bayes.diagram(results.one("figure_2")))
    table = dynamics.antecedents(many, posterior)
    rows = dynamics.antecedent_rows(table, many.n_members)
    command = " ; ".join(_of(name, results) for name in ("figure_3", "figure_2"))
    return Section(
        [Block(command, rows)],
        [dynamics.antecedent_table(table)],
        notes=["A Bayesian transition from → to counts as existing if in the sampled posterior "
               "(Figure 2, likelihood exp(-n L / 2), labels by descent) the odds pass through 1 in "
               "at least half of the data sets; else, where the loss falls, by the order of the "
               "estimates λ̂ along training, two standard errors apart, which is the paper's own "
               "criterion. The sampled posterior is shown in any case, with its log odds of `to` "
               "against `from` at the smallest and the largest n. n_cr is where the "
               "free energies of eq. (9) cross, exp(-n L): with theory's λ (volume exponents at "
               "4-gons, unknown with φ), or with the estimates (- if one phase is preferred at "
               "all n). A negative estimate high up means order only."],
    )  # fmt: skip


def _errata(_: Results) -> Section:
    rows, tables = theory.errata()
    return Section([Block(_here("errata"), rows)], tables)


# ------------------------------------------------------------------------------ beyond the paper


def _more_features(results: Results) -> Section:
    found = [Ensemble(run) for run in results.all("normal_start_more")]
    rows = [
        Row(f"c = {e.n_features}: runs from W, b ~ N(0, 1) that end on a k-gon",
            1 - e.final_phases.count("other") / e.n_members, digits=2,
            text=f"{e.n_members - e.final_phases.count('other')} of {e.n_members}")
        for e in found
    ]  # fmt: skip
    return Section(
        [Block(_of("normal_start_more", results), rows)],
        [dynamics.final_phases(found), theory.other_features((4, 5, 7, 8, 12))],
    )


def _first_transition(results: Results) -> Section:
    blocks, table = [], []
    for name in ("batch_size", "lr_low", "lr_high", "lr_highest"):
        found = dynamics.first_transition(Ensemble(run) for run in results.all(name))
        rows = [
            Row(f"batch {r['batch_size']}, learning rate {r['lr']:g}: share of runs that leave "
                "their first plateau", r["share"], stderr=r["share_stderr"], digits=3,
                remark=f"step x learning rate at leaving: median {r['median']:.0f}, quartiles "
                f"{r['low']:.0f} and {r['high']:.0f}, of {r['left']} that leave; end at "
                f"{r['end']:.0f}")
            for r in found
        ]  # fmt: skip
        blocks.append(Block(_of(name, results), rows))
        table += found
    caption = (
        "When runs leave their first plateau: step × learning rate (median and quartiles of those "
        f"that leave) and the share that does by {table[0]['end']:.0f}, against batch size and "
        f"learning rate; c = 6, n = 1000 samples, up to {max(r['members'] for r in table)} runs each."
    )
    return Section(
        blocks,
        pictures=[Picture("first_transition", "first_transition", {"rows": table}, caption)],
    )


def _sparsity(results: Results) -> Section:
    table = dynamics.survival(Ensemble(run) for run in results.all("sparsity"))
    normal = [Ensemble(run) for run in results.all("sparsity_normal")]
    rows = [
        Row(f"S = {s:g}: starts whose phase survives in most members", float(len(names)), digits=0,
            text=", ".join(names) or "none")
        for s in sorted({r["sparsity"] for r in table})
        for names in [[r["label"] for r in table
                       if r["sparsity"] == s and r["survived"] > r["members"] / 2]]
    ]  # fmt: skip
    config = results.all("sparsity")[0].config
    caption = (
        "Members (of those started there) that are still in the phase of their start, and where "
        f"most others went, by sparsity S; c = 6, fresh inputs, Adam, {config['trainer']['max_steps']}"
        f" steps of {config['batch_size']} inputs."
    )
    return Section(
        [Block(_of("sparsity", results), rows)],
        [dynamics.final_phases(normal)],
        [Picture("sparsity", "survival", {"rows": table}, caption)],
        ["Unlike the paper's limit, data of sparsity S hold inputs that are zero, and those push "
         "positive biases of dead features down to (1 - S) / 2: the + of a phase is a matter of the "
         "limit's condition that one feature is active. The table starts from W, b ~ N(0, 1): "
         f"`{_of('sparsity_normal', results)}`."],
    )  # fmt: skip


# --------------------------------------------------------------------------------- Elhage et al.


def _adam(run: Run) -> str:
    config = run.config
    return (
        f"{len(run.members)} members, fresh inputs, Adam, {config['trainer']['max_steps']} steps of "
        f"{config['batch_size']} inputs"
    )


def _superposition(results: Results) -> Section:
    runs_ = results.all("superposition")
    polygons = superposition.best_weights(runs_)
    wide = results.all("superposition_weights")
    grams = superposition.best_weights(wide)
    return Section(
        [Block(_of("superposition", results), superposition.polygon_rows(polygons)),
         Block(_of("superposition_weights", results), superposition.polygon_rows(grams))],
        pictures=[
            Picture("superposition", "polygons", polygons,
                    f"Columns of W in the plane (dashed: unit circle), WᵀW and b by sparsity S; 5 "
                    f"features of importance 0.9^i, best of {_adam(runs_[0])}."),
            Picture("superposition_weights", "grams", grams,
                    "WᵀW and b, and the dimensionality D of each feature, by sparsity S; 20 features "
                    f"of importance 0.7^i in 5 dimensions, best of {_adam(wide[0])}."),
        ],
    )  # fmt: skip


def _phase_change(results: Results) -> Section:
    found = results.all("phase_change")
    data = superposition.phase_change(found)
    caption = (
        "What becomes of the second of two features in one dimension, by sparsity S and importance "
        f"relative to the first; best of {_adam(found[0])}."
    )
    return Section(
        [Block(_of("phase_change", results), superposition.phase_change_rows(data))],
        pictures=[Picture("phase_change", "phase_change", data, caption)],
    )


def _dimensions(results: Results) -> Section:
    found = results.all("superposition_dimensions")
    data = superposition.best_weights(found)
    caption = (
        "Dimensionality D of each of 40 equally important features in 10 dimensions against "
        f"1 / (1 - S), and dimensions per feature; best of {_adam(found[0])}. Dotted: 1/2 is an "
        "antipodal pair, 2/3 a triangle, 2/5 a pentagon, 3/4 a tetrahedron."
    )
    return Section(
        [Block(_of("superposition_dimensions", results), superposition.dimension_rows(data))],
        pictures=[Picture("superposition_dimensions", "dimensions", data, caption)],
    )


def _pairs(results: Results) -> Section:
    kinds = ("correlated", "anticorrelated")
    data = superposition.pairs({kind: results.one(kind) for kind in kinds})
    blocks = [
        Block(_of(kind, results), superposition.pair_rows({"kinds": [entry]}))
        for kind, entry in zip(kinds, data["kinds"], strict=True)
    ]
    caption = (
        "Pairs a, a' and b, b' of features that are active together (left) or never together "
        "(right): the best member's columns, and the cosine between the two features of every "
        f"represented pair; 4 features in 2 dimensions, {_adam(results.one('correlated'))}."
    )
    return Section(blocks, pictures=[Picture("pairs", "pairs", data, caption)])


ITEMS: tuple[Item, ...] = (
    Item("lemma", "Lemma 3.1: the population loss", (), _lemma),
    Item("table_a1", "Table A.1: k-gons, their losses and learning coefficients", (), _table_a1),
    Item("search", "For which k = c a k-gon exists", (), _search),
    Item("figure_1", "Figure 1: opposing staircases", ("figure_1", "figure_3"), _figure_1),
    Item("figure_2", "Figure 2: phases of the posterior",
         ("figure_2", "figure_2_unhalved", "figure_2_c5", "figure_2_c4"), _figure_2),
    Item("figure_3", "Figure 3: training from 4-gons",
         ("figure_3", "figure_3_c5", "figure_3_c4", "near_zero_biases", "normal_start"), _figure_3),
    Item("table_k1", "Table K.1: learning coefficients at n = 5000", ("table_k1",), _table_k1),
    Item("approach", "Estimates approach theory", ("approach",), _approach),
    Item("four_gons", "Learning coefficients of 4-gons", ("four_gons", "four_gons_k1"), _four_gons),
    Item("free_energies", "Free energies: where phases cross", (), _free_energies),
    Item("antecedents", "Bayesian antecedents of dynamical transitions",
         ("figure_3", "figure_2"), _antecedents),
    Item("errata", "Errata of the paper", (), _errata),
    Item("more_features", "k-gons for other c", ("normal_start_more",), _more_features, "beyond"),
    Item("first_transition", "The first transition against batch size and learning rate",
         ("batch_size", "lr_low", "lr_high", "lr_highest"), _first_transition, "beyond"),
    Item("sparsity", "Finite sparsity: which phases survive", ("sparsity", "sparsity_normal"),
         _sparsity, "beyond"),
    Item("superposition", "Features in superposition against sparsity",
         ("superposition", "superposition_weights"), _superposition, "elhage"),
    Item("phase_change", "Superposition against sparsity and importance", ("phase_change",),
         _phase_change, "elhage"),
    Item("dimensions", "Dimensionality of features", ("superposition_dimensions",), _dimensions,
         "elhage"),
    Item("pairs", "Correlated and anticorrelated pairs", ("correlated", "anticorrelated"), _pairs,
         "elhage"),
)  # fmt: skip
"""The page, in order."""


def check_names(names: list[str]) -> None:
    """ValueError for an item that there is not."""
    known = [item.name for item in ITEMS]
    for name in names:
        if name not in known:
            raise ValueError(f"item must be some of {', '.join(known)}, got {name}")
