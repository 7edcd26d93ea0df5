"""What MkDocs does for kgon's pages besides rendering them (mkdocs.yml names this file).

- Pages that are read elsewhere in the repository, too, are taken from there (ELSEWHERE), and links
  to them lead to their pages.
- The pages of the API are made from the list of rooms.
- Formulas, `$...$` in a line and ```math fences, are drawn by matplotlib, so that browsers need no
  script, no font and no network for them. GitHub and GitLab render the same notation.
- An asterisk in front of a name, as in (*batch, n_features), is an asterisk.
- A built page that would load anything from another host fails the build.
"""

import ast
import os
import posixpath
import re
from html import escape
from pathlib import Path

from markdown import Extension
from markdown.inlinepatterns import InlineProcessor
from matplotlib import rc_context
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from pymdownx.slugs import slugify

import kgon

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "kgon"

ELSEWHERE = {
    "changelog.md": ("CHANGELOG.md", ""),
    "contributing.md": ("CONTRIBUTING.md", ""),
    "run_folder.md": ("multirun/README.md", ""),
    "symbols.md": ("README.md", "Symbols"),
    "rooms.md": ("README.md", "Dive into the code"),
    "CITATION.cff": ("CITATION.cff", ""),
}
"""The pages and files of the site that are not in docs/: where each is, and which section of it."""

_slug = slugify(case="lower")  # as in mkdocs.yml
_LINK = re.compile(r"\[([^\[\]]+)\]\(([^)\s:#]+)(#[^)\s]+)?\)")
_LOADED = re.compile(r"<(?:link|script|img|iframe)\b[^>]*?\b(?:href|src)=[\"']?(?:https?:)?//[^>]*")


def on_config(config):
    config.markdown_extensions.append(_Notation())
    fence = {"name": "math", "class": "math", "format": _block}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}


def on_files(files, config):
    texts = {page: _section(*place) for page, place in ELSEWHERE.items()} | _api()
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown, page, config, files):
    """Links that lead out of docs/ lead to the page that shows their target."""
    if page.file.src_uri == "paper/README.md":
        page.meta["hide"] = ["toc"]  # it has its own, and wide tables
    source, _ = ELSEWHERE.get(page.file.src_uri, (f"docs/{page.file.src_uri}", ""))
    shown = {place: name for name, place in ELSEWHERE.items()}
    titles = {_slug(section, "-"): section for _, section in ELSEWHERE.values()}

    def target(match):
        text, path, anchor = match.groups(default="")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        section = titles.get(anchor[1:], "")
        if (there, section) in shown:
            there, anchor = shown[there, section], "" if section else anchor
        elif there.startswith("docs/"):
            there = there.removeprefix("docs/")
        elif (ROOT / there).exists():
            return text  # a file of the repository, which only a code host shows
        else:
            return match[0]
        own = posixpath.dirname(page.file.src_uri) or "."
        return f"[{text}]({posixpath.relpath(there, own)}{anchor})"

    return _LINK.sub(target, markdown)


def on_post_page(output, page, config):
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} would load from another host: {found[0]}")


def _section(file, heading):
    text = (ROOT / file).read_text()
    if not heading:
        return text
    after = text.partition(f"\n## {heading}\n")[2]
    return f"# {heading}\n" + after.partition("\n## ")[0]


def _api():
    """A page for each room, and one that lists the public names."""
    lines = ["# API", "", "`import kgon` gives these names. The rooms have more.", ""]
    lines += ["| name | what it is |", "|---|---|"]
    for name, home in kgon._HOME.items():
        lines.append(f"| [`kgon.{name}`][kgon.{home}.{name}] | {_summary(home, name)} |")
    lines += ["", "## From a config to a run", "", "::: kgon.cli.from_python", ""]
    pages = {"api/index.md": "\n".join(lines)}
    for room in kgon._ROOMS:
        inside = [f"{room}.{file.stem}" for file in sorted((SOURCE / room).glob("[a-z]*.py"))]
        modules = "".join(f"::: kgon.{name}\n\n" for name in inside or [room])
        pages[f"api/{room}.md"] = f"# kgon.{room}\n\n{modules}"
    return pages


def _summary(home, name):
    tree = ast.parse((SOURCE / f"{home.replace('.', os.sep)}.py").read_text())
    (node,) = (n for n in tree.body if getattr(n, "name", "") == name)
    first = " ".join(ast.get_docstring(node).split("\n\n")[0].split())
    return first.replace(" (see the module docstring)", "").replace("|", "\\|")


def _block(source, *_, **__):
    return f'<p class="formula">{_drawn(source)}</p>'


@rc_context({"mathtext.fontset": "stix"})
def _drawn(formula):
    """A formula as SVG, in units of the font's size and on the line of the text around it."""
    one = " ".join(formula.split())
    font = FontProperties(size=100)
    width, height, depth, *_ = MathTextParser("path").parse(f"${one}$", 72, font)
    letters = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    outline = "".join(
        letters.get(code, "Z") + " ".join(f"{x:.0f}" for x in points if code in letters)
        for points, code in TextPath((0, 0), f"${one}$", prop=font).iter_segments()
    )
    return (
        f'<svg class="formula" role="img" aria-label="{escape(one)}" '
        f'viewBox="0 {depth - height:.0f} {width:.0f} {height:.0f}" '
        f'style="width:{width / 100:.2f}em;vertical-align:{-depth / 100:.2f}em">'
        f'<path transform="scale(1,-1)" d="{outline}"/></svg>'
    )


class _Notation(Extension):
    def extendMarkdown(self, md):
        formula = r"(?<![\\$\w])\$(?=\S)([^$]+?)(?<=\S)\$(?!\w)([.,;:)]*)"
        md.inlinePatterns.register(_Formula(formula, md), "formula", 187)
        md.inlinePatterns.register(_Asterisk(r"\*(?=[a-z_]+[,):])", md), "asterisk", 186)


class _Formula(InlineProcessor):
    def handleMatch(self, m, data):
        kept = f'<span class="formula">{_drawn(m[1])}{m[2]}</span>'  # on one line
        return self.md.htmlStash.store(kept), m.start(0), m.end(0)


class _Asterisk(InlineProcessor):
    def handleMatch(self, m, data):
        return self.md.htmlStash.store("*"), m.start(0), m.end(0)
