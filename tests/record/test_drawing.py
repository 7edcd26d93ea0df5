"""Figures drawn again from a record, and results across a sweep."""

import shutil

import av
import numpy as np
import pytest
from PIL import Image
from small_job import JOB

import kgon
from kgon.record.run_directory import RunDirectory

SHORT = [*JOB, "trainer.max_steps=400"]


@pytest.fixture(scope="module")
def runs(zygote, tmp_path_factory):
    """A folder with one run that drew its figures; one with a packed sweep that contains it."""
    folders = []
    for words in (
        [*SHORT, "seed=1", "optimizer.lr=0.01", "runs.figures=true"],
        ["-m", *SHORT, "seed=1,2", "optimizer.lr=0.005,0.01", "hydra/launcher=packed"],
    ):
        folder = tmp_path_factory.mktemp("runs")
        done = zygote.run(folder, "train", *words)
        assert done.status == 0, done.output
        folders.append(folder)
    return folders


def test_figures_drawn_again_are_those_of_the_training(runs, zygote):
    alone, packed = runs
    (run,) = kgon.load(alone / "multirun").folders
    shutil.move(run / "figures", alone / "drawn")
    for folder in runs:
        done = zygote.run(folder, "figures", "multirun")
        assert done.status == 0, done.output
    assert sorted(f.name for f in (run / "figures").iterdir()) == sorted(
        f"{name}.{kind}"
        for name in ("llc", "loss", "phases", "staircase", "weights")
        for kind in ("png", "svg")
    )
    for file in (alone / "drawn").iterdir():
        assert (run / "figures" / file.name).read_bytes() == file.read_bytes()
        # Estimates in a pack differ in the last digits.
        if file.stem in ("loss", "phases", "weights"):
            other = packed / "multirun" / run.name / "figures" / file.name
            assert other.read_bytes() == file.read_bytes()


def test_a_result_against_a_setting_is_a_figure_of_the_runs_numbers(runs, zygote):
    _, packed = runs
    loaded = kgon.load(packed / "multirun")
    assert set(loaded.settings) == {"seed", "optimizer.lr"}
    (ax,) = loaded.against("optimizer.lr", "loss").axes
    dots, means = ax.lines[:2]
    frame = loaded.runs.sort_values("optimizer.lr")
    by_lr = frame.groupby("optimizer.lr")["final/loss"].mean()
    assert sorted(dots.get_ydata()) == sorted(frame["final/loss"])
    np.testing.assert_allclose(means.get_ydata(), by_lr)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.005", "0.01"]
    assert ax.get_xlabel().endswith("runs differ in seed")
    for name in ("phase", "final/phase"):
        (ax,) = loaded.against("seed", name).axes
        assert sum(bar.get_height() for bars in ax.containers for bar in bars) == pytest.approx(2)
    done = zygote.run(packed, "figures", "--x", "seed", "--y", "final/phase")
    assert done.status == 0, done.output
    assert (packed / "final_phase_against_seed.png").stat().st_size > 1000


def test_a_film_shows_recorded_states_and_the_last_one_longest(runs, zygote, tmp_path):
    """On a linear axis of 240 points, of which the states are the nearest."""
    alone, _ = runs
    done = zygote.run(alone, "figures", "multirun", "--film", "--member", "1")
    assert done.status == 0, done.output
    run = kgon.load(alone / "multirun")
    with Image.open(run.folders[0] / "figures" / "film.gif") as film:
        milliseconds = []
        for n in range(film.n_frames):
            film.seek(n)
            milliseconds.append(film.info["duration"])
        assert film.info["loop"] == 0
    steps = run.step.numpy()
    nearest = [np.abs(steps - point).argmin() for point in np.linspace(0, steps[-1], 240)]
    times = 50 * np.unique(nearest, return_counts=True)[1]
    times[-1] += 2000
    assert milliseconds == times.tolist()
    again = run.film(tmp_path / "again.gif", member=1)
    assert again.read_bytes() == (run.folders[0] / "figures" / "film.gif").read_bytes()
    with pytest.raises(ValueError, match=r"^member must be one of the run's \(0 to 2\), got 9$"):
        run.film(tmp_path / "none.gif", member=9)
    with pytest.raises(ValueError, match=r"end in \.gif or \.webm, got .*none\.mp4"):
        run.film(tmp_path / "none.mp4")


@pytest.mark.slow
def test_a_webm_has_the_same_frames(runs, tmp_path):
    alone, _ = runs
    run = kgon.load(alone / "multirun")
    with av.open(run.film(tmp_path / "film.webm", member=1)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 240 + 40  # the last one stays for two seconds
    with Image.open(run.film(tmp_path / "film.gif", member=1)) as film:
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB"))
    height, width, _ = frames[-1].shape
    # Compressed, most pixels are near the GIF's.
    assert np.median(np.abs(frames[-1].astype(int) - last[:height, :width])) < 3


def swept(folder, found):
    """Runs with these learning rates and results."""
    for i, (lr, metrics) in enumerate(found):
        with RunDirectory(folder / f"run-{i}").job(
            "train", [], {"lr": lr, "command": "train"}
        ) as j:
            j.report(1.0, metrics)
    return folder


def test_results_by_phase_share_a_panel_and_constant_ones_are_drawn(tmp_path):
    metrics = {"final/llc/5": 7.0, "final/llc/6": 8.5, "final/loss": 0.1, "final/best": "5"}
    loaded = kgon.load(swept(tmp_path, [(0.1, metrics), (0.2, metrics)]))
    (ax,) = loaded.against("lr", "llc").axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[7.0] * 2, [8.5] * 2]
    (ax,) = loaded.against("lr", "llc/5").axes
    assert ax.lines[0].get_ydata().tolist() == [7.0, 7.0]


def test_what_cannot_be_drawn_is_one_line(tmp_path, zygote):
    loaded = kgon.load(swept(tmp_path, [(0.1, {"final/loss": 0.1}), (0.2, {"final/loss": 0.1})]))
    with pytest.raises(ValueError, match=r"^x=seed does not vary .*; what varies: lr$"):
        loaded.against("seed", "loss")
    with pytest.raises(ValueError, match=r"^y=llc is no result of .*; there are loss$"):
        loaded.against("lr", "llc")
    with pytest.raises(ValueError, match="holds 2 runs; figures are those of one"):
        loaded.figures()
    with pytest.raises(ValueError, match="nothing to draw: it is a finished run of kgon train"):
        kgon.load(loaded.folders[0]).figures()
    for words in (
        ["--x", "lr"],
        ["--out", "a"],
        ["--x", "seed", "--y", "loss"],
        ["--member", "1"],
        ["--film", "--x", "lr", "--y", "loss"],
    ):
        done = zygote.run(tmp_path, "figures", str(tmp_path), *words)
        (line,) = done.output.splitlines()
        assert done.status == 2 and line.startswith("kgon figures: error: ")
