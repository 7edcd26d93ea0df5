"""What the examples share: a Trainer, a table, a figure."""

import lightning as L
import matplotlib.pyplot as plt
import torch

from kgon.callbacks import LLC, LossPlateaus


def fit(module, loader, steps, *callbacks):
    """Train the module for so many steps while the callbacks watch."""
    trainer = L.Trainer(
        max_steps=steps, callbacks=list(callbacks), accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, loader)


def report(path, llc, plateaus, other):
    """Print what was found, and draw it where a path is given."""
    show(llc, plateaus, other)
    if path is not None:
        draw(path, llc, plateaus, other)


def show(llc: LLC, plateaus: LossPlateaus, other: LossPlateaus):
    """Print the learning coefficients with the losses at their steps, and the plateaus."""
    train, test = ({row["step"]: row["loss"] for row in each.rows} for each in (plateaus, other))
    print(f"{'step':>6} {plateaus.name:>8} {other.name:>8} {'LLC':>8} {'error':>6}  verdict")
    for row in llc.rows:
        step = row["step"]
        print(
            f"{step:6} {train[step]:8.3f} {test[step]:8.3f} {row['mean']:8.1f} "
            f"{row['stderr']:6.1f}  {row['verdict']} {row['reason']}"
        )
    for each in (plateaus, other):
        for found in each.plateaus:
            print(f"plateau of {each.name}: {found.loss:.3f}, steps {found.start} to {found.end}")


def draw(path, llc: LLC, plateaus: LossPlateaus, other: LossPlateaus):
    """Losses above, with the plateaus as bands; learning coefficients below."""
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(5, 4), layout="constrained")
    for each, colour in ((plateaus, "C0"), (other, "C1")):
        above.plot(*zip(*((r["step"], r["loss"]) for r in each.rows), strict=True),
                   color=colour, label=each.name)  # fmt: skip
        for found in each.plateaus:
            for axes in (above, below):
                axes.axvspan(found.start, found.end, color=colour, alpha=0.12, lw=0)
    above.set(ylabel="loss", yscale="log")
    above.legend()
    for ok in (True, False):
        rows = [row for row in llc.rows if (row["verdict"] == "ok") == ok]
        below.errorbar(
            [row["step"] for row in rows], [row["mean"] for row in rows],
            2 * torch.tensor([row["stderr"] for row in rows]), fmt="o", ms=4, color="C2",
            mfc="C2" if ok else "white", label="ok" if ok else "verdict not ok",
        )  # fmt: skip
    below.set(xlabel="step", ylabel="LLC")
    below.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
