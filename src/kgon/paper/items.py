"""The items of the page: the jobs that each needs, and the section made from their results."""

from dataclasses import asdict

from kgon.paper import (
    antecedents,
    bayes,
    computation,
    dynamics,
    errata,
    passes,
    rates,
    superposition,
    theory,
    three_dimensions,
)
from kgon.paper.ensemble import Ensemble
from kgon.paper.jobs import Results
from kgon.paper.rows import Row
from kgon.paper.section import Block, Item, Picture, Section, item_command, job_command
from kgon.posterior.transitions import sampled_transitions

# ------------------------------------------------------------------------------------ the paper


def _lemma(_: Results) -> Section:
    return Section([Block(item_command("lemma"), theory.lemma())])


def _table_a1(_: Results) -> Section:
    rows, tables = theory.table_a1()
    return Section([Block(item_command("table_a1"), rows)], tables)


def _search(_: Results) -> Section:
    rows, found = theory.search()
    none = [str(k) for k in range(4, 33) if k not in found]
    return Section(
        [Block(item_command("search"), rows)],
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
        f"against SGD steps. Below: λ̂ (dimensionless) and its total error, {chains} chains; "
        "hollow: verdict not ok; dashed: theory."
    )
    return Section(
        [
            Block(job_command("figure_1", results), rows[:-1]),
            Block(job_command("figure_3", results), rows[-1:]),
        ],
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
        blocks.append(Block(job_command(name, results), rows))
        likelihood = "exp(-n L / 2)" if noise_std == 1 else "exp(-n L)"
        tables.append(bayes.share_table(found, f"c = {c}, {likelihood}"))
        caption = (
            f"Share of the posterior by number of vertices k against the sample size n (inputs), "
            f"c = {c}, likelihood {likelihood}, {len(found.datasets)} data sets, {found.n_draws} "
            "draws each by tempered SMC. Lines: mean, bands: range over data sets, by three "
            "labelling rules; vertical lines: crossings of leading-order free energies."
        )
        pictures.append(Picture(name, "shares", data, caption))
    of_expected_loss = results.once(
        "population_posterior",
        bayes.population_posterior,
        sizes=[300, 400, 500, 550, 600, 700],
        n_particles=256 if results.quick else 1024,
        n_replicates=4,
    )
    row, table = bayes.population_crossing(of_expected_loss)
    blocks.append(Block(item_command("figure_2"), [row]))
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
        blocks.append(Block(job_command(name, results), rows))
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
    for name, start_rows in (
        ("near_zero_biases", dynamics.near_zero_starts),
        ("normal_start", dynamics.normal_starts),
    ):
        blocks.append(Block(job_command(name, results), start_rows(results.ensemble(name))))
    return Section(
        blocks,
        pictures=pictures,
        notes=["Number of runs and the biases at the start: no source in the paper; N(0, 1) is a "
               "proposal, near-zero biases are the other option below."],
    )  # fmt: skip


def _table_k1(results: Results) -> Section:
    exact, published = (bayes.estimates(results.one(job)) for job in ("llc", "table_k1"))
    caption = (
        "λ̂ (dimensionless) at n = 5000 samples on one data set, c = 6, and its total error; dashed: "
        "theory, x: published with its ±. "
    )
    return Section(
        [
            Block(job_command("llc", results), bayes.llc_rows(exact)),
            Block(job_command("table_k1", results), bayes.llc_rows(published)),
        ],
        pictures=[
            Picture("llc", "estimates", {"rows": exact},
                    caption + "Hamiltonian Monte Carlo at localization 0.6 √(nβ)."),
            Picture("table_k1", "estimates", {"rows": published},
                    caption + "SGLD by the paper's protocol; pale: not ok."),
        ],
        notes=["First kgon's own estimates: Hamiltonian Monte Carlo, which has no step bias, at a "
               "localization at which chains stay at these minima. Then the paper's protocol: step "
               "size, chains and localization likely 5e-5, 10, 0.1 (P through R), with ten times the "
               "chains and the paper's rule to discard those with more than 5% of draws below L(w*). "
               "Its chains have not forgotten their start. Exact chains with the same settings "
               "leave 5 and 5+: the published numbers are of chains on their way."],
    )  # fmt: skip


def _approach(results: Results) -> Section:
    exact, published = (bayes.estimates(results.one(job)) for job in ("approach", "approach_k1"))
    caption = (
        "λ̂ (dimensionless) under the expected loss against n (samples), c = 6, and its total error; "
        "dashed: theory. "
    )
    return Section(
        [
            Block(job_command("approach", results), bayes.approach_rows(exact)),
            Block(job_command("approach_k1", results), bayes.approach_rows(published)),
        ],
        pictures=[
            Picture("approach", "estimates",
                    {"rows": [row | {"published": None} for row in exact]},
                    f"{caption}Hamiltonian Monte Carlo at localization 0.6 √(nβ)."),
            Picture("approach_k1", "estimates", {"rows": published},
                    f"{caption}SGLD by the protocol of Table K.1; pale: not ok, x: published."),
        ],
        notes=["First kgon's own estimates, then the protocol of the published numbers: SGLD at "
               "localization 0.1, which exact chains do not stay at."],
    )  # fmt: skip


def _four_gons(results: Results) -> Section:
    blocks = [
        Block(
            job_command(name, results),
            bayes.four_gon_rows(bayes.estimates(results.one(name)), along),
        )
        for name, along in (("four_gons", True), ("four_gons_k1", False))
    ]
    return Section(
        blocks,
        notes=["First by the protocol along SGD trajectories, then by that of Table K.1. Neither is "
               "ok: the chains are too short, and they leave 4+ and 4++ for lower ground (verdict "
               "escaped). The number is then of what they have seen, not of the point."],
    )  # fmt: skip


def _free_energies(results: Results) -> Section:
    rows, tables = theory.free_energies()
    return Section(
        [Block(item_command("free_energies"), rows)],
        tables,
        notes=["What the sampled posterior does is under Figure 2; leading-order free energies miss "
               "several nats at these n."],
    )  # fmt: skip


def _antecedents(results: Results) -> Section:
    many = results.ensemble("figure_3")
    posterior = sampled_transitions(bayes.diagram(results.one("figure_2")))
    table = antecedents.antecedents(many, posterior)
    rows = antecedents.antecedent_rows(table, many.n_members)
    commands = " ; ".join(job_command(name, results) for name in ("figure_3", "figure_2"))
    return Section(
        [Block(commands, rows)],
        [antecedents.antecedent_table(table)],
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
    rows, tables = errata.errata()
    return Section([Block(item_command("errata"), rows)], tables)


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
        [Block(job_command("normal_start_more", results), rows)],
        [dynamics.final_phases(found), theory.other_features()],
    )


def _first_transition(results: Results) -> Section:
    blocks, found = [], []
    for name in ("batch_size", "lr_low", "lr_high", "lr_highest"):
        own = [dynamics.first_transition(Ensemble(run)) for run in results.all(name)]
        rows = [
            Row(f"batch {f.batch_size}, learning rate {f.lr:g}: share of runs that leave "
                "their first plateau", f.share, stderr=f.share_stderr, digits=3,
                remark=f"step x learning rate at leaving: median {f.median:.0f}, quartiles "
                f"{f.low:.0f} and {f.high:.0f}, of {f.left} that leave; end at {f.end:.0f}")
            for f in own
        ]  # fmt: skip
        blocks.append(Block(job_command(name, results), rows))
        found += own
    caption = (
        "When runs leave their first plateau: step × learning rate (median and quartiles of those "
        f"that leave) and the share that does by {found[0].end:.0f}, against batch size and "
        f"learning rate; c = 6, n = 1000 samples, up to {max(f.members for f in found)} runs each."
    )
    return Section(
        blocks,
        pictures=[Picture("first_transition", "first_transition",
                          {"rows": [asdict(f) for f in found]}, caption)],
    )  # fmt: skip


def _sparsity(results: Results) -> Section:
    found = [dynamics.survival(Ensemble(run)) for run in results.all("sparsity")]
    normal = [Ensemble(run) for run in results.all("sparsity_normal")]
    rows = [
        Row(f"S = {s:g}: starts whose phase survives in most members", float(len(names)), digits=0,
            text=", ".join(names) or "none")
        for s in sorted({f.sparsity for f in found})
        for names in [[f.label for f in found if f.sparsity == s and f.survived > f.members / 2]]
    ]  # fmt: skip
    config = results.all("sparsity")[0].config
    caption = (
        "Members (of those started there) that are still in the phase of their start, and where "
        f"most others went, by sparsity S; c = 6, fresh inputs, Adam, {config['trainer']['max_steps']}"
        f" steps of {config['batch_size']} inputs."
    )
    return Section(
        [Block(job_command("sparsity", results), rows)],
        [dynamics.final_phases(normal)],
        [Picture("sparsity", "survival", {"rows": [asdict(f) for f in found]}, caption)],
        ["Unlike the paper's limit, data of sparsity S hold inputs that are zero, and those push "
         "positive biases of dead features down to (1 - S) / 2: the + of a phase is a matter of the "
         "limit's condition that one feature is active. The table starts from W, b ~ N(0, 1): "
         f"`{job_command('sparsity_normal', results)}`."],
    )  # fmt: skip


ITEMS: tuple[Item, ...] = (
    Item("lemma", "Lemma 3.1: the population loss", (), _lemma),
    Item("table_a1", "Table A.1: k-gons, their losses and learning coefficients", (), _table_a1),
    Item("search", "For which k = c a k-gon exists", (), _search),
    Item("figure_1", "Figure 1: opposing staircases", ("figure_1", "figure_3"), _figure_1),
    Item("figure_2", "Figure 2: phases of the posterior",
         ("figure_2", "figure_2_unhalved", "figure_2_c5", "figure_2_c4"), _figure_2),
    Item("figure_3", "Figure 3: training from 4-gons",
         ("figure_3", "figure_3_c5", "figure_3_c4", "near_zero_biases", "normal_start"), _figure_3),
    Item("table_k1", "Table K.1: learning coefficients at n = 5000", ("llc", "table_k1"), _table_k1),
    Item("approach", "Estimates approach theory", ("approach", "approach_k1"), _approach),
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
    Item("passes", "Which passes transitions take", ("passes",), passes.section, "beyond"),
    Item("escape_rates", "Rates of leaving a phase, by Langevin dynamics", ("escape_rates",),
         rates.langevin_section, "beyond"),
    Item("escape_sgd", "Rates of leaving a phase, by SGD", ("escape_sgd",), rates.sgd_section,
         "beyond"),
    Item("three_dimensions", "Phases in three dimensions",
         ("three_dimensions", "three_dimensions_training"), three_dimensions.section, "beyond"),
    Item("superposition", "Features in superposition against sparsity",
         ("superposition", "superposition_weights"), superposition.polygons_section, "elhage"),
    Item("phase_change", "Superposition against sparsity and importance",
         ("phase_change", "phase_change_3"),
         superposition.phase_change_section, "elhage"),
    Item("dimensions", "Dimensionality of features", ("superposition_dimensions",),
         superposition.dimensions_section, "elhage"),
    Item("learning_dynamics", "Dimensionality during training", ("learning_dynamics",),
         superposition.dynamics_section, "elhage"),
    Item("feature_sparsity", "Features of different sparsity", ("feature_sparsity",),
         superposition.feature_sparsity_section, "elhage"),
    Item("pairs", "Correlated and anticorrelated pairs", ("correlated", "anticorrelated"),
         superposition.pairs_section, "elhage"),
    Item("computation", "Absolute values computed in superposition", (), computation.section,
         "elhage", "computation"),
)  # fmt: skip
"""The page, in order."""


def check_names(names: list[str]) -> None:
    """Raise ValueError for an unknown item."""
    known = [item.name for item in ITEMS]
    for name in names:
        if name not in known:
            raise ValueError(f"item must be some of {', '.join(known)}, got {name}")
