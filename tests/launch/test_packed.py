"""Packed sweeps: each point as if it had been alone, at the cost of one job."""

import json
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_job import JOB, RESULTS, until

from kgon.record import run_directory

pytestmark = pytest.mark.slow

PACKED = "hydra/launcher=packed"


def points(folder):
    return {path.name: path for path in run_directory.find([folder / "multirun"])}


def assert_equal(one, other):
    """Bit by bit, but for what is summed over chains, in an order that depends on their number."""
    for name in RESULTS:
        a, b = (pq.read_table(path / f"{name}.parquet") for path in (one, other))
        assert a.column_names == b.column_names
        for column in a.column_names:
            x, y = a[column].to_pylist(), b[column].to_pylist()
            if column in ("mean", "stderr", "rhat", "ess", "acceptance", "llc", "llc_stderr"):
                x, y = (np.array(v, dtype=float) for v in (x, y))
                np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)
            else:
                assert str(x) == str(y), (name, column)
    assert (one / "weights.safetensors").read_bytes() == (
        other / "weights.safetensors"
    ).read_bytes()
    a, b = ((path / "config.yaml").read_text() for path in (one, other))
    assert a == b


SWEEPS = {
    "seeds, rates, members": ("seed=1,2", "optimizer.lr=0.005,0.02", "members=2,3"),
    "starts": ("init.label=4,4+,5", "init.noise=0.01,0.1"),
    "scheduler": ("scheduler=cosine", "optimizer.lr=0.005,0.02"),
    "sparsity": ("data=sparse", "data.sparsity=0.5,0.9", "init=normal", "optimizer=adam",
                 "callbacks.llc.n_draws=4"),
    "importance": ("model.importance=null,0.9,0.5",),
    "fresh inputs": ("n_samples=null", "callbacks.llc.nbeta=100", "seed=1,2"),
    "two shapes": ("model.n_features=5,6", "seed=1,2"),
}  # fmt: skip


@pytest.mark.parametrize("words", SWEEPS.values(), ids=SWEEPS)
def test_a_packed_point_is_what_it_would_have_been_alone(zygote, tmp_path, words):
    job = [*JOB, "trainer.max_steps=400", *words]
    packed = zygote.run(tmp_path / "packed", "train", "-m", *job, PACKED)
    assert packed.status == 0, packed.output
    alone = zygote.run(tmp_path / "alone", "train", "-m", *job)
    assert alone.status == 0, alone.output
    one, other = points(tmp_path / "packed"), points(tmp_path / "alone")
    assert one.keys() == other.keys() and len(one) > 1
    for name in one:
        assert run_directory.load(one[name]).status["state"] == "finished"
        assert_equal(one[name], other[name])
    ensembles = packed.output.count("jobs as one ensemble")
    assert ensembles == (2 if "model.n_features=5,6" in words else 1)


def test_an_interrupted_pack_goes_on_packed_alone_and_in_other_company(zygote, tmp_path):
    job = [*JOB, "+callbacks.fault._target_=faults.Fault", "+callbacks.fault.seconds=0.02"]
    whole = zygote.run(tmp_path / "whole", "train", "-m", *job, "seed=1,2,3,4", PACKED)
    assert whole.status == 0, whole.output
    folder = tmp_path / "torn"
    for signum in (signal.SIGTERM, signal.SIGKILL):
        sweep = zygote.start(folder, "train", "-m", *job, "seed=1,2,3", PACKED)
        until(lambda: list(folder.glob("multirun/packs/*/checkpoints/last.ckpt")), "it has saved")
        sweep.kill(signum)
        sweep.wait()
        rows = json.loads(zygote.run(folder, "runs", "--json").output)
        assert [row["state"] for row in rows] == ["interrupted"] * 3
        if signum == signal.SIGTERM:  # a job that is told to stop says how far it got
            assert all(0 < row["progress"] < 1 for row in rows)
    alone = zygote.run(folder, "train", *job, "seed=2")
    assert alone.status == 0, alone.output
    wider = zygote.run(folder, "train", "-m", *job, "seed=1,2,3,4", PACKED)
    assert wider.status == 0, wider.output
    # Two go on from their checkpoint, one starts.
    assert "2 jobs as one ensemble" in wider.output
    assert not list(folder.glob("multirun/packs/*"))
    for name, path in points(tmp_path / "whole").items():
        assert_equal(points(folder)[name], path)


def test_a_pack_that_ends_early_is_not_finished_and_goes_on_when_asked(zygote, tmp_path):
    words = ("train", "-m", *JOB, "trainer.max_steps=400", "seed=1,2", PACKED)
    early = zygote.run(tmp_path, *words, "+trainer.max_time=00:00:00:00")
    assert early.status == 0 and "2 interrupted" in early.output, early.output
    assert "2 finished" in zygote.run(tmp_path, *words).output


def test_a_point_that_diverges_fails_alone(zygote, tmp_path):
    sweep = zygote.run(
        tmp_path, "train", "-m", *JOB, "trainer.max_steps=400", "init=normal", "init.std=1,1e4",
        PACKED,
    )  # fmt: skip
    assert sweep.status == 1
    found = {p.status["state"]: p for p in map(run_directory.load, points(tmp_path).values())}
    assert found.keys() == {"finished", "failed"}
    assert "members diverged" in found["failed"].status["error"]
    alone = zygote.run(tmp_path / "alone", "train", *JOB, "trainer.max_steps=400", "init=normal",
                       "init.std=1e4")  # fmt: skip
    assert alone.status == 1
    (path,) = points(tmp_path / "alone").values()
    assert run_directory.load(path).status["error"] == found["failed"].status["error"]


@pytest.mark.parametrize("launcher", ["packed", "basic"])
def test_a_point_without_the_objective_is_named_and_does_not_fail(zygote, tmp_path, launcher):
    """A result may be missing in one run only, such as a learning coefficient that is never ok."""
    sweep = zygote.run(tmp_path, "train", "-m", *JOB, "trainer.max_steps=400", "seed=1,2",
                       f"hydra/launcher={launcher}", "runs.objective=nothing")  # fmt: skip
    assert sweep.output.count("runs.objective=nothing is not a number in the summary") == 2
    states = {run_directory.load(path).status["state"] for path in points(tmp_path).values()}
    assert states == {"finished"}


def test_what_is_finished_is_not_run_again_and_a_wider_sweep_shares_it(zygote, tmp_path):
    job = [*JOB, "trainer.max_steps=400"]
    zygote.run(tmp_path, "train", "-m", *job, "seed=1,2", PACKED)
    before = {p: (p / "loss.parquet").stat().st_mtime_ns for p in points(tmp_path).values()}
    wider = zygote.run(tmp_path, "train", "-m", *job, "seed=1,2,3,4", PACKED)
    assert "2 jobs as one ensemble" in wider.output
    assert "4 finished" in wider.output
    assert before == {p: (p / "loss.parquet").stat().st_mtime_ns for p in before}


def test_other_commands_are_not_packed(zygote, tmp_path):
    refused = zygote.run(tmp_path, "llc", "-m", "seed=1,2", PACKED)
    assert refused.status == 1
    assert "hydra/launcher=packed takes jobs of kgon train" in refused.output


OWN = """
import lightning as L
import torch
from kgon.callbacks import Recorder
from kgon.data import Distribution

class Scaled(Distribution):
    def __init__(self, n_features, n_uniforms, least):
        super().__init__(n_features)
        self.n_uniforms = n_uniforms
        self.scale = torch.linspace(least, 1, n_features, dtype=torch.float64)

    def inputs(self, u):
        return self.scale * u.mean(-1, keepdim=True)

class Lengths(Recorder):
    table = "lengths"

    def record(self, module, data):
        W, b = module.on_cpu()
        module.history.add("lengths", module.global_step, length=W.norm(dim=-2))

    def metrics(self, module, records):
        lengths = module.history.column("lengths", "length", records)
        return {"length/mean": lengths.mean((-1, -2))}

    def finish(self, module, data):
        module.history.lists["ends"] = [[{"bias": float(b[0])}] for b in module.b]

class Log(L.Callback):
    def __init__(self, **settings):
        self.settings = settings

    def on_train_batch_end(self, trainer, module, *_):
        self.log("mine", 1.0, **self.settings)
"""


def test_own_distributions_with_tensors_and_own_tables_are_as_alone(zygote, tmp_path):
    words = ("train", "-m", *JOB, "trainer.max_steps=40", "callbacks=[losses,snapshots,phases]",
             "+callbacks.own._target_=packed_own.Lengths", "+callbacks.own.steps=[0,40]",
             "data._target_=packed_own.Scaled", "+data.n_uniforms=2,3", "+data.least=0.5,0.1",
             "seed=1,2")  # fmt: skip
    words = [word for word in words if not word.startswith(("callbacks.llc", "callbacks.check"))]
    for name, own in (("packed", [PACKED]), ("alone", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "packed_own.py").write_text(OWN)
        done = zygote.run(tmp_path / name, *words, *own)
        assert done.status == 0, done.output
        # Jobs whose inputs take different numbers of uniform numbers are not in one ensemble.
        assert done.output.count("4 jobs as one ensemble") == 2 * bool(own)
    one, other = points(tmp_path / "packed"), points(tmp_path / "alone")
    assert one.keys() == other.keys() and len(one) == 8
    for name in one:
        for file in ("loss.parquet", "lengths.parquet", "ends.parquet", "metrics.jsonl"):
            assert (one[name] / file).read_bytes() == (other[name] / file).read_bytes(), file
    table = pq.read_table(next(iter(one.values())) / "lengths.parquet")
    assert table.column_names == ["step", "member", *(f"length_{i}" for i in range(6))]
    assert table.num_rows == 2 * 3


def test_what_a_callback_logs_of_a_whole_pack_is_refused(zygote, tmp_path):
    (tmp_path / "packed_own.py").write_text(OWN)
    words = ("train", "-m", *JOB, "trainer.max_steps=40", "callbacks=[losses]", PACKED, "seed=1,2",
             "+callbacks.log._target_=packed_own.Log")  # fmt: skip
    words = [word for word in words if not word.startswith(("callbacks.llc", "callbacks.check"))]
    assert zygote.run(tmp_path, *words).status == 1
    for path in points(tmp_path).values():
        error = run_directory.load(path).status["error"]
        assert "logs 'mine' by self.log" in error and "hydra/launcher=joblib" in error
    quiet = zygote.run(tmp_path, *words, "+callbacks.log.logger=false")  # for a progress bar
    assert quiet.status == 0, quiet.output
