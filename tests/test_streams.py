import numpy as np
import pytest
from scipy import stats

from kgon import streams

KEYS = streams.member_keys(0, range(40), "test")


def test_streams_of_seeds_members_and_purposes_differ():
    keys = [
        streams.member_keys(seed, range(100), purpose)
        for seed in (0, 1, 2**40)
        for purpose in ("data", "order")
    ]
    assert len(np.unique(np.concatenate(keys))) == 600


def test_a_member_has_the_same_key_in_any_company():
    alone = streams.member_keys(5, [7], "data")
    assert alone == streams.member_keys(5, [3, 7, 1], "data")[1]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.uint64])
def test_an_integer_of_any_kind_is_that_integer(kind):
    assert np.array_equal(
        streams.seed_keys(kind(3), (2, 2), "test"),
        streams.member_keys(3, range(4), "test").reshape(2, 2),
    )
    assert np.array_equal(
        streams.member_keys(kind(3), [1, 2], "test"), streams.member_keys(3, [1, 2], "test")
    )
    assert np.array_equal(
        streams.member_keys(np.array([3, 4], dtype=kind), [1, 2], "test"),
        streams.member_keys([3, 4], [1, 2], "test"),
    )


def test_keys_are_taken_as_they_are():
    assert streams.seed_keys(KEYS, (40,), "test") is KEYS
    assert streams.seed_keys(KEYS[:1].reshape(()), (), "test") == KEYS[0]


@pytest.mark.parametrize(
    "seed",
    [np.arange(3), np.array(0), KEYS[:4], KEYS[:3].astype(np.int64), [0, 1, 2], 1.5, None],
    ids=repr,
)
def test_a_seed_that_is_neither_an_integer_nor_keys_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed must be an integer, or uint64 stream keys of"):
        streams.seed_keys(seed, (3,), "test")


@pytest.mark.parametrize("seed", [1.5, [1.5, 2], [1, 2, 3], None])
def test_seeds_of_members_are_integers_one_for_each(seed):
    with pytest.raises(ValueError, match="seed must be an integer, or one for each of 2 members"):
        streams.member_keys(seed, [0, 1], "test")


def test_uniforms_are_uniform_and_independent_of_cutting():
    u = streams.uniforms(KEYS, 0, 5000)
    assert np.array_equal(u[:, 1234:], streams.uniforms(KEYS, 1234, 5000 - 1234))
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-4
    lag = np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]
    across = np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]
    assert max(abs(lag), abs(across)) < 5 / np.sqrt(u.size)


@pytest.mark.parametrize("count", [7, 1000])
def test_normals_are_normal_and_independent_of_cutting(count):
    whole, part = np.empty((40, count)), np.empty((40, count - 6))
    streams.normals(KEYS, 0, whole)
    streams.normals(KEYS, 6, part)
    assert np.array_equal(whole[:, 6:], part)
    if count == 1000:
        assert stats.kstest(whole.ravel(), "norm").pvalue > 1e-4


def test_normals_are_box_and_mullers_transform_of_the_uniforms():
    count = 100_000
    got = np.empty((2, count))
    streams.normals(KEYS[:2], 0, got)
    u = streams.uniforms(KEYS[:2], 0, count)
    radius, angle = np.sqrt(-2 * np.log(u[:, ::2])), 2 * np.pi * u[:, 1::2]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(2, -1)
    # The angle itself, of size 2 pi, is rounded in the expectation; radii are below 10.
    assert np.abs(got - expected).max() < 10 * 2 * np.pi * 2**-52


def test_neighbouring_normals_are_independent():
    normals = np.empty((40, 1000))
    streams.normals(KEYS, 0, normals)
    pairs = normals.reshape(-1, 2)
    n = len(pairs)
    # The two of a pair, their squares, and the last of one and the first of the next.
    for a, b in [(pairs[:, 0], pairs[:, 1]), (*(pairs**2).T,), (pairs[:-1, 1], pairs[1:, 0])]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(n)
    directions = np.arctan2(pairs[:, 1], pairs[:, 0]) / (2 * np.pi) + 0.5
    assert stats.kstest(directions, "uniform").pvalue > 1e-4


def test_shuffles_are_uniform_permutations():
    n, epochs = 5, np.arange(600)
    orders = streams.shuffles(KEYS, epochs, n)
    assert np.array_equal(np.sort(orders, -1), np.broadcast_to(np.arange(n), orders.shape))
    codes = (orders * n ** np.arange(n)).sum(-1).ravel()
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 120
    assert stats.chisquare(counts).pvalue > 1e-4


def test_an_epochs_order_does_not_depend_on_the_epochs_asked_for():
    whole = streams.shuffles(KEYS, np.arange(10), 50)
    assert np.array_equal(whole[:, 7:8], streams.shuffles(KEYS, np.array([7]), 50))


def test_subkeys_are_distinct_and_prefix_stable():
    four = streams.subkeys(KEYS, 4)
    assert len(np.unique(four)) == 160
    assert np.array_equal(four[:, :2], streams.subkeys(KEYS, 2))
