"""A row of the comparison with the paper, and the rules of its verdict.

Let d = kgon - published. A published number is rounded to the unit u of its last digit, which
counts as a uniform error of standard deviation u / sqrt(12).

- No published number: kgon's value stands alone. A reference from outside the paper (without the
  mark P or R) is compared by the rules below, but the verdict stays "no published number".
- A computed number, without a standard error, is reproduced if |d| <= u / 2. If the published
  number has an uncertainty of its own, the next rule applies.
- A measured number: with z = d / sqrt(stderr^2 + spread^2 + u^2 / 12), it is reproduced if
  |z| <= 2, reproduced with a remark if 2 < |z| <= 3 (by chance, one comparison in twenty has
  |z| > 2), and not reproduced beyond.
- An interval is compared like a measured number, with d the distance to the interval.
- A statement is reproduced if it is found true.
- What is reproduced but has a remark, or rests on an inference (I) or a proposal, is reproduced
  with a remark.
"""

import math
from dataclasses import dataclass
from typing import Any

from kgon.files import finite_or_none

REPRODUCED = "reproduced"
REMARK = "reproduced with a remark"
NOT = "not reproduced"
UNPUBLISHED = "no published number"
VERDICTS = (REPRODUCED, REMARK, NOT, UNPUBLISHED)

MARKS = {
    "P": "stated in the paper, by a reader of its full source",
    "R": "read in a reproduction that quotes the paper's tables and protocol (ztreisman/arc-llc)",
    "A": "co-authors' own code from before the paper",
    "D": "derived independently of the paper and verified numerically",
    "I": "inferred; nobody states it",
    "proposal": "no source; a choice that seems sensible",
}
"""How sure a published number is."""

Table = tuple[str, list[str], list[list[str]]]
"""A table of the page: title, header, cells."""

_AGREES, _AGREES_LOOSELY = 2.0, 3.0


@dataclass(frozen=True)
class Published:
    """A number or a statement to be compared with.

    Attributes:
        value: a number, an interval (low, high), or True for a statement.
        marks: how sure it is, among MARKS.
        where: the place in the source.
        spread: its own uncertainty, taken as a standard error.
        digits: printed decimals; None if the number is exact (a count, 7, 8.5).
        text: printed instead of the number.
    """

    value: float | tuple[float, float] | bool
    marks: tuple[str, ...]
    where: str
    spread: float | None = None
    digits: int | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        wrong = set(self.marks) - set(MARKS)
        if wrong or not self.marks:
            raise ValueError(f"marks must be some of {', '.join(MARKS)}, got {self.marks}")

    @property
    def in_the_paper(self) -> bool:
        """Whether the paper has it, as read there (P) or in a reproduction that quotes it (R)."""
        return bool(set(self.marks) & {"P", "R"})

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit."""
        return 0.0 if self.digits is None else 0.5 * 10.0**-self.digits

    def __str__(self) -> str:
        if self.text is not None:
            return self.text
        if isinstance(self.value, bool):
            return "yes"
        if isinstance(self.value, tuple):
            return f"{self.value[0]:g} .. {self.value[1]:g}"
        number = f"{self.value:g}" if self.digits is None else f"{self.value:.{self.digits}f}"
        return number if self.spread is None else f"{number} ± {self.spread:g}"


@dataclass(frozen=True)
class Row:
    """A quantity, published and computed.

    Attributes:
        quantity: what is compared, in words.
        value: kgon's number, or whether a statement holds; None if the run gave none.
        published: None if nobody has published it.
        stderr: standard error of the value; None if it is computed, not measured.
        digits: decimals to print.
        text: printed instead of the number.
        remark: what a reader must know about the comparison.
    """

    quantity: str
    value: float | bool | None
    published: Published | None = None
    stderr: float | None = None
    digits: int = 5
    text: str | None = None
    remark: str = ""

    @property
    def difference(self) -> float | None:
        """kgon - published; None if there is nothing to subtract."""
        if self.published is None or self.value is None or not math.isfinite(self.value):
            return None
        against = self.published.value
        if isinstance(against, bool):
            return None
        if isinstance(against, tuple):
            return self.value - min(max(self.value, against[0]), against[1])
        return self.value - against

    @property
    def standard_errors(self) -> float | None:
        """The difference in standard errors; None if neither side has one."""
        if self.difference is None or self.published is None:
            return None
        own, theirs = self.stderr, self.published.spread
        if own is None and theirs is None:
            return None
        variance = (own or 0.0) ** 2 + (theirs or 0.0) ** 2 + self.published.rounding**2 / 3
        if variance == 0:
            return 0.0 if self.difference == 0 else math.copysign(math.inf, self.difference)
        return self.difference / math.sqrt(variance)

    @property
    def agreement(self) -> str:
        """The verdict by the rules above, wherever the published number is from."""
        if self.published is None:
            return UNPUBLISHED
        if isinstance(self.published.value, bool):
            good, loose = self.value is self.published.value, False
        elif self.difference is None:
            good, loose = False, False
        elif (z := self.standard_errors) is not None:
            good, loose = abs(z) <= _AGREES_LOOSELY, abs(z) > _AGREES
        else:
            # The small terms allow for the rounding of this comparison itself.
            good = abs(self.difference) <= self.published.rounding * (1 + 1e-9) + 1e-12
            loose = False
        if not good:
            return NOT
        unsure = bool({"I", "proposal"} & set(self.published.marks))
        return REMARK if loose or unsure or self.remark else REPRODUCED

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        if self.published is None or not self.published.in_the_paper:
            return UNPUBLISHED
        return self.agreement

    def plain(self) -> dict[str, Any]:
        """The row for results.json."""
        published = self.published
        return {
            "quantity": self.quantity,
            "published": published and published.value,
            "published_text": published and str(published),
            "published_spread": published and published.spread,
            "published_digits": published and published.digits,
            "kgon": finite_or_none(self.value),
            "stderr": self.stderr,
            "difference": self.difference,
            "standard_errors": finite_or_none(self.standard_errors),
            "verdict": self.verdict,
            "agrees_with_reference": published and self.agreement != NOT,
            "marks": list(published.marks) if published else [],
            "source": published and published.where,
            "remark": self.remark,
        }

    @property
    def shown(self) -> str:
        """kgon's side as text."""
        if self.text is not None:
            return self.text
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        if self.value is None or not math.isfinite(self.value):
            return "-"
        number = f"{self.value:.{self.digits}f}"
        return number if self.stderr is None else f"{number} ± {self.stderr:.{self.digits}f}"

    @property
    def shown_difference(self) -> str:
        """The difference as text: standard errors where there are any."""
        if (z := self.standard_errors) is not None:
            return (f"{z:+.1f}" if abs(z) >= 0.05 else "0.0") if math.isfinite(z) else "∞"
        if self.difference is None:
            return "-"
        if abs(self.difference) <= (self.published.rounding if self.published else 0) + 1e-12:
            return "0 (rounding)"
        return f"exact: {self.difference:+.2g}"


def share_stderr(count: int, total: int) -> float:
    """Standard error of a share count / total.

    A count of 0 or of total is moved inwards by 1/2, so that its error is not zero.
    """
    p = min(max(count, 0.5), total - 0.5) / total
    return math.sqrt(p * (1 - p) / total)
