"""What users of W&B and Lightning do: their variables, and logging in callbacks of their own."""

import pytest
import wandb
from recorded import record
from user_callbacks import LogsByItself

from kgon.record.metrics_file import MetricsFile
from kgon.tracking import account
from kgon.tracking.outbox import Outbox

TRAIN = ["train", "members=2", "trainer.max_steps=60", "runs.figures=false",
         "schedule.n_losses=3", "schedule.n_snapshots=2", "datamodule.block=10",
         "callbacks=[losses,checkpoint]"]  # fmt: skip
WAYS = ["self.log", "module.log", "wandb.log", "wandb.log, often", "experiment.log", "log_metrics"]


def mine(rows):
    return {row["_step"]: row["mine"] for row in rows if "mine" in row}


def logs(way, **settings):
    """Overrides that add the callback."""
    own = {"_target_": f"{LogsByItself.__module__}.LogsByItself", "way": f"'{way}'", **settings}
    return [f"+callbacks.mine.{name}={value}" for name, value in own.items()]


@pytest.mark.parametrize("way", WAYS)
def test_what_a_callback_logs_is_at_its_step_in_all_places(
    server, kgon, tmp_path, monkeypatch, way
):
    monkeypatch.chdir(tmp_path)
    status, _, said = kgon(*TRAIN, *logs(way))
    assert status == 0, said
    (run,) = server.runs.values()
    expected = mine(run.metrics())
    assert expected == {step: 10.0 * step for step in expected} and {20, 40, 60} < expected.keys()
    assert all(row["trainer/global_step"] == row["_step"] for row in run.rows() if "mine" in row)
    losses = [row["_step"] for row in run.rows() if "loss/mean" in row]
    assert losses == [0, *expected]  # kgon's rows are there too
    (folder,) = tmp_path.glob("multirun/train-*")
    if way != "log_metrics":  # which addresses one logger
        rows = {row.step: row.metrics for row in MetricsFile(folder).rows()}
        assert {step: row["mine"] for step, row in rows.items() if "mine" in row} == expected
    assert kgon("sync", "multirun")[1][-1] == "1 already there"
    assert wandb.run is None


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
@pytest.mark.parametrize("way", ["self.log", "wandb.log"])
def test_what_a_callback_logged_outlives_an_interruption(
    server, kgon, tmp_path, monkeypatch, way, mode
):
    monkeypatch.chdir(tmp_path)
    words = [*TRAIN, f"logger.mode={mode}", *logs(way, stop_at=20)]
    _, lines, _ = kgon(*words)
    assert any("training ended at step 20 of 60" in line for line in lines)
    if mode == "online":
        assert [run.exit_code for run in server.runs.values()] == [255]
    assert kgon(*words)[0] == 0
    (folder,) = tmp_path.glob("multirun/train-*")
    rows = {row.step: row.metrics for row in MetricsFile(folder).rows()}
    expected = {step: row["mine"] for step, row in rows.items() if "mine" in row}
    assert expected == {step: 10.0 * step for step in rows if step} and sorted(rows) == list(rows)
    assert {20, 40, 60} < expected.keys()
    if mode != "disabled":
        kgon("sync", "multirun")
        (run,) = server.runs.values()
        assert mine(run.metrics()) == expected and run.exit_code == 0


@pytest.mark.parametrize("logger", ["wandb", "none"])
def test_a_run_leaves_nothing_outside_its_folder(server, kgon, tmp_path, monkeypatch, logger):
    monkeypatch.chdir(tmp_path)
    words = [word for word in TRAIN if not word.startswith("callbacks")]
    assert kgon(*words, "callbacks=[losses]", f"logger={logger}")[0] == 0
    names = {path.name.partition("-")[0] for path in tmp_path.glob("multirun/*")}
    here = {path.name for path in tmp_path.iterdir()} - {"home", ".cache", ".config"}
    assert (names, here) == ({"train"}, {"multirun"})


def test_a_config_is_the_same_online_and_sent_later(server, kgon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kgon(*TRAIN)[0] == 0
    assert kgon(*TRAIN, "runs.dir=later", "logger.mode=offline")[0] == 0
    assert kgon("sync", "later")[1][-1] == "1 sent"
    online, later = (
        {k: v["value"] for k, v in run.config.items() if k != "_wandb"}
        for run in server.runs.values()
    )
    assert online.pop("runs")["dir"] == "multirun" and later.pop("runs")["dir"] == "later"
    assert online == later
    text = str(online)
    assert "${" not in text and text.count("'max_steps': 60") == 1 and "steps': [" not in text
    # A dashboard averages groups, so a run without a sweep is a group of its own.
    names = [(run.fields["groupName"], run.fields["displayName"]) for run in server.runs.values()]
    assert all(group == name for group, name in names)


def test_lightnings_monitors_log_on_the_axis_of_optimizer_steps(
    server, kgon, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert kgon(*TRAIN, "+callbacks.rates._target_=user_callbacks.Rates")[0] == 0
    (run,) = server.runs.values()
    rates = [row["trainer/global_step"] for row in run.rows() if "lr-SGD" in row]
    blocks = [row["_step"] for row in run.rows() if "loss/mean" in row]
    assert rates == [0, *(step + 1 for step in blocks[1:-1])]  # the step that comes next


def test_a_users_own_run_keeps_its_name_and_outlives_a_failed_start(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with wandb.init(project="theirs", id="own") as own:
        server.faults = [("UpsertBucket", 403)]
        record(tmp_path / "job", "auto")
        record(tmp_path / "next", "offline")
        assert wandb.run is own
        wandb.log({"loss": 1.0})
    run = server.run("theirs", "own")
    assert run.state == "finished" and [row["loss"] for row in run.metrics()] == [1.0]


VARIABLES = {
    "WANDB_PROJECT": "p", "WANDB_NAME": "shown", "WANDB_TAGS": "a,b", "WANDB_JOB_TYPE": "trial",
    "WANDB_RUN_GROUP": "g", "WANDB_RUN_ID": "chosen", "WANDB_ENTITY": "team",
}  # fmt: skip


def test_variables_of_wandb_are_respected_and_settings_win(server, kgon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert kgon(*TRAIN)[0] == 0
    run = server.runs["p", "chosen"]
    fields = ("displayName", "tags", "jobType", "groupName", "entity")
    assert [run.fields[name] for name in fields] == ["shown", ["a", "b"], "trial", "g", "team"]
    words = ["logger.project=q", "logger.name=n", "logger.tags=[c]", "logger.job_type=j",
             "logger.group=h", "logger.id=other", "logger.entity=us", "seed=1"]  # fmt: skip
    assert kgon(*TRAIN, *words)[0] == 0
    run = server.runs["q", "other"]
    assert [run.fields[name] for name in fields] == ["n", ["c"], "j", "h", "us"]


def test_one_id_for_several_jobs_is_refused(kgon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, said = kgon(*TRAIN, "seed=1,2", "logger.id=one", "-m")
    assert status == 2 and "logger.id=one names one W&B run" in said
    monkeypatch.setenv("WANDB_RUN_ID", "two")
    status, _, said = kgon(*TRAIN, "seed=1,2", "-m")
    assert status == 2 and "WANDB_RUN_ID=two names one W&B run" in said
    assert not (tmp_path / "multirun").exists()


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (None, "no W&B API key is configured"),
        pytest.param("short", "must have 40+ characters", marks=pytest.mark.slow),
    ],
)
def test_a_key_that_is_absent_or_malformed_is_one_line(
    server, kgon, tmp_path, monkeypatch, key, why
):
    monkeypatch.chdir(tmp_path)
    good = monkeypatch.delenv("WANDB_API_KEY") or server.environment(tmp_path)["WANDB_API_KEY"]
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    for words in ([], ["seed=1,2", "-m"]):
        status, _, said = kgon(*TRAIN, "logger.mode=online", *words)
        (line,) = [line for line in said.splitlines() if not line.startswith("wandb:")]
        assert status == 2 and line.startswith("kgon train: error: logger.mode=online:")
        assert why in line and "wandb login" in line
    assert not (tmp_path / "multirun").exists()
    # Where only the job finds out, on another machine for instance, its point is tried again.
    with monkeypatch.context() as patch:
        patch.setattr("kgon.launch.command_line.check_logger", lambda *_, **__: None)
        status, _, said = kgon(*TRAIN, "logger.mode=online", "seed=1,2", "-m")
    assert status == 1, said
    monkeypatch.setenv("WANDB_API_KEY", good)
    assert kgon(*TRAIN, "logger.mode=online", "seed=1,2", "-m")[0] == 0
    assert len(server.runs) == 2
    # By default the record is offline.
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    else:
        monkeypatch.delenv("WANDB_API_KEY")
    status, _, said = kgon(*TRAIN)
    assert status == 0 and f"{why}" in said and "recording offline" in said
    (folder,) = [f.parent for f in tmp_path.glob("multirun/*/wandb/offline-run-*")]
    assert Outbox(folder.parent).runs()


KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    "word",
    ["logger.api_key=abc", "+logger.api_key=abc", "+logger.settings.api_key=abc",
     f"logger.project={KEY}", f"+notes=local-{KEY}", f"logger.tags=[a,{KEY}]",
     f"+secret=wandb_v1_{KEY}", f"++{KEY}=1"],
)  # fmt: skip
def test_a_key_given_as_a_setting_is_refused_and_not_shown(kgon, tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    status, lines, said = kgon(*TRAIN, word)
    assert status == 2 and not lines and len(said.splitlines()) == 1
    assert "WANDB_API_KEY" in said and KEY not in said and "abc" not in said
    assert not (tmp_path / "multirun").exists()


def test_names_and_folders_are_no_keys():
    account.check_no_key([("run", f"data/{KEY}/train-1"), ("logger.name", "local-run")])
    account.check_no_key([("logger.api_key", None), ("members", 40), ("note", KEY[:-1])])
