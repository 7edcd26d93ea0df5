"""The built wheel is all that a user needs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_carries_its_configs_and_trains_from_any_folder(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # -P keeps the current folder out of the path, and so the checkout's own conf/.
    script = "import kgon.launch.options as o; print(o.CONF); from kgon.cli import main; main()"
    words = ["train", "members=1", "trainer.max_steps=4", "callbacks=[losses]", "logger=csv"]

    def kgon(*words):
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, *words],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    printed = kgon(*words)
    assert printed.startswith(str(tmp_path / "installed" / "kgon" / "conf"))
    assert len(list(elsewhere.glob("multirun/*/loss.parquet"))) == 1
    (elsewhere / "own" / "optimizer").mkdir(parents=True)
    (elsewhere / "mine.py").write_text("from torch.optim import SGD\n")
    option = "_target_: mine.SGD\n_partial_: true\nlr: 0.25\n"
    (elsewhere / "own" / "optimizer" / "mine.yaml").write_text(option)
    kgon(*words, "--config-dir", "own", "optimizer=mine")
    assert any("lr: 0.25" in f.read_text() for f in elsewhere.glob("multirun/*/config.yaml"))
    kgon("report", "multirun")
    assert "uPlot" in (elsewhere / "multirun" / "report.html").read_text()
