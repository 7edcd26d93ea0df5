"""kgon --help and kgon COMMAND --help."""

import subprocess
import sys

import pytest

from kgon.cli import COMMANDS, CONFIGURED
from kgon.launch import options
from kgon.launch.help import help_text

HEAVY = ("torch", "lightning", "numba", "wandb")

OPTIONS = {
    f"{command} {name}={option}": file
    for command in CONFIGURED
    for name, group in options.groups(command).items()
    for option, file in group.options.items()
}


@pytest.mark.parametrize("words", [(), *((command,) for command in COMMANDS)])
def test_help_explains_and_imports_nothing_heavy(words):
    script = (
        "import sys\n"
        "from kgon.cli import main\n"
        f"sys.argv = ['kgon', *{words!r}, '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('imported', *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith("usage: kgon")
    assert done.stdout.splitlines()[-1].split() == ["imported"]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_says_in_one_line_what_it_is(name):
    first = options.comments(OPTIONS[name])[0]
    assert first.endswith(".")
    assert len(first) < 100


def test_help_shows_settings_groups_and_options_of_the_command_only():
    llc, paper = help_text("llc"), help_text("paper")
    for words in (
        "n_draws=null",
        "of each chain, after n_burnin",
        "runs.retry=null",
        "sampler: of the chains",
        "hmc *",
        "gradient Langevin dynamics",
        "table_k1",
    ):
        assert words in llc
    for words in ("optimizer", "figure_1"):
        assert words not in llc
    assert "groups" not in paper and "item=null" in paper
    assert "model.n_hidden=2" in help_text("train")
