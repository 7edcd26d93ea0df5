"""From pytest-benchmark's file to docs/benchmarks.md: one table of ratios, and a figure.

python bench/table.py RESULTS.json docs
"""

import json
import math
import platform
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000"]
MARKERS = "osD^vx"


def rows(results):
    """One row a benchmark: what, who, members, microseconds of CPU a step and member (the least of
    its rounds)."""
    for entry in results["benchmarks"]:
        about = entry["extra_info"]
        share = 1e6 / (about["steps"] * about["members"])
        if "seconds" in about:  # of several sizes, in turns
            for size, seconds in about["seconds"].items():
                yield {**about, about["column"]: int(size), "us": seconds * share}
        else:
            yield {**about, "us": entry["stats"]["min"] * share}


def ratio_table(found, what, base):
    """Microseconds of `base` and the others as multiples of it, by number of members."""
    by = {(r["who"], r["members"]): r["us"] for r in found if r["what"] == what}
    sizes = sorted({members for _, members in by})
    others = [who for who in dict.fromkeys(who for who, _ in by) if who != base]
    lines = [
        f"| members | {base}, us | " + " | ".join(others) + " |",
        "|--:|--:|" + "--:|" * len(others),
    ]
    for size in sizes:
        mine = by.get((base, size))
        if mine is None:
            continue
        cells = [_times(by[who, size] / mine) if (who, size) in by else "" for who in others]
        lines.append(f"| {size:,} | {mine:.3g} | " + " | ".join(cells) + " |")
    return lines


def _times(ratio):
    return f"{_digits(ratio)} x"


def _digits(number):
    """Three digits, without a power of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def error_tables(found):
    """CPU seconds until the error is 0.1, by sampler, also as multiples of the first; and the
    estimates, each with its distance from the long run's in combined errors."""
    by = defaultdict(dict)
    for r in found:
        if r["what"] == "error":
            by[r["point"], r["n_features"], r["n_samples"]][r["who"]] = r
    samplers = list(dict.fromkeys(who for of in by.values() for who in of))
    checked = [who for who in samplers if all("value" in of[who] for of in by.values())]
    times = [
        "| w* | n | " + ", s | ".join([*samplers, "NUTS' compiling"]) + ", s |",
        "|---|--:|" + "--:|" * (len(samplers) + 1),
    ]
    values = [
        "| w* | n | long HMC | " + " | ".join(checked) + " |",
        "|---|--:|--:|" + "--:|" * len(checked),
    ]
    for (point, n_features, n), of in by.items():
        at = f"| {point} of {n_features} | {n:,} |"
        seconds = {who: r["us"] / 1e6 * r.get("needed", 1) for who, r in of.items()}
        base = seconds[samplers[0]]
        cells = [f"{_digits(s)} ({_times(s / base)})" for s in (seconds[w] for w in samplers[1:])]
        compiling = _digits(of["numpyro NUTS"]["compiling"])
        times.append(f"{at} {' | '.join([_digits(base), *cells, compiling])} |")
        value, error = of[samplers[0]]["reference"]
        cells = [f"{value:.3f} ± {error:.3f}"]
        for r in (of[who] for who in checked):
            apart = abs(r["value"] - value) / math.hypot(r["error"], error)
            cells.append(f"{r['value']:.2f} ± {r['error']:.2f} ({apart:.1f})")
        values.append(f"{at} {' | '.join(cells)} |")
    return times, values


def module_table(found):
    """Microseconds of a chain's step on a module, by the number of chains; devinterp has one."""
    us = {(r["who"], r["members"]): r["us"] for r in found if r["what"] == "module"}
    peer = us.pop(("devinterp", 1))
    rows = [f"| {n} | {t:,.0f} | {_times(peer / t)} |" for (_, n), t in sorted(us.items())]
    return [
        "| chains | kgon, us | devinterp, one after the other |", "|--:|--:|--:|", *rows, "",
        "A network of 2,410 parameters in float32, 1,400 samples, 500 draws; below 1 x devinterp is faster. *kgon*:",
        "`estimate_module_llc` with its checks, among them a descent from w* of 200 gradients, and its diagnostics. *devinterp*:",
        "`sample_single_chain` with the same settings, without its two garbage collections. Both take the module's own gradient",
        "at each step: kgon saves what surrounds it, and the more the more chains there are.",
    ]  # fmt: skip


def posterior_table(found):
    """CPU seconds of a whole posterior, and what it found with the spread of replicates."""
    lines = [
        "| sampler | CPU, s | P(5) | P(6) | log evidence |",
        "|---|--:|--:|--:|--:|",
    ]
    for r in found:
        if r["what"] == "posterior":
            cells = [
                f"{r[name]:.{digits}f} ± {r[f'{name}_sd']:.{digits}f}"
                for name, digits in (("p5", 3), ("p6", 3), ("log_evidence", 2))
            ]
            seconds = r["us"] * r["members"] / 1e6
            lines.append(f"| {r['who']} | {seconds:.3g} | {' | '.join(cells)} |")
    return lines


def peer_ratio(cpu_seconds):
    """In words how many times kgon's CPU time the other samplers take."""
    others = {who: s / cpu_seconds["kgon"] for who, s in cpu_seconds.items() if who != "kgon"}
    words = [f"{who}: {ratio:.1f} x" for who, ratio in others.items()]
    return f"CPU time in units of kgon's: {'; '.join(words)}."


def framework(found):
    """What Lightning adds to a bare loop, the LLC estimates to training, and the way to a job's
    first step."""
    us = {r["who"]: r["us"] for r in found if r["what"] == "framework"}
    bare, through, with_llc = (
        us[who] for who in ("bare loop", "through Lightning", "with LLC estimates")
    )
    seconds = {
        r["estimates"]: r["us"] * r["members"] * r["steps"] / 1e6
        for r in found
        if r["what"] == "job"
    }
    without, most = min(seconds), max(seconds)
    share = 100 * (seconds[most] / seconds[without] - 1)
    return [
        "A tenth of the default job (100 members that start at 4-gons, a stop every 500 steps), a step of one member:", "",
        f"- a bare loop over the same kernel: {bare:.3g} us; through Lightning: {through:.3g} us, {100 * (through / bare - 1):+.1f}%;",
        "- with LLC estimates of all members (4 chains, HMC, to an error of a tenth) every 2,250 steps, as often as",
        f"  the whole job has snapshots (100): {with_llc:.3g} us, {100 * (with_llc / through - 1):+.0f}%.", "",
        "The training of the whole default job, with the losses, snapshots, phases, plateaus, pictures and checkpoints",
        f"that it records: {seconds[without]:.3g} s without LLC estimates, {seconds[most]:.3g} s with {most} of them, {share:+.0f}%. It makes",
        f"25 of them unless told otherwise: {share / 4:+.0f}%.", "",
        "| the least of five | wall, s | CPU, s |",
        "|---|--:|--:|",
        *(f"| {r['who']} | {r['wall']:.2f} | {r['cpu']:.2f} |" for r in found if r["what"] == "start"),
    ]  # fmt: skip


def growth_table(found, what, column, name):
    """Microseconds by the size of something, one column for each `who`."""
    by = {(r["who"], r[column]): r["us"] for r in found if r["what"] == what}
    who = list(dict.fromkeys(w for w, _ in by))
    lines = [
        f"| {name} | " + " | ".join(f"{w}, us" for w in who) + " |",
        "|--:|" + "--:|" * len(who),
    ]
    for size in sorted({s for _, s in by}):
        lines.append(f"| {size:,} | " + " | ".join(f"{by[w, size]:.3g}" for w in who) + " |")
    return lines


def most_by_least(found, what, column):
    """In words by how much the time grows from the least size to the largest, for each `who`."""
    by = defaultdict(dict)
    for r in found:
        if r["what"] == what:
            by[r["who"]][r[column]] = r["us"]
    ratios = {who: us[max(us)] / us[min(us)] for who, us in by.items()}
    return "; ".join(f"{who} {ratio:.2f} x" for who, ratio in ratios.items())


def figure(found):
    """CPU time of a training step of one member against the number of members, log and log."""
    drawn = Figure(figsize=(6.8, 2.8), layout="constrained")
    for ax, what in zip(
        drawn.subplots(1, 2, sharey=True), ("single_feature", "sparse"), strict=True
    ):
        curves = defaultdict(list)
        for r in found:
            if r["what"] == what:
                curves[r["who"]].append((r["members"], r["us"]))
        for (who, points), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
            ax.loglog(
                *zip(*sorted(points), strict=True), color=color, marker=marker, ms=4, label=who
            )
        ax.set_title(
            {"single_feature": "SGD, 1000 samples a member", "sparse": "Adam, fresh sparse inputs"}[
                what
            ],
            fontsize=9,
        )
        ax.set_xlabel("members", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.legend(fontsize=7, frameon=False)
    drawn.axes[0].set_ylabel("CPU time a step and member, us", fontsize=8)
    return drawn


def main():
    results = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    found = list(rows(results))
    cpu_seconds = {
        r["who"]: r["us"] * r["members"] / 1e6 for r in found if r["what"] == "posterior"
    }
    llc = {(r["who"], r["members"]): r["us"] for r in found if r["what"] == "llc"}
    loop = llc["devinterp sample_single_chain", 1]
    error_times, error_values = error_tables(found)
    cpu = results["machine_info"]["cpu"].get("brand_raw", platform.processor())
    page = [
        "# Benchmarks", "",
        f"`make bench`, {results['datetime'][:10]}, {cpu}, one thread, float64 unless said. CPU time of one step of",
        "one member (or chain), the least of three rounds; peers as multiples of kgon in the same run.", "",
        "![CPU time of a training step](images/benchmarks.png)", "",
        "## Training: single-feature data, n = 6, m = 2, batch 20, plain SGD", "",
        *ratio_table(found, "single_feature", "kgon"), "",
        "Below 1 x the other is faster. The hand-written loop knows that one feature is active, and draws no batch order;",
        "kgon's kernel does not know that, takes four inputs at once, and its time has the order in it.", "",
        "## Training: fresh sparse inputs, Adam", "",
        *ratio_table(found, "sparse", "kgon float64"), "",
        "tms-kit and occhio compute in float32; occhio's Adam is AdamW.", "",
        "## Growth with the model (50 members, single-feature data)", "",
        *growth_table(found, "growth", "n_features", "n_features"), "",
        "## LLC: CPU time until the total error is 0.1", "",
        "Expected loss, nbeta = n / log n, localization 0.6 sqrt(nbeta); in brackets multiples of kgon's HMC.", "",
        *error_times, "",
        "*kgon*: `estimate_llc`, 16 chains, with adaptation, warm-up, diagnostics and verdict. Its error is looked at as the chains",
        "grow, and they end at the first look with an error of at most 0.1, or after 10^6 gradients a chain (an error above 0.1 in",
        "the table below). SGLD adapts its lr. *devinterp*: `sample_single_chain` with this lr on the same exact loss, by autograd.",
        "**1,000 steps were measured, and the time scaled** to all steps of kgon's SGLD. *numpyro*: four vectorised chains on the",
        "same exact loss in JAX, float64, 500 steps of warm-up included; the time of 1,000 draws a chain is scaled by their effective",
        "number to the draws that an error of 0.1 takes.", "",
        "What they found, against 64 chains of 10,000 draws of kgon's HMC; in brackets the difference in combined errors. NUTS: the",
        "draws of three runs. devinterp was not run to its end; its step is that of kgon's SGLD.", "",
        *error_values, "",
        "## LLC: one Langevin step of one chain, full batch, n = 5000", "",
        *ratio_table(found, "llc", "kgon"), "",
        f"devinterp's `sample_single_chain`, one chain at a time: {loop:.0f} us a step, {_digits(loop / llc['kgon', 1000])} times a chain-step of kgon's",
        "stack of 1,000. Diagnostics of draws and the two garbage collections of devinterp's loop are not counted.", "",
        "## LLC of a torch module: one Langevin step of one chain, full batch", "",
        *module_table(found), "",
        "## One posterior: 4,096 particles by adaptive tempered SMC, n = 600, n_features = 6", "",
        *posterior_table(found), "",
        peer_ratio(cpu_seconds), "",
        "The same data, prior, effective share of a rung (0.6) and 8 trajectories of 10 leapfrog steps a rung (kgon",
        "makes 24 at the last, and permutations); the peer's likelihood is the same exact one in JAX, by",
        "`jax.numpy.searchsorted` or by kgon's own lookup tables. Numbers: mean over posteriors ± the standard",
        "deviation of one.", "",
        "## Cost against the sample's size (1,000 chains or parameters)", "",
        *growth_table(found, "samples", "n_samples", "n_samples"), "",
        f"From the least to the most samples: {most_by_least(found, 'samples', 'n_samples')}. A loss reads one line of the",
        "cache for each pair of features whose threshold is among the amplitudes, whatever the sample; from some 100,000",
        "samples on the table is larger than the caches, and what grows is waiting for memory.", "",
        "## Lightning and the command line", "",
        *framework(found), "",
    ]  # fmt: skip
    (folder / "benchmarks.md").write_text("\n".join(page))
    (folder / "images").mkdir(exist_ok=True)
    figure(found).savefig(folder / "images" / "benchmarks.png", dpi=150)


if __name__ == "__main__":
    main()
