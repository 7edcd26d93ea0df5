"""What the figures plot is what they were given, every level is named, and nothing overlaps."""

from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from kgon.figures import style
from kgon.figures import training as training_figures
from kgon.figures.film import _palette, _with_palette
from kgon.figures.sweep import against_parameter, parts
from kgon.figures.weights import k_gon, weights

# PAPER: L(k^{sigma+, phi-}, c) = [h_k + (c - k) + phi - 3 sigma / (4c)] / (3c).
_H = {4: 0.0, 5: 0.23738, 6: 0.86746}
_COLUMN = {4: (1.0, 0.0), 5: (1.17046, -0.28230), 6: (1.32053, -0.61814)}


def _points(n_features=6):
    """All families: 4-gons with any sigma and phi, k >= 5 with all dead biases of one sign."""
    found = []
    for k in range(4, n_features + 1):
        free = n_features - k
        for sigma in range(free + 1) if k == 4 else {0, free}:
            for phi in range(5) if k == 4 else (0,):
                height = _H[k] + free + phi - 0.75 * sigma / n_features
                label = f"{k}" + "+" * sigma + "-" * phi
                llc = None if k == 4 else (3 * k - 1) / 2 + 1.5 * sigma
                loss = height / (3 * n_features)
                found.append(SimpleNamespace(label=label, loss=loss, llc=llc))
    return found


def _loss(label):
    return next(p.loss for p in _points() if p.label == label)


def _k_gon(label, n_features=6):
    k, sigma, phi = int(label[0]), label.count("+"), label.count("-")
    length, bias = _COLUMN[k]
    angle = 2 * np.pi * np.arange(k) / k + 0.3
    W, b = np.zeros((2, n_features)), np.full(n_features, -1.0)
    W[:, :k], b[:k] = length * np.array([np.cos(angle), np.sin(angle)]), bias
    b[k : k + sigma] = 1 / (2 * n_features)
    b[:phi] = -2.0
    return W, b


def _legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def _staircase_data():
    step = np.array([0, 50, 200, 1_000, 5_000, 20_000, 100_000, 225_000])
    labels = ["4++-"] * 3 + ["4+"] * 3 + ["5"] * 2
    loss = np.array([_loss(label) for label in labels]) + 1e-4
    plateaus = [
        {"start": 50, "end": 200, "nearest": "4++-"},
        {"start": 1_000, "end": 20_000, "nearest": "4+"},
        {"start": 100_000, "end": 225_000, "nearest": "5"},
    ]
    stages = [(s, t, *_k_gon(s)) for s, t in (("4++-", 200), ("4+", 5_000), ("5", 225_000))]
    return step, loss, plateaus, stages


def _staircase(*curves, **more):
    return training_figures.staircase(training_figures.Curves(*curves, **more))


def _draw(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def _with_gid(figure, gid):
    return [a for a in figure.findobj(include_self=False) if a.get_gid() == gid]


def _one(figure, gid):
    (artist,) = _with_gid(figure, gid)
    return artist


def _visible_texts(figure):
    renderer = _draw(figure)
    frame = figure.bbox
    shown = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            box = Text.get_window_extent(text, renderer)  # of an annotation without its arrow
            # The ticks outside the limits of an axis exist, but are not drawn.
            ticks = text in {t for ax in figure.axes for t in _undrawn_ticks(ax)}
            if not ticks:
                shown.append((text, box))
    return frame, shown


def _undrawn_ticks(ax):
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks() + axis.get_minor_ticks():
            if not (low <= tick.get_loc() <= high) or not tick.get_visible():
                yield from (tick.label1, tick.label2)


def _all_figures():
    step, loss, plateaus, stages = _staircase_data()
    llc = {"llc_step": step, "llc": np.linspace(-60, 8, 8), "llc_stderr": np.full(8, 0.3)}
    none = {"llc_step": None, "llc": None, "llc_stderr": None}
    rest = {"plateaus": plateaus, "stages": stages, "points": _points()}
    phases = [p.label for p in _points()]
    members = np.stack([np.full(8, p.loss) for p in _points()], axis=1)
    W, b = (np.stack(a) for a in zip(*(_k_gon(s) for s in ("4", "4++-", "5+", "6")), strict=True))
    yield "loss", training_figures.loss_curves(step, members, _points(), final_phase=phases)
    # Four hidden dimensions, say: no level is known, and losses fall by orders of magnitude.
    wide = np.geomspace(20, 1e-5, len(step))[:, None] * np.ones(3)
    yield "loss, no levels", training_figures.loss_curves(step, wide, [])
    yield (
        "llc, no levels",
        training_figures.llc_by_phase(
            wide.ravel(), np.linspace(0, 7, wide.size), ["other"] * wide.size, []
        ),
    )
    yield "loss, no phases", training_figures.loss_curves(step, members, _points())
    yield "staircase", _staircase(step, loss, **llc, **rest)
    yield "staircase without LLC", _staircase(step, loss, **none, **rest)
    yield "weights", weights(np.tile(W, (4, 1, 1)), np.tile(b, (4, 1)), ["4++-"] * 16)
    yield "gram", weights(np.ones((3, 3, 6)), np.zeros((3, 6)), ["other"] * 3)
    yield "phases", training_figures.phase_counts(step, [phases] * 8)
    yield (
        "llc",
        training_figures.llc_by_phase(
            [_loss(p) for p in phases], [5.0] * len(phases), phases, _points()
        ),
    )


# ------------------------------------------------------------------------------------- colours


def _lab(colour, deficiency):
    """CIE Lab of a colour as seen with a colour vision deficiency (a matrix on linear RGB)."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    relative = to_xyz @ np.clip(np.array(deficiency) @ linear, 0, 1) / to_xyz.sum(axis=1)
    f = np.where(relative > 216 / 24389, np.cbrt(relative), relative * 841 / 108 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009), severity 1.
_VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("vision", _VISION)
@pytest.mark.parametrize("dark", [False, True])
def test_the_common_phases_are_told_apart_by_every_eye(vision, dark):
    labels = ["4", "4+", "4++", "5", "5+", "6", "other"]
    lab = {s: _lab(style.phase_color(s, dark=dark), _VISION[vision]) for s in labels}
    closest = min(np.linalg.norm(lab[a] - lab[b]) for a, b in combinations(labels, 2))
    assert closest > 5 * 2.3  # five just noticeable differences


@pytest.mark.parametrize("dark", [False, True])
def test_every_label_has_a_colour_of_its_own(dark):
    labels = [p.label for p in _points()] + ["7", "7+", "8", "9", "10", "other"]
    colours = {style.phase_color(label, dark=dark) for label in labels}
    assert len(colours) == len(labels)
    assert all(len(c) == 7 and c.startswith("#") for c in colours)


def test_what_is_no_k_gon_is_grey():
    for label in ("other", "diverged", None, "4-+"):
        red, green, blue = (style.phase_color(label)[i : i + 2] for i in (1, 3, 5))
        assert red == green == blue


def test_marker_and_line_style_repeat_what_colour_says():
    corners = {k: len(style.phase_marker(str(k)).get_path().vertices) - 1 for k in (4, 5, 6)}
    assert corners == {4: 4, 5: 5, 6: 6}
    assert style.phase_marker("4").is_filled() and not style.phase_marker("4+").is_filled()
    assert len({style.phase_linestyle("4++" + "-" * phi) for phi in range(4)}) == 4


def test_phases_are_ordered_by_falling_loss():
    labels = ["other", "6", "4++", "5+", "4", "5", "4+"]
    ordered = style.phase_order([*labels, "5"])
    assert ordered == [*sorted(labels[1:], key=_loss, reverse=True), "other"]


# --------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("name, figure", list(_all_figures()), ids=lambda v: str(v)[:24])
def test_text_is_inside_the_figure_readable_and_apart(name, figure):
    frame, shown = _visible_texts(figure)
    assert figure.get_size_inches()[0] == style.WIDTH
    for text, box in shown:
        assert text.get_fontsize() >= 7, text
        assert frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1, text
        assert frame.y0 - 1 <= box.y0 and box.y1 <= frame.y1 + 1, text
    for (a, box_a), (b, box_b) in combinations(shown, 2):
        # Boxes include the font's ascent and descent: letting them share a pixel is no overlap.
        across = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
        up = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
        assert across <= 1 or up <= 1, (a, b)


@pytest.mark.parametrize("n_features", [4, 5, 6])
def test_every_level_in_the_frame_is_named_once_beside_its_line(n_features):
    points = _points(n_features)
    loss = np.stack([np.full(3, p.loss) for p in points], axis=1)
    figure = training_figures.loss_curves([0, 10, 100], loss, points)
    named = ", ".join(t.get_text() for t in _with_gid(figure, "level-label")).split(", ")
    assert sorted(named) == sorted(p.label for p in points)
    for p in points:
        line = _one(figure, f"level-{p.label}")
        np.testing.assert_array_equal(line.get_ydata(), p.loss)
        assert line.get_color() == style.phase_color(p.label)


def test_levels_without_room_for_all_names_are_named_in_part():
    points = [SimpleNamespace(label=f"{k}", loss=0.1 + 1e-3 * k, llc=None) for k in range(4, 64)]
    loss = np.tile([p.loss for p in points], (2, 1))
    figure = training_figures.loss_curves([1, 10], loss, points)
    labels = _with_gid(figure, "level-label")
    renderer = _draw(figure)
    boxes = sorted((Text.get_window_extent(t, renderer) for t in labels), key=lambda box: box.y0)
    assert len(boxes) >= 15
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    frame = figure.axes[0].bbox
    assert frame.y0 - 12 < boxes[0].y0 and boxes[-1].y1 < frame.y1 + 12  # half a line beyond
    assert all(_with_gid(figure, f"level-{p.label}") for p in points)


def test_coinciding_levels_share_a_name():
    points = [SimpleNamespace(label=s, loss=0.1, llc=None) for s in ("5", "4--")]
    figure = training_figures.loss_curves([1, 10], [[0.1], [0.1]], points)
    assert _one(figure, "level-label").get_text() == "5, 4--"


def test_what_is_spread_apart_keeps_its_order_and_stays_inside():
    spread = style.spread_apart
    # By hand: 0.5 and 0.5 need a gap of 0.2, so 0.4 and 0.6; 0.95 is far enough away.
    np.testing.assert_allclose(spread(np.array([0.5, 0.5, 0.95]), 0.2), [0.4, 0.6, 0.95])
    # At the edge the pair is pushed inside.
    np.testing.assert_allclose(spread(np.array([0.0, 0.0]), 0.2), [0.0, 0.2])
    many = spread(np.sort(np.random.default_rng(0).random(20)), 0.04)
    assert np.diff(many).min() >= 0.04 - 1e-12 and many[0] >= 0 and many[-1] <= 1


# --------------------------------------------------------------------------------------- data


def test_loss_curves_plot_what_they_are_given():
    step = np.array([0, 50, 500, 5_000])
    loss = np.array([[0.3, 0.2], [0.11, 0.11], [0.105, np.nan], [0.07, np.nan]])
    figure = training_figures.loss_curves(step, loss, _points(), final_phase=["5", "other"])
    for m, phase in enumerate(("5", "other")):
        line = _one(figure, f"member-{m}")
        np.testing.assert_array_equal(line.get_xdata(), step)
        np.testing.assert_array_equal(line.get_ydata(), loss[:, m])
        assert line.get_color() == style.phase_color(phase)
    (ax,) = figure.axes
    assert ax.get_xlabel() == "optimizer steps"
    assert "L(w)" in ax.get_ylabel()
    left = ax.transData.transform([(s, 0.1) for s in step])[:, 0]
    assert (np.diff(left) > 5).all()  # step 0 has a place of its own on the log axis
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["5: 1", "other: 1"]


def test_no_levels_are_announced_where_none_are_known():
    loss = np.geomspace(20, 1e-5, 30)[:, None]
    figure = training_figures.loss_curves(np.arange(30), loss, [])
    assert "critical" not in _title(figure)
    low, high = figure.axes[0].get_ylim()
    assert low < 1e-5 and high > 20  # all of the curve, as nothing else says what matters
    assert "critical" in _title(training_figures.loss_curves([0, 10], [[0.1], [0.1]], _points()))
    estimates = [0.1, 0.2], [1.0, 2.0], ["other", "5"]
    assert "theory" not in _title(training_figures.llc_by_phase(*estimates, []))
    assert "theory" in _title(training_figures.llc_by_phase(*estimates, _points()))


def _title(figure):
    return figure.legends[0].get_title().get_text()


def test_curves_that_leave_the_frame_are_counted():
    loss = np.array([[3.0, 0.12, 4.0], [0.11, 0.11, 0.11]])
    figure = training_figures.loss_curves([0, 100], loss, _points())
    assert "2 begin above the frame" in {t.get_text() for t in figure.findobj(Text)}


def test_a_level_of_zero_makes_the_loss_axis_linear():
    figure = training_figures.loss_curves([0, 10], [[0.1], [0.0]], _points(4))
    assert figure.axes[0].get_yscale() == "linear"
    assert (
        training_figures.loss_curves([0, 10], [[0.1], [0.05]], _points()).axes[0].get_yscale()
        == "log"
    )


def test_staircase_plots_loss_llc_theory_plateaus_and_pictures():
    step, loss, plateaus, stages = _staircase_data()
    llc, stderr = np.linspace(-60, 8, 8), np.full(8, 0.3)
    figure = _staircase(
        step,
        loss,
        llc_step=step,
        llc=llc,
        llc_stderr=stderr,
        plateaus=plateaus,
        stages=stages,
        points=_points(),
    )
    np.testing.assert_array_equal(_one(figure, "loss").get_xydata(), np.c_[step, loss])
    np.testing.assert_array_equal(_one(figure, "llc").get_xydata(), np.c_[step, llc])
    # Of the stages 5 alone has a theory value here, 7, over its plateau.
    theory = _one(figure, "theory-5")
    np.testing.assert_array_equal(theory.get_xydata(), [[100_000, 7.0], [225_000, 7.0]])
    *pictures, upper, lower = figure.axes
    assert upper.get_xlim() == lower.get_xlim()
    assert [ax.get_title() for ax in pictures] == ["4++-", "4+", "5"]
    for ax in (upper, lower):
        spans = [p.get_extents().transformed(ax.transData.inverted()) for p in ax.patches]
        np.testing.assert_allclose([s.x0 for s in spans], [p["start"] for p in plateaus])
        np.testing.assert_allclose([s.x1 for s in spans], [p["end"] for p in plateaus])
    # Pictures stand in time order, and each is tied to its point of the curve.
    assert np.all(np.diff([ax.get_position().x0 for ax in pictures]) > 0)
    for i, (_, at, _, _) in enumerate(stages):
        nearest = loss[np.abs(step - at).argmin()]
        np.testing.assert_array_equal(_one(figure, f"stage-{i}").get_xydata(), [[at, nearest]])
    # An estimate far below the frame is marked on its lower edge, not dropped.
    low = lower.get_ylim()[0]
    hidden = _one(figure, "below-frame").get_xdata()
    assert set(step[llc < low]) <= set(hidden) <= set(step[llc < low + 1])
    assert llc[0] < low
    assert _legend(lower) == ["estimate", "theory", style.BELOW_FRAME]


def test_estimates_that_are_not_ok_look_different_and_the_legend_says_so():
    step, loss, plateaus, stages = _staircase_data()
    ok = np.arange(8) % 2 == 0
    figure = _staircase(
        step,
        loss,
        llc_step=step,
        llc=np.full(8, 5.0),
        llc_stderr=None,
        llc_ok=ok,
        plateaus=plateaus,
        stages=stages,
        points=[],
    )
    lower = figure.axes[-1]
    assert _legend(lower) == ["estimate", "not ok"]
    full, hollow = (next(a for a in lower.lines if a.get_label() == k) for k in _legend(lower))
    np.testing.assert_array_equal(full.get_xdata(), step[ok])
    np.testing.assert_array_equal(hollow.get_xdata(), step[~ok])
    assert full.get_markerfacecolor() != hollow.get_markerfacecolor()
    verdicts = ["ok", "escaped", "ok"]
    figure = training_figures.llc_by_phase(
        [0.07] * 3, [7.0, 7.1, 7.2], ["5"] * 3, _points(), verdicts
    )
    good, pale = _one(figure, "phase-5"), _one(figure, "phase-5-not-ok")
    np.testing.assert_array_equal(good.get_ydata(), [7.0, 7.2])
    np.testing.assert_array_equal(pale.get_ydata(), [7.1])
    assert pale.get_alpha() < good.get_alpha() / 2
    assert "pale: not ok" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_a_staircases_legend_explains_what_is_off_scale_where_no_theory_is_known():
    step, loss, plateaus, stages = _staircase_data()
    figure = _staircase(
        step,
        loss,
        llc_step=step,
        llc=np.linspace(-60, 8, 8),
        llc_stderr=None,
        plateaus=plateaus,
        stages=stages[:1],
        points=[],
    )
    assert _legend(figure.axes[-1]) == ["estimate", style.BELOW_FRAME]


def test_staircase_without_llc_has_one_panel():
    step, loss, plateaus, stages = _staircase_data()
    none = {"llc_step": None, "llc": None, "llc_stderr": None}
    figure = _staircase(step, loss, **none, plateaus=plateaus, stages=stages, points=_points())
    assert len(figure.axes) == 1 + len(stages)
    assert not _with_gid(figure, "llc")
    assert _staircase(step, loss, **none, plateaus=[], stages=[], points=[]).axes


def _hulls(figure):
    return [path.vertices[:-1] for path in _one(figure, "hulls").get_paths()]


@pytest.mark.parametrize("label", ["4", "4+", "4++-", "5+", "6"])
def test_k_gon_shows_hull_columns_dead_biases_and_switched_off_columns(label):
    W, b = _k_gon(label)
    k, sigma, phi = int(label[0]), label.count("+"), label.count("-")
    figure = Figure()
    k_gon(figure.add_subplot(), W, b, label)
    (hull,) = _hulls(figure)
    assert {tuple(v) for v in hull.round(9)} == {tuple(v) for v in W[:, :k].T.round(9)}
    drawn = {gid: _with_gid(figure, gid) for gid in ("columns", "columns-off")}
    assert [len(marks) for marks in drawn.values()] == [k > phi, phi > 0]
    for gid, chosen in (("columns", slice(phi, k)), ("columns-off", slice(0, phi))):
        for marks in drawn[gid]:
            np.testing.assert_array_equal(marks.get_offsets(), W[:, chosen].T)
    markers = {marks[0].get_paths()[0].vertices.tobytes() for marks in drawn.values() if marks}
    assert len(markers) == 1 + (phi > 0)
    dead = {sign: _with_gid(figure, f"dead-{sign}") for sign in ("positive", "negative")}
    number = {sign: sum(len(m.get_offsets()) for m in marks) for sign, marks in dead.items()}
    assert number == {"positive": sigma, "negative": 6 - k - sigma}
    white = [tuple(m.get_facecolor()[0]) == (1, 1, 1, 1) for marks in dead.values() for m in marks]
    assert white == [True] * bool(sigma) + [False] * (6 - k > sigma)


def test_a_sheet_shows_what_the_pictures_show():
    W, b = (np.stack(a) for a in zip(*(_k_gon(s) for s in ("4", "4++-", "5+")), strict=True))
    sheet = weights(W, b, ["4", "4++-", "5+"])
    on_sheets = _hulls(sheet)
    assert len(on_sheets) == 3
    for n, hull in enumerate(on_sheets):
        single = Figure()
        k_gon(single.add_subplot(), W[n], b[n], "5")
        (corners,) = _hulls(single)
        on_sheet = hull - hull.mean(0)
        ratio = np.linalg.norm(on_sheet) / np.linalg.norm(corners)
        np.testing.assert_allclose(on_sheet, ratio * corners, atol=1e-12)
    assert [t.get_text() for t in sheet.axes[0].texts] == ["4", "4++-", "5+"]


def test_inner_columns_are_no_corners_of_the_hull():
    W, b = _k_gon("4")
    W[:, 4] = 0.4, 0.1
    figure = Figure()
    k_gon(figure.add_subplot(), W, b, "other")
    assert [len(hull) for hull in _hulls(figure)] == [4]


def test_dead_columns_do_not_pull_the_hull_to_the_origin():
    W = np.array([[1.0, 1.2, 1.0, 0.0], [-0.5, 0.0, 0.5, 0.0]])
    figure = Figure()
    k_gon(figure.add_subplot(), W, np.zeros(4), "other")
    (hull,) = _hulls(figure)
    assert {tuple(v) for v in hull} == {tuple(v) for v in W[:, :3].T}


def test_other_hidden_dimensions_show_the_gram_matrix_and_the_biases():
    W, b = np.arange(16.0).reshape(4, 4) / 10, np.array([0.1, 0.2, -0.3, 0.4])
    figure = Figure()
    k_gon(figure.add_subplot(), W, b, "other")
    image = _one(figure, "gram").get_array()
    np.testing.assert_array_equal(image[:, :4], W.T @ W)
    np.testing.assert_array_equal(image[:, -1], b)


def test_three_dimensions_are_seen_from_two_sides():
    """An octahedron beside a long axis: along the last principal axis all columns but one pair are
    at their length, and each column is seen from both sides."""
    W = np.concatenate([np.diag([1.3, 1.1, 0.9]), -np.diag([1.3, 1.1, 0.9])], axis=1)
    figure = Figure()
    k_gon(figure.add_subplot(), W, np.zeros(6), "other")
    left, right = (np.asarray(each.get_offsets()) for each in _with_gid(figure, "columns"))
    assert len(left) == len(right) == 6
    seen = [np.sort(np.linalg.norm(side - side.mean(0), axis=1)) for side in (left, right)]
    np.testing.assert_allclose(
        seen[0] / seen[0][-1], np.array([0, 0, 1.1, 1.1, 1.3, 1.3]) / 1.3, atol=1e-12
    )
    np.testing.assert_allclose(
        seen[1] / seen[1][-1], np.array([0, 0, 0.9, 0.9, 1.1, 1.1]) / 1.1, atol=1e-12
    )


@pytest.mark.parametrize("n_hidden", [2, 3])
def test_pictures_of_a_series_have_one_scale_and_one_side(n_hidden):
    """So that a picture is the last one's, turned: the middle of columns between 1 and 2."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(n_hidden, 6))
    W /= np.linalg.norm(W, axis=0)
    series, seen = np.stack([2.0 * W, 1.5 * W, W]), []
    for each in series:
        figure = Figure()
        k_gon(figure.add_subplot(), each, np.zeros(6), "other", series=series)
        seen.append([np.asarray(side.get_offsets()) for side in _with_gid(figure, "columns")])
    for large, middle, small in zip(*seen, strict=True):
        np.testing.assert_allclose(middle, (large + small) / 2, atol=1e-12)
    assert max(np.abs(side).max() for side in seen[0]) <= 2.0 * 1.12


def test_a_films_palette_has_the_colours_of_areas_and_covers_the_rest():
    """No colour is farther from its nearest in the palette than the last chosen from the others:
    what is chosen as the farthest each time covers all at the distance it is apart."""
    areas = np.array([[255, 255, 255], [253, 246, 242], [184, 74, 0]])
    others = np.random.default_rng(0).integers(0, 256, (2000, 3))
    frame = np.concatenate([np.repeat(areas, 1000, axis=0), others])[None]
    palette = _palette([frame])
    shown = np.asarray(_with_palette(frame, palette).convert("RGB"))[0].astype(int)
    np.testing.assert_array_equal(shown[:3000], frame[0, :3000])
    apart = np.linalg.norm(palette[-1] - palette[:-1], axis=1).min()
    assert len(palette) == 255 and np.linalg.norm(shown[3000:] - others, axis=1).max() <= apart
    few = frame[:, :3100]
    few_shown = np.asarray(_with_palette(few, _palette([few])).convert("RGB"))
    np.testing.assert_array_equal(few_shown, few)


def test_parameters_that_are_not_finite_are_said_to_be():
    figure = Figure()
    k_gon(figure.add_subplot(), np.full((2, 6), np.nan), np.zeros(6), "diverged")
    assert "not finite" in {t.get_text() for t in figure.findobj(Text)}


def test_phase_counts_stack_to_all_members():
    step = np.array([0, 10, 100])
    labels = np.array([["4", "4", "5"], ["4", "5", "5"], ["5", "5", "other"]])
    figure = training_figures.phase_counts(step, labels)
    (ax,) = figure.axes
    tops = np.zeros(3)
    for label in ("4", "5", "other"):
        area = _one(figure, f"phase-{label}")
        vertices = area.get_paths()[0].vertices
        count = (labels == label).sum(axis=1)
        for t, floor, n in zip(step, tops, count, strict=True):
            heights = vertices[vertices[:, 0] == t, 1]
            assert (heights.min(), heights.max()) == (floor, floor + n)
        tops = tops + count
    assert (tops == 3).all() and ax.get_ylim() == (0, 3)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["4", "5", "other"]


def test_llc_by_phase_plots_estimates_and_theory():
    loss, llc = np.array([0.07, 0.072, 0.11, 0.3]), np.array([7.5, 6.5, 4.0, -90.0])
    figure = training_figures.llc_by_phase(loss, llc, ["5", "5", "4", "other"], _points())
    five = _one(figure, "phase-5")
    np.testing.assert_array_equal(five.get_xydata(), np.c_[loss, llc][:2])
    assert five.get_color() == style.phase_color("5")
    np.testing.assert_array_equal(_one(figure, "theory-5").get_xydata(), [[_loss("5"), 7.0]])
    # No cross where no theory is known (4-gons here) or no snapshot is (6).
    assert [t.get_text() for t in _with_gid(figure, "theory-label")] == ["5"]
    np.testing.assert_array_equal(_one(figure, "below-frame").get_xdata(), [0.3])


def test_results_of_a_sweep_stand_at_their_parameters_value():
    results = [
        {"final/loss": 0.1, "final/phase/4": 3.0, "final/most_common_phase": "4", "same": 1.0},
        {"final/loss": 0.3, "final/phase/4": 1.0, "final/most_common_phase": "4", "same": 1.0},
        {"final/loss": 0.2, "final/phase/5": 2.0, "final/most_common_phase": "5", "same": 1.0},
    ]
    results = [run | {"final/members": 4.0, "final/diverged": 0.0} for run in results]
    figure = against_parameter("lr", [0.1, 0.1, 0.01], results, others=["seed"])
    loss, phase = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "final loss, mean over members", "share of members, by final phase",
    ]  # fmt: skip
    assert [float(t.get_text()) for t in phase.get_xticklabels()] == [0.01, 0.1]
    assert phase.get_xlabel().endswith("\nruns differ in seed")
    dots, means, bars = loss.lines[0], loss.lines[1], loss.collections[0]
    np.testing.assert_allclose(dots.get_xydata(), [[0.1, 0.1], [0.1, 0.3], [0.01, 0.2]])
    np.testing.assert_allclose(means.get_xydata(), [[0.01, 0.2], [0.1, 0.2]])
    # Two values, a tenth from their mean, with Student's 12.706 / 2 for one degree of freedom.
    (_, (_, low), (_, high)) = (0, *bars.get_segments()[-1])
    assert (high - low) / 2 == pytest.approx(0.1 * 12.706 / 2, rel=1e-4)
    # Stacks of the shares of 4 and 5, from the left, as means over runs.
    heights = [[bar.get_height() for bar in bars] for bars in phase.containers]
    np.testing.assert_allclose(heights, [[0, 1 / 2], [1 / 2, 0]])
    middles = [bar.get_x() + bar.get_width() / 2 for bar in phase.containers[0]]
    np.testing.assert_allclose(middles, [0.01, 0.1])
    assert against_parameter("lr", [1, 2], [{"a": 1.0}, {"a": 1.0}]) is None


def test_diverged_members_are_a_share_of_their_own():
    results = [
        {"final/members": 4.0, "final/diverged": 4.0},
        {"final/members": 4.0, "final/diverged": 1.0, "final/phase/5": 3.0},
    ]
    figure = against_parameter("lr", [1, 2], results)
    (ax,) = figure.axes
    shares = {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}
    assert shares == {"5": [0.0, 0.75], "diverged": [1.0, 0.25]}


@pytest.mark.parametrize(
    ("values", "scale", "labels"),
    [
        ([1, 2, 10], "linear", ["1", "2", "10"]),
        ([1, 3, 11], "log", ["1", "3", "11"]),
        ([0, 3, 11], "linear", ["0", "3", "11"]),
        (list(np.geomspace(1e-4, 1, 20)), "log", ["0.0001", "0.001", "0.01", "0.1", "1"]),
        (["normal", 3, "kgon.training.init.KGon"], "linear", ["3", "KGon", "normal"]),
    ],
)
def test_numbers_over_more_than_a_factor_of_ten_are_on_a_logarithmic_axis(values, scale, labels):
    found = [{"a": float(i), "b": 10.0**i} for i in range(len(values))]
    figure = against_parameter("x", values, found)
    for ax in figure.axes:
        assert ax.get_xscale() == scale
    assert [ax.get_yscale() for ax in figure.axes] == ["linear", "log"]
    low, high = figure.axes[-1].get_xlim()
    ticks = zip(figure.axes[-1].get_xticks(), figure.axes[-1].get_xticklabels(), strict=True)
    assert [label.get_text() for at, label in ticks if low <= at <= high] == labels


def test_results_at_several_n_have_a_panel_each_unless_n_is_what_differs_between_runs():
    both = [{"llc/5/50": 1.0, "llc/5/1000": 2.0, "llc/6/50": 3.0}, {"llc/5/50": 4.0}]
    figure = against_parameter("seed", [1, 2], both)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["llc, n = 50"]
    figure = against_parameter("seed", [1, 2], both, only=["llc/5/1000", "llc/5/50"])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["llc, n = 50", "llc, n = 1000"]
    (ax,) = against_parameter("n", [50, 1000], [{"llc/5/50": 1.0}, {"llc/5/1000": 2.0}]).axes
    assert ax.get_title(loc="left") == "llc" and ax.lines[0].get_ydata().tolist() == [1.0, 2.0]


def test_what_a_result_is_of():
    assert parts("final/phase/4+-") == ("final/phase", "4+-", "")
    assert parts("final/llc/other") == ("final/llc", "other", "")
    assert parts("llc/5/5000") == ("llc", "5", "5000")
    assert parts("final/loss") == ("final/loss", "", "")
    assert parts("llc/share_ok") == ("llc/share_ok", "", "")
    assert parts("final/diverged") == ("final/phase", "diverged", "")


# --------------------------------------------------------------------------------- files, errors


def test_save_writes_png_and_the_same_svg_each_time(tmp_path):
    step, loss, *_ = _staircase_data()
    written = [
        style.save(
            training_figures.loss_curves(step, loss[:, None], _points()), tmp_path / name / "a.b"
        )
        for name in ("one", "two")
    ]
    assert [p.name for p in written[0]] == ["a.b.png", "a.b.svg"]
    with Image.open(written[0][0]) as image:
        assert image.size[0] == style.WIDTH * 300
    assert written[0][1].read_bytes() == written[1][1].read_bytes()
    assert b"<svg" in written[0][1].read_bytes()


def test_curves_of_many_members_keep_the_svg_small(tmp_path):
    rng = np.random.default_rng(0)
    loss = 0.1 + 0.01 * rng.random((1000, 300))
    _, svg = style.save(
        training_figures.loss_curves(np.arange(1000), loss, _points()), tmp_path / "many"
    )
    assert svg.stat().st_size < 1_000_000


def test_figures_leave_matplotlibs_settings_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    for n, (_, figure) in enumerate(_all_figures()):
        style.save(figure, tmp_path / str(n))
    assert dict(matplotlib.rcParams) == before


def test_more_members_than_fit_on_a_sheet_are_refused():
    with pytest.raises(ValueError, match="got 17"):
        weights(np.ones((17, 2, 3)), np.ones((17, 3)), ["4"] * 17)
