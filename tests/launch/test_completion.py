"""Completion of command lines, by the shell itself."""

import os
import subprocess
import sys

SCRIPT = """
set -e
kgon() {{ "{python}" -m kgon "$@"; }}
export -f kgon
eval "$(kgon -sc install=bash)"
COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=($COMP_LINE); COMP_CWORD={place}
COMP_LINE="$COMP_LINE" COMP_POINT=$COMP_POINT kgon -sc query=bash
"""


def completions(line):
    words = line.split(" ")
    script = SCRIPT.format(python=sys.executable, line=line, place=len(words) - 1)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_commands_settings_and_options_are_completed():
    assert {"train", "runs", "posterior"} <= set(completions("kgon "))
    assert completions("kgon train optimizer=ad") == ["optimizer=adam", "optimizer=adamw"]
    assert "schedule.n_llc=" in completions("kgon train schedule.n_")
    assert completions("kgon llc experiment=app") == ["experiment=approach"]
    assert completions("kgon runs ") == []


def test_any_command_installs_completion_for_kgon():
    for words in (["train"], []):
        done = subprocess.run(
            [sys.executable, "-m", "kgon", *words, "-sc", "install=bash"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith("hydra_bash_completion kgon")
