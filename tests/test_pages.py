"""What README.md and docs/ say: their Python runs, and their commands are ones that kgon takes."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from kgon.cli import COMMANDS, CONFIGURED, reference
from kgon.launch import config as configs
from kgon.launch import options
from kgon.launch.command_line import composed_and_checked

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_A_TEST = {"own_model.md": "test_own_model.py", "own_study.md": "test_own_study.py"}
"""Pages whose blocks and commands another test runs."""

COMMAND = re.compile(rf"kgon ({'|'.join(COMMANDS)})\b")


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    if page.name in WITH_A_TEST:
        assert (ROOT / "tests" / WITH_A_TEST[page.name]).is_file()
        return
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks(page)), str(page), "exec"), {})
    # What a block prints is on its page.
    if page.name == "README.md":
        assert capsys.readouterr().out.startswith("6 0.04819 8.5 minimum")


def said(page):
    """The commands of a page, in its blocks and in its text, without the program's name."""
    text = page.read_text(encoding="utf-8").replace("\\|", "|")
    fenced = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.S | re.M)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines = [*"\n".join(fenced).splitlines(), *re.findall(r"^(?: {4})+(.*)", rest, re.M)]
    lines += re.findall(r"`(kgon \w+ [^`\n]+)`", rest)  # of more than a command's name
    for line in lines:
        if COMMAND.match(line):
            yield tuple(shlex.split(line, comments=True)[1:])


FOUND = {
    name(page): list(dict.fromkeys(said(page))) for page in PAGES if page.name not in WITH_A_TEST
}


class Parsed(Exception):
    pass


def parse(command, words, monkeypatch):
    """Give words to a command that has flags; end it where it has read them."""
    read = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        read(self, *args, **kwargs)
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [f"kgon {command}", *words])
        importlib.import_module(f"kgon.cli.{command}").main()


def compose(command, words, *, several):
    """Check words as the command line does; of those that stand for something, the key only."""
    open_ones = [w for w in words if re.search(r"\.\.\.|=$|=[A-Z]+\b", w)]
    for word in open_ones:
        assert word.partition("=")[0] in options.settings(command, {}), word
    # (The check of trainer=gpu wants a GPU.)
    closed = [word.replace("=gpu", "=cpu") for word in words if word not in open_ones]
    check = importlib.import_module(f"kgon.cli.{command}").check
    _, swept = composed_and_checked(command, closed, check, several)
    assert several or not swept, f"{swept} needs -m"


@pytest.mark.parametrize(
    "page",
    # The paper's page has a hundred commands, made by kgon.paper.
    [
        pytest.param(page, marks=[pytest.mark.slow] if "paper" in page else [])
        for page, found in FOUND.items()
        if found
    ],
)
def test_the_commands_of_a_page_are_ones_that_kgon_takes(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE")
    configs.register_resolvers()
    for command, *words in FOUND[page]:
        if command not in CONFIGURED:
            parse(command, words, monkeypatch)
        else:
            flags = [word for word in words if word.startswith("-")]
            assert set(flags) <= {"-m", "--help", "--cfg"}, flags
            overrides = [w for w in words if "=" in w or w.startswith("~")]
            assert {*words} - {*flags, *overrides} <= {"job"}, words
            compose(command, overrides, several="-m" in flags)


def test_enough_commands_are_found():
    assert len(FOUND["README.md"]) >= 9 and len(FOUND["docs/wandb.md"]) >= 9
    assert ("train", "-m", "seed=1,2,3", "optimizer.lr=0.005,0.01") in FOUND["README.md"]


def test_the_page_of_settings_is_that_of_conf():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference.page(), "python -m kgon.cli.reference > docs/configuration.md"
    assert re.findall(r"^.*\|\s*\|$", page, re.M) == []  # no empty cell: conf/ explains each
    for command in CONFIGURED:
        for key, setting in options.settings(command, {}).items():
            if setting.text and not key.startswith("hydra"):
                assert f"`{key}` | `{setting.text}` |".replace("|`", "\\|`") in page, (command, key)


def test_the_papers_entry_is_that_of_the_citation_file():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = cited["preferred-citation"]
    entry = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    for value in (paper["title"], authors, paper["journal"], str(paper["year"])):
        assert f"{{{value}}}" in entry
