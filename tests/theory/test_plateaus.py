"""Plateaus of curves whose plateaus are known."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kgon.theory.critical import critical_point, critical_points
from kgon.theory.plateaus import (
    Plateau,
    find_plateaus,
    find_plateaus_of_each,
    match_plateaus,
)

EDGES = [0, 3000, 12000, 40000, 100000]
LEVELS = [0.1528, 0.1042, 0.0687, 0.0482]


def staircase(step):
    """LEVELS[i] for EDGES[i] <= step < EDGES[i + 1]."""
    inner = torch.tensor(EDGES[1:-1], dtype=torch.float64)
    return torch.tensor(LEVELS, dtype=torch.float64)[torch.bucketize(step, inner, right=True)]


EVEN = torch.arange(0, 100001, 100, dtype=torch.float64)
LOG = torch.cat([torch.zeros(1), torch.logspace(1, 5, 400)]).double()
RANDOM = (
    (100000 * torch.rand(500, generator=torch.Generator().manual_seed(0))).double().sort().values
)


@pytest.mark.parametrize("step", [EVEN, LOG, RANDOM], ids=["even", "log", "random"])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_staircases_have_the_plateaus_they_are_made_of(step, every):
    """To the record: a plateau starts at the first record at its level and ends at the last."""
    step = step[::every].contiguous()
    found = find_plateaus(step, staircase(step))
    assert len(found) == len(LEVELS)
    for plateau, level, low, high in zip(found, LEVELS, EDGES[:-1], EDGES[1:], strict=True):
        inside = step[(step >= low) & (step < high)]
        inside = torch.cat([inside, step[step == high]]) if high == EDGES[-1] else inside
        assert (plateau.start, plateau.end) == (float(inside[0]), float(inside[-1]))
        assert plateau.loss == level


def test_a_flat_curve_is_one_plateau():
    assert find_plateaus(EVEN, torch.full_like(EVEN, 0.1)) == [Plateau(0, 100000, 0.1)]


def test_any_strides_will_do():
    """A view of every second step, and a transposed history (records, curves)."""
    history = staircase(EVEN)[:, None].expand(-1, 3)
    found = find_plateaus_of_each(EVEN[::2], history[::2].T)
    assert found == [find_plateaus(EVEN[::2].clone(), history[::2, 0].clone())] * 3


def test_integer_steps_stay_integers():
    (plateau,) = find_plateaus(torch.arange(0, 1000, 10), torch.ones(100))
    assert (type(plateau.start), plateau.end) == (int, 990)


def test_an_exponential_decay_has_one_plateau_where_it_has_decayed():
    """y = h + A exp(-t / tau). The last 2 tolerance of the decay begin at tau log(A / 2 tol)."""
    tau, height, tolerance = 3000.0, 0.5, 1e-3
    y = 0.1 + height * (-EVEN / tau).exp()
    (plateau,) = find_plateaus(EVEN, y, tolerance=tolerance)
    start = tau * math.log(height / (2 * tolerance))
    assert 0 <= plateau.start - start <= 100  # the next record
    assert plateau.end == 100000
    excess = 2 * tolerance * tau / (100000 - start)  # of the mean over h, from start to infinity
    assert plateau.loss == pytest.approx(0.1 + excess, abs=0.1 * excess)


@pytest.mark.parametrize("slope", [1e-7, 1e-6, 1e-5, 1e-3])
def test_a_straight_slope_has_no_plateau(slope):
    """However slow, as long as the curve moves by more than tolerance in all: 0.01 to 100 here."""
    assert find_plateaus(EVEN, 1 - slope * EVEN) == []
    assert find_plateaus(LOG, 1 - slope * LOG) == []


def test_what_moves_less_than_a_quarter_of_the_tolerance_is_level():
    total = 0.4e-3  # halves differ by half of it, 0.2e-3 < 1e-3 / 4
    (plateau,) = find_plateaus(EVEN, 0.1 + total * EVEN / 100000)
    assert plateau.loss == pytest.approx(0.1 + total / 2, rel=1e-12)


def test_means_are_over_time_not_over_records():
    """A ramp within the tolerance, recorded densely at its start."""
    y = 0.1 + 0.4e-3 * LOG / 100000
    (plateau,) = find_plateaus(LOG, y)
    assert plateau.loss == pytest.approx(0.1002, rel=1e-12)


def curves():
    g = torch.Generator().manual_seed(0)
    walk = 3e-4 * torch.randn(12, LOG.numel(), generator=g, dtype=torch.float64)
    batch = 0.1 + walk.cumsum(-1)
    batch[:6] = staircase(LOG) + 1e-4 * torch.rand(6, LOG.numel(), generator=g, dtype=torch.float64)
    batch[4, 200:] = torch.nan
    batch[5, 0] = torch.inf
    return batch


def test_a_batch_is_a_loop():
    batch = curves()
    found = find_plateaus_of_each(LOG, batch)
    single = [find_plateaus(LOG, curve) for curve in batch]
    assert found == single
    assert sum(map(len, found)) > 20
    assert find_plateaus_of_each(LOG, batch.view(2, 3, 2, -1)) == single
    assert find_plateaus_of_each(LOG, batch[:0]) == []


def test_plateaus_are_level_disjoint_and_long_enough():
    """The definition, checked on curves that are anything: walks as well as staircases."""
    for curve, found in zip(curves(), find_plateaus_of_each(LOG, curves()), strict=True):
        for plateau in found:
            inside = curve[(plateau.start <= LOG) & (plateau.end >= LOG)]
            assert inside.numel() >= 3
            assert float(inside.max() - inside.min()) <= 2e-3
            assert float(inside.min()) <= plateau.loss <= float(inside.max())
            assert plateau.end - plateau.start >= 0.01 * 100000
        assert all(a.end < b.start for a, b in itertools.pairwise(found))


def slow_furthest(y, width):
    ends = []
    for i in range(len(y)):
        j = i
        while j + 1 < len(y) and max(y[i : j + 2]) - min(y[i : j + 2]) <= width:
            j += 1
        ends.append(j)
    return ends


@pytest.mark.parametrize("n", [3, 4, 7, 8, 9, 100])
def test_the_first_plateau_taken_is_the_longest_level_interval(n):
    """Against the definition, record by record. The tolerance is such that nothing is a slope."""
    g = torch.Generator().manual_seed(n)
    step = torch.rand(n, generator=g, dtype=torch.float64).cumsum(0)
    for _ in range(20):
        y = torch.randn(n, generator=g, dtype=torch.float64)
        y = torch.where(torch.rand(n, generator=g) < 0.7, 0.0, y)  # level, with excursions
        ends = slow_furthest(y.tolist(), 1e-6)
        length = max(
            (float(step[j] - step[i]) for i, j in enumerate(ends) if j - i + 1 >= 3), default=0
        )
        found = find_plateaus(step, y, tolerance=0.5e-6, min_length=1e-9)
        assert max((p.end - p.start for p in found), default=0) == length


def slow_plateaus(step, y, tolerance, min_length):
    """The module's docstring, word by word: (start, end) of one finite curve's plateaus."""
    t, n = step.tolist(), len(step)
    level = [
        (i, j)
        for i, last in enumerate(slow_furthest(y.tolist(), 2 * tolerance))
        for j in range(i + 2, last + 1)
        if t[j] - t[i] >= min_length * (t[-1] - t[0])
    ]

    def width(i, j):
        return float(y[i : j + 1].max() - y[i : j + 1].min())

    def mean(a, z):
        """Over a fine grid of times, on which the curve is straight between records."""
        at = torch.linspace(a, z, 20001, dtype=torch.float64)
        return float(np.trapezoid(np.interp(at, t, y), dx=1 / 20000))

    found = []
    while level:
        i, j = max(level, key=lambda own: t[own[1]] - t[own[0]])
        level = [own for own in level if own[1] < i or own[0] > j]
        middle = (t[i] + t[j]) / 2
        drift = abs(mean(t[i], middle) - mean(middle, t[j]))
        longer = [(a, z) for a, z in ((i - 1, j), (i, j + 1)) if a >= 0 and z < n]
        cut = any(width(a, z) <= 2 * tolerance for a, z in longer)
        if not (drift > width(i, j) / 3 and (cut or drift > tolerance / 4)):
            found.append((t[i], t[j]))
    return sorted(found)


@pytest.mark.parametrize("tolerance", [3e-4, 1e-3, 4e-3])
def test_all_plateaus_are_those_of_the_definition(tolerance):
    g = torch.Generator().manual_seed(1)
    step = torch.rand(80, generator=g, dtype=torch.float64).cumsum(0)
    moves = 5e-4 * torch.randn(12, 80, generator=g, dtype=torch.float64)
    walks = (moves * (torch.rand(12, 80, generator=g) < 0.6)).cumsum(-1) * tolerance / 1e-3
    slow = [slow_plateaus(step, walk, tolerance, 0.05) for walk in walks]
    found = find_plateaus_of_each(step, walks, tolerance=tolerance, min_length=0.05)
    assert [[(p.start, p.end) for p in own] for own in found] == slow
    assert sum(map(len, slow)) > 12


def test_time_and_loss_can_be_shifted_and_scaled():
    """Powers of two and one shift that is exact, so that the plateaus are the same ones."""
    batch = curves()[:4]
    before = find_plateaus_of_each(LOG, batch)
    scaled = find_plateaus_of_each(8 * LOG, 4 * batch, tolerance=4e-3)
    shifted = find_plateaus_of_each(LOG + 2**20, batch)
    for a, b, c in zip(before, scaled, shifted, strict=True):
        assert [(8 * p.start, 8 * p.end) for p in a] == [(p.start, p.end) for p in b]
        assert [p.loss for p in b] == pytest.approx([4 * p.loss for p in a], rel=1e-12)
        assert [p.start + 2**20 for p in a] == [p.start for p in c]
        assert [p.loss for p in c] == pytest.approx([p.loss for p in a], rel=1e-9)


many = settings(max_examples=200, deadline=None)
increasing = st.sets(st.integers(0, 10**6), min_size=3, max_size=60).map(sorted)


@many
@given(increasing, st.data())
def test_a_factor_of_the_steps_scales_the_plateaus(steps, data):
    """A power of two, so that nothing is rounded."""
    levels = st.integers(0, 9).map(lambda n: 4e-4 * n)
    loss = data.draw(st.lists(levels, min_size=len(steps), max_size=len(steps)))
    factor = 2.0 ** data.draw(st.integers(-20, 20))
    step = torch.tensor(steps, dtype=torch.float64)
    before = find_plateaus(step, torch.tensor(loss, dtype=torch.float64))
    after = find_plateaus(factor * step, torch.tensor(loss, dtype=torch.float64))
    assert after == [Plateau(factor * p.start, factor * p.end, p.loss) for p in before]


@many
@given(increasing, st.sets(st.integers(1, 10**6), max_size=5).map(sorted))
def test_a_staircase_has_its_plateaus_at_whatever_steps_it_is_recorded(steps, edges):
    """Every level with enough records over enough steps, from its first record to its last."""
    step = torch.tensor(steps)
    stair = torch.bucketize(step, torch.tensor(edges, dtype=torch.int64), right=True)
    loss = (0.2 - 0.01 * stair).double()
    expected = []
    for i in stair.unique().tolist():
        own = step[stair == i].tolist()
        long_enough = own[-1] - own[0] >= 0.01 * (steps[-1] - steps[0])
        if len(own) >= 3 and long_enough:
            expected.append((own[0], own[-1], float(loss[stair == i][0])))
    assume(expected)
    assert [(p.start, p.end, p.loss) for p in find_plateaus(step, loss)] == expected


def test_uniform_noise_within_the_tolerance_does_not_move_an_edge():
    """Noise of range 2 tolerance leaves levels level, and the steps are 20 times as high."""
    g = torch.Generator().manual_seed(0)
    noise = 1e-3 * (2 * torch.rand(20, EVEN.numel(), generator=g, dtype=torch.float64) - 1)
    exact = find_plateaus(EVEN, staircase(EVEN))
    for found in find_plateaus_of_each(EVEN, staircase(EVEN) + noise):
        assert [(p.start, p.end) for p in found] == [(p.start, p.end) for p in exact]
        for p, q in zip(found, exact, strict=True):
            n = (p.end - p.start) / 100
            assert abs(p.loss - q.loss) < 5 * 1e-3 / math.sqrt(3 * n)  # 5 standard errors


def test_a_running_median_finds_plateaus_under_minibatch_noise():
    """Normal noise with standard deviation 0.02, as high as the step; medians of w = 401 records
    have sqrt(pi / 2 w) of it, 1.25e-3, and stay within 5 of those with a probability of 1 - 6e-7
    for each of fewer than 10,000: so the tolerance. The edge is blurred by half a window."""
    g = torch.Generator().manual_seed(0)
    step = torch.arange(0, 100001, 10, dtype=torch.float64)
    clean = torch.where(step < 40000, 0.1042, 0.0842)
    y = clean + 0.02 * torch.randn(3, step.numel(), generator=g, dtype=torch.float64)
    tolerance = 5 * 0.02 * math.sqrt(math.pi / 802)
    assert all(find_plateaus(step, curve, tolerance=tolerance) == [] for curve in y)
    for found in find_plateaus_of_each(step, y, tolerance=tolerance, window=401):
        assert len(found) == 2
        for p, level, low, high in zip(
            found, (0.1042, 0.0842), (0, 40000), (40000, 100000), strict=True
        ):
            assert abs(p.start - low) <= 2010 and abs(p.end - high) <= 2010
            assert abs(p.loss - level) < tolerance


def test_a_running_median_leaves_clean_staircases_alone():
    assert find_plateaus(EVEN, staircase(EVEN), window=9) == find_plateaus(EVEN, staircase(EVEN))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_diverged_curve_ends_there(bad):
    y = staircase(EVEN)
    y[600] = bad  # step 60,000; what follows is finite again and does not count
    found = find_plateaus(EVEN, y)
    assert [(p.start, p.end) for p in found] == [
        (0, 2900),
        (3000, 11900),
        (12000, 39900),
        (40000, 59900),
    ]
    assert find_plateaus(EVEN, torch.full_like(EVEN, bad)) == []


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_records_have_no_plateau(n):
    assert find_plateaus(torch.arange(n), torch.zeros(n)) == []


@pytest.mark.parametrize(
    ("step", "loss", "options", "message"),
    [
        ([0, 1, 1], [0, 0, 0], {}, "strictly increasing"),
        ([0, 2, 1], [0, 0, 0], {}, "strictly increasing"),
        ([0, 1, 2], [0, 0], {}, "loss \\(\\*batch, n_records\\)"),
        ([], [], {}, "n_records >= 1"),
        ([0, 1], [0, 0], {"tolerance": 0.0}, "tolerance must be > 0, got 0.0"),
        ([0, 1], [0, 0], {"tolerance": math.nan}, "tolerance"),
        ([0, 1], [0, 0], {"min_length": 0.0}, "min_length"),
        ([0, 1], [0, 0], {"min_length": 1.1}, "min_length"),
        ([0, 1], [0, 0], {"window": 2}, "window must be odd"),
        ([0, 1], [0, 0], {"window": -1}, "window must be odd"),
    ],
)
def test_bad_input_is_named(step, loss, options, message):
    with pytest.raises(ValueError, match=message):
        find_plateaus(torch.tensor(step), torch.tensor(loss).double(), **options)


def test_plateaus_are_matched_with_the_nearest_level():
    points = critical_points(6)
    plateaus = [Plateau(0, 1, p.loss + 1e-4) for p in points]
    matches = match_plateaus(plateaus, points)
    assert [m.label for m in matches] == [p.label for p in points]
    assert all(m.ties == (m.label,) for m in matches)
    assert [m.distance for m in matches] == pytest.approx([1e-4] * len(points), abs=1e-15)
    assert match_plateaus([], points) == []


def test_points_at_the_same_level_are_all_named():
    """A triangle has the loss of a 4-gon with a column switched off."""
    points = [critical_point(label, 6) for label in ("5", "4-", "3", "4")]
    (match,) = match_plateaus([Plateau(0, 1, 0.1666)], points)
    assert (match.label, match.ties) == ("4-", ("4-", "3"))


def test_matching_needs_points():
    with pytest.raises(ValueError, match="points"):
        match_plateaus([Plateau(0, 1, 0.1)], [])
