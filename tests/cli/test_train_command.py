"""kgon train from the command line: what it leaves, what it refuses, how it ends."""

import errno
import fcntl
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from kgon.cli import main
from kgon.data import REPORTED, WATCHED
from kgon.launch import options
from kgon.record import run_directory

TINY = ["members=2", "trainer.max_steps=20", "callbacks.llc.n_draws=8", "callbacks.llc.n_burnin=2"]


@pytest.fixture(scope="module")
def kgon(zygote):
    """Runs a command, tiny if it trains, and returns what it prints."""

    def run(folder, *words, status=0):
        tiny = TINY if "train" in words and "--help" not in words else []
        done = zygote.run(folder, *words, *tiny)
        assert done.status == status, done.output
        return done.output

    return run


def only_run(folder):
    (path,) = run_directory.find([folder / "multirun"])
    return run_directory.load(path)


def wandb_runs(folder):
    """Config, summary and exit code of each offline W&B run, read by wandb's own reader."""
    found = []
    for path in sorted(folder.glob("multirun/*/wandb/offline-run-*")):
        done = subprocess.run(
            [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", "--summary", path],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(done.stdout))
    return found


@pytest.fixture(scope="module")
def multirun(kgon, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multirun")
    return folder, kgon(folder, "train", "-m", "seed=1,2")


def test_a_multirun_leaves_finished_runs_with_records_of_their_own(multirun):
    folder, printed = multirun
    found = [run_directory.load(path) for path in run_directory.find([folder / "multirun"])]
    assert [run.status["state"] for run in found] == ["finished"] * 2
    assert {run.config["seed"] for run in found} == {1, 2}
    assert printed.count("Final phases of 2 members") == 2
    for run in found:
        assert [row["member"] for row in run.members] == [0, 1]
        assert set(pq.read_table(run.path / "loss.parquet").column_names) == {
            "step", "member", "loss", "train_loss",
        }  # fmt: skip
        weights = run.weights()
        assert weights["step"][[0, -1]].tolist() == [0, 20]
        assert weights["W"].shape == (len(weights["step"]), 2, 2, 6)
        final = {row["member"]: row["final_loss"] for row in run.members}
        last = run.loss.filter(np.asarray(run.loss["step"]) == 20).to_pylist()
        assert {row["member"]: row["loss"] for row in last} == final
        for name in ("loss", "staircase", "phases", "weights", "llc"):
            assert (run.path / "figures" / f"{name}.png").stat().st_size > 1000
            assert (run.path / "figures" / f"{name}.svg").stat().st_size > 1000
    assert found[0].members != found[1].members


def test_a_multirun_leaves_finished_wandb_runs(multirun):
    folder, _ = multirun
    found = wandb_runs(folder)
    assert len(found) == 2
    assert {run["config"]["seed"] for run in found} == {1, 2}
    for run in found:
        assert run["exit_code"] == 0
        summary = run["summary"]
        assert summary["trainer/global_step"] == 20
        assert summary["final/members"] == 2
        for key in ("loss/mean", "llc/mean", "final/loss", "final/transitions"):
            assert np.isfinite(summary[key])
        for key in ("tables/members", "figures/loss", "media/weights"):
            assert key in summary


def test_the_same_job_again_does_nothing_and_says_so(kgon, multirun):
    folder, _ = multirun
    before = {path: path.stat().st_mtime_ns for path in folder.glob("multirun/*/*.parquet")}
    assert "has finished before" in kgon(folder, "train", "seed=2")
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("multirun/*/*.parquet")}


def test_report_makes_a_page_of_the_sweep(kgon, multirun):
    folder, _ = multirun
    assert "2 runs" in kgon(folder, "report", "multirun")
    assert (folder / "multirun" / "report.html").read_text().count("train-") >= 2


def test_report_of_nothing_is_an_error(kgon, tmp_path):
    assert "no run in" in kgon(tmp_path, "report", ".", status=2)


def test_a_failing_job_is_recorded_as_failed_and_exits_non_zero(kgon, tmp_path):
    # The start is finite and every member overflows within a few steps.
    words = ("train", "init=normal", "init.std=1e4", "trainer.max_steps=20")
    kgon(tmp_path, *words, status=1)
    run = only_run(tmp_path)
    assert run.status["state"] == "failed"
    assert "all 2 members diverged" in run.status["error"]
    assert "FloatingPointError" in (run.path / "error.txt").read_text()
    (tracked,) = wandb_runs(tmp_path)
    assert tracked["exit_code"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.sparsty=0.5"], "did you mean data.sparsity"),
        (["data.sparsity=0.5"], "or data=sparse only"),
        (["data=sparce"], "did you mean sparse"),
        (["n_features=5"], "did you mean model.n_features"),
        (["data=sparse", "data.sparsity=1.0"], "data.sparsity must be numbers in [0, 1), got 1.0"),
        (["-m", "data=sparse", "data.sparsity=0.5,1.5"], "got 1.5"),
        (["model.n_hidden=0"], "model.n_hidden must be at least 1, got 0"),
        (["batch_size=2000"], "batch_size=2000 is larger than the data set, n_samples=1000"),
        (["init.label=7"], "'7' has 7 live columns and needs n_features >= 7"),
        (["init.label=4x"], "4x"),
        (["model.n_hidden=3"], "init.label: no critical point '4' for n_features=6, n_hidden=3"),
        (["init.noise=-0.1"], "init.noise"),
        (["seed=one"], "seed must be a number"),
        (["seed=None"], "seed must be a number such as 0; got None"),
        (["seed=null"], "seed must be a number such as 0; got null"),
        (["seed=1.5"], "seed must be a whole number such as 0; got 1.5"),
        (["seed=[1,2]"], "seed must be a number such as 0; got [1, 2]"),
        (["n_samples=1.5"], "n_samples must be a whole number such as 1000; got 1.5"),
        (["trainer.max_steps=1e3"], "trainer.max_steps must be a whole number"),
        (["trainer.max_steps=many"], "trainer.max_steps must be a number such as 225000; got many"),
        (["callbacks.llc.n_chains=1.5"], "callbacks.llc.n_chains must be a whole number such as 4"),
        (["-m", "callbacks.llc.n_chains=2,1.5"], "callbacks.llc.n_chains must be a whole number"),
        (["callbacks.llc=3"], "callbacks.llc has settings of its own"),
        (["optimizer=adam", "optimizer.lr=fast"], "optimizer.lr must be a number such as 0.001"),
        (["schedule=5"], "schedule has settings of its own (schedule.name=value), got 5"),
        (["optimizer.lr=nan"], "optimizer.lr must be finite, got nan"),
        (["optimizer.lr=true"], "optimizer.lr must be a number such as 0.005; got True"),
        (["optimizer.lr=-0.1"], "optimizer.lr=-0.1: Invalid learning rate: -0.1 (learning rate,"),
        (["optimizer=adam", "optimizer.betas=[0.9,2]"], "optimizer.betas=[0.9, 2]: Invalid beta"),
        (["+optimizer.speed=2"], "optimizer.speed=2: SGD.__init__() got an unexpected"),
        (["scheduler=exponential", "+scheduler.speed=2"], "scheduler.speed=2: Exponential"),
        (["data.n_features=3"], "data.n_features must be model.n_features=6, got 3"),
        (["model.importance=high"], "model.importance must be null"),
        (["dtype=float33"], "dtype must be float64 or float32, got float33"),
        (["datamodule.block=0"], "datamodule.block must be at least 1, got 0"),
        (["trainer.max_steps=0"], "error: trainer.max_steps must be at least 1, got 0"),
        (["schedule.n_llc=-2"], "error: schedule.n_llc must be at least 1, got -2"),
        (["callbacks.llc.target=0"], "error: callbacks.llc.target must be positive, got 0"),
        (["callbacks.checkpoint.every_seconds=0"], "error: callbacks.checkpoint.every_seconds"),
        (["trainer.devices=0"], "error: trainer.devices=0: `Trainer(devices=0)` value is not"),
        (["trainer.accelerator=abacus"], "trainer.accelerator=abacus: You selected an invalid"),
        (["trainer.max_epochs=0"], "trainer.max_epochs must be 1"),
        (["runs.dir=/dev/null/runs"], "/dev/null is not a writable directory"),
        (["hydra.run.dir=elsewhere"], "hydra.run.dir=elsewhere: a run's folder is always"),
        (["-m", "seed=1,2", "hydra.sweep.dir=elsewhere"], "set runs.dir instead"),
        (["-m", "seed=1,2", "hydra.sweep.subdir=${hydra.job.num}"], "set runs.dir instead"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=True"),
        (["callbacks.checkpoint.folder=elsewhere"], "checkpoint.folder must be multirun/"),
        (["callbacks.llc.steps=-5"], "callbacks.llc.steps must be whole numbers >= 0, got [-5]"),
        (["callbacks.pictures.n_members=0"], "callbacks.pictures.n_members must be at least 1"),
        (["seed=1,2"], "seed=1,2: several values need -m"),
        (["optimizer.lr=range(1,3)"], "several values need -m"),
        (["members=[]"], "members must be"),
        (["members=null"], "members must be a positive number"),
        (["members=true"], "members must be a positive number"),
        (["members=[1,1]"], "different member numbers >= 0, got"),
        (["trainer.devices=2"], "one device"),
        (["+trainer.strategy=ddp", "trainer.devices=2"], "one device"),
        (["trainer.gradient_clip_val=1.0"], "couple the members"),
        (["members=100000000"], "GiB of memory"),
        (["callbacks.llc.lr=0"], "callbacks.llc.lr must be positive, got 0"),
        (["optimizer._target_=torch.optim.Sgd"], "torch/optim/__init__.py has no 'Sgd'"),
        (["data._target_=kgon.data.Spars"], "data.py has no 'Spars'; did you mean Sparse?"),
        (["callbacks.losses._target_=nosuch.Losses"], "callbacks.losses: Error loading 'nosuch"),
        (["+model.speed=1"], "model.speed=1: TMS.__init__() got an unexpected"),
        (["data=sparse", "n_samples=null"], "set callbacks.llc.nbeta, or leave llc out"),
        (["experiment=superposition", "callbacks=[losses,llc]"], "set callbacks.llc.nbeta"),
        (["-m", "hydra/launcher=slurm", "hydra.launcher.mem_gb=lots"], "mem_gb must be a number"),
        (["--config-dir", "nowhere"], "nowhere is not a folder"),
        (["callbacks=[losses]", "callbacks.llc.n_draws=5"], "this job has no callbacks.llc"),
        (["experiment=first_transition", "callbacks.pictures.steps=[]"], "no callbacks.pictures"),
        (["optimizer._target_=torch.optim.LBFGS", "~optimizer.momentum", "~optimizer.weight_decay"],
         "couples the members"),
        (["scheduler=cosine", "scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
          "~scheduler.T_max", "~scheduler.eta_min"], "couples the members"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_anything_starts(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kgon", "train", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert len(complaint.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lr", ["abc", 0.125])
@pytest.mark.parametrize("flag", [["--config-dir", "own"], ["hydra.searchpath=[file://own]"]])
def test_options_of_ones_own_are_checked_and_used(tmp_path, monkeypatch, capsys, lr, flag):
    own = tmp_path / "own" / "optimizer" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(f"_target_: torch.optim.SGD\n_partial_: true\nlr: {lr}\n")
    monkeypatch.chdir(tmp_path)
    plain = ["callbacks=[losses]", "logger=none", "runs.figures=false", *TINY[:2]]
    monkeypatch.setattr(sys, "argv", ["kgon", "train", "optimizer=mine", *flag, *plain])
    if lr == "abc":
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "optimizer.lr must be a number such as" in line and line.endswith("got abc")
    else:
        main()
        assert only_run(tmp_path).config["optimizer"]["lr"] == lr


def test_a_link_to_nowhere_and_a_disk_without_locks_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("nowhere")

    def complaint(*words):
        monkeypatch.setattr(sys, "argv", ["kgon", "train", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    for folder in ("link", "link/runs"):
        assert "link is not a writable directory" in complaint(f"runs.dir={folder}")

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert "Function not implemented" in complaint() and "flock" in complaint()


def test_a_left_over_variable_of_a_wandb_agent_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setattr(sys, "argv", ["kgon", "train", "-m", "seed=1,2"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "unset WANDB_SWEEP_ID" in capsys.readouterr().err


WIDE = ("model.n_hidden=5", "init=normal", "logger=none")  # no atlas of this size


@pytest.mark.parametrize(
    ("words", "said", "unsaid"),
    [
        (WIDE, ["LLC ok"], ["theory", "transitions", "verdict ok"]),
        (("callbacks=[losses,snapshots]", "logger=none"), ["loss"], ["LLC", "transitions"]),
        (("logger=none",), ["0 transitions", "LLC ok"], []),
    ],
    ids=["n_hidden=5", "few callbacks", "defaults"],
)
def test_the_end_of_a_run_says_only_what_is_known(
    tmp_path, monkeypatch, capsys, words, said, unsaid
):
    monkeypatch.chdir(tmp_path)
    tiny = [word for word in TINY if "llc" not in word or "callbacks=" not in words[0]]
    monkeypatch.setattr(sys, "argv", ["kgon", "train", *words, *tiny])
    main()
    printed = capsys.readouterr().out
    assert all(word in printed for word in said) and not any(word in printed for word in unsaid)
    run = only_run(tmp_path)
    known = "transitions" in " ".join(said)
    assert ("final/transitions" in run.status["metrics"]) == known
    assert {row["n_transitions"] for row in run.members} == ({0} if known else {None})
    title = (run.path / "figures" / "loss.svg").read_text()
    assert "and the critical levels" not in title or words != WIDE
    # Nothing beside the run's own folder, with or without a checkpoint callback.
    assert [path.name for path in (tmp_path / "multirun").iterdir()] == [run.path.name]


GPU = () if torch.cuda.is_available() else ("gpu",)
GROUPS = {
    name: [option for option in group.options if option not in GPU]
    for name, group in options.groups("train").items()
    if not (group.fixed or name in ("callbacks", "hydra/launcher"))
}
EXPERIMENTS = GROUPS.pop("experiment")
ROUNDS = range(max(map(len, GROUPS.values())))
DRAWN = ("demo", "superposition")
"""Figures, pictures and W&B of the others are no different, and would take most of their time."""


@pytest.mark.parametrize("turn", ROUNDS)
def test_every_option_trains(tmp_path, monkeypatch, turn):
    """Small jobs, each with one option of every group, that have all options between them."""
    words = [f"{name}={found[turn % len(found)]}" for name, found in GROUPS.items()]
    # The step size of rmsprop_sgld is not adapted.
    step = ["callbacks.llc.lr=1e-3"] if "sampler=rmsprop_sgld" in words else []
    trains(tmp_path, monkeypatch, *words, *step, *UNDRAWN, *TINY)


@pytest.mark.parametrize(
    "name",
    [pytest.param(e, marks=() if e in DRAWN else pytest.mark.slow) for e in EXPERIMENTS],
)
def test_every_experiment_trains(tmp_path, monkeypatch, name):
    chosen = options.groups("train")["experiment"].options[name].read_text()
    bare = "/callbacks" in chosen or "- superposition" in chosen
    words = [word for word in TINY if not (bare and ".llc." in word)]
    if name not in DRAWN:
        words += ["logger=none", *(UNDRAWN[:1] if bare else UNDRAWN)]
    trains(tmp_path, monkeypatch, f"experiment={name}", *words)


UNDRAWN = ("runs.figures=false", "callbacks.pictures.steps=[]")


def trains(tmp_path, monkeypatch, *words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kgon", "train", *words])
    main()
    run = only_run(tmp_path)
    assert run.status["state"] == "finished"
    assert len(run.members) == 2
    assert all(np.isfinite(row["final_loss"]) for row in run.members)
    assert run.loss is not None
    last = run.loss["loss"].to_pylist()[-len(run.members) :]
    for row, along in zip(run.members, last, strict=True):
        # Two independent estimates, that along training from an eighth of the inputs; or exact.
        stderr = 0.0 if row["loss_stderr"] is None else row["loss_stderr"]
        assert abs(row["final_loss"] - along) <= 4 * (1 + REPORTED / WATCHED) ** 0.5 * stderr
