"""The parameters of a sweep: the overrides that some of its runs have and others do not."""

from collections.abc import Sequence
from contextlib import suppress

from kgon.record.run_directory import Run


def shared_by(words: Sequence[Sequence[str]]) -> list[str]:
    """The words of the first run that all runs have."""
    everywhere = set[str].intersection(*map(set, words))
    return [word for word in words[0] if word in everywhere]


class Swept:
    """The parameters that were swept.

    Attributes:
        shared: the overrides that all runs have.
        words: the other overrides of each run, by its directory.
        names: the parameters in `words`.
    """

    def __init__(self, runs: Sequence[Run]):
        words = [[str(word) for word in run.status.get("overrides") or []] for run in runs]
        self.shared = shared_by(words)
        own = [[word for word in some if word not in self.shared] for some in words]
        self.words = {run.path: some for run, some in zip(runs, own, strict=True)}
        self.names = list(dict.fromkeys(word.partition("=")[0] for some in own for word in some))

    def values(self, run: Run) -> dict[str, float | str]:
        """The values of a run by parameter, as numbers if possible."""
        pairs = (word.partition("=") for word in self.words[run.path])
        return {name: _as_number(value) for name, _, value in pairs}

    def key(self, run: Run) -> list[tuple[bool, float, str]]:
        """A key that sorts runs by the first parameter, then the second; numbers before words."""
        values = self.values(run)
        found = [values.get(name, "") for name in self.names]
        return [(True, 0.0, v) if isinstance(v, str) else (False, v, "") for v in found]


def _as_number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
