"""Counter-based random numbers: pure functions of a key and a counter.

The key is a hash of the seed, the member and the purpose; the counter is the step, the epoch or the
sample. No number depends on what was drawn before. So a member gets the same numbers alone as in
any ensemble, a resumed run gets the numbers that it would have got without the interruption, and an
estimate made during training does not change the training.

The generator is SplitMix64 (Steele, Lea and Flood 2014): its finaliser applied to
key + counter * golden ratio, which passes BigCrush.
"""

import math
import zlib
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from kgon.jit import jit

Keys = NDArray[np.uint64]


@numba.njit(inline="always", error_model="numpy")
def bits(key, counter):
    """64 random bits: output number `counter` of SplitMix64 in the stream `key`."""
    z = key + (np.uint64(counter) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # golden ratio
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(inline="always", error_model="numpy")
def unit(key, counter):
    """A uniform number of 53 bits in the open interval (0, 1)."""
    return (np.float64(bits(key, counter) >> np.uint64(11)) + 0.5) * 2.0**-53


@jit
def _fold(keys, words):
    folded = np.empty_like(keys)
    for i in range(keys.size):
        key = keys[i]
        for word in words[i]:
            # The key is hashed first: member ^ seed is the same for many pairs.
            key = bits(bits(key, 0) ^ word, 1)
        folded[i] = key
    return folded


def member_keys(seed: int | Sequence[int], members: Sequence[int], purpose: str) -> Keys:
    """The members' stream keys for a purpose such as "data", (n_members,).

    `seed` is one for all members, or one for each.
    """
    keys = np.asarray(members, dtype=np.uint64)
    words = np.empty((len(keys), 2), dtype=np.uint64)
    words[:, 0] = [s % 2**64 for s in each_seed(seed, len(keys))]
    words[:, 1] = zlib.crc32(purpose.encode())
    folded: Keys = _fold(keys, words)
    return folded


def each_seed(seed: int | Sequence[int], n_members: int) -> list[int]:
    """The members' seeds, given one integer for all or one for each; else ValueError."""
    seeds: Any = [seed] * n_members if isinstance(seed, Integral) else seed
    several = isinstance(seeds, Sequence | np.ndarray) and len(seeds) == n_members
    if not several or not all(isinstance(s, Integral) for s in seeds):
        raise ValueError(
            f"seed must be an integer, or one for each of {n_members} members; got {seed!r}"
        )
    return [int(s) for s in seeds]


def seed_keys(seed: int | Keys, shape: tuple[int, ...], purpose: str) -> Keys:
    """Stream keys of this shape from a sampler's `seed`.

    An integer names streams for `purpose`; an array of uint64 stream keys is returned as it is;
    anything else raises ValueError.
    """
    if isinstance(seed, Integral):
        return member_keys(int(seed), range(math.prod(shape)), purpose).reshape(shape)
    got = repr(seed)
    if isinstance(seed, np.ndarray):
        if seed.dtype == np.uint64 and seed.shape == tuple(shape):
            return seed
        got = f"a {seed.dtype} array of shape {seed.shape}"
    raise ValueError(
        f"seed must be an integer, or uint64 stream keys of shape {tuple(shape)}; got {got}"
    )


def subkeys(keys: Keys, count: int) -> Keys:
    """Keys of `count` independent streams for each key, (*keys.shape, count)."""
    words = np.tile(np.arange(count, dtype=np.uint64), keys.size)
    folded: Keys = _fold(np.repeat(keys.ravel(), count), words[:, None])
    return folded.reshape(*keys.shape, count)


@jit(nogil=True)
def uniforms(keys, start, count):
    """Uniform numbers start, ..., start + count - 1 of each stream, (n_keys, count)."""
    out = np.empty((keys.size, count))
    for s in range(keys.size):
        for i in range(count):
            out[s, i] = unit(keys[s], start + i)
    return out


# numba calls the C library's logarithm, cosine and sine on one number at a time, which makes a
# chain's noise as slow as the rest of its step. The series below have no branches, so the compiler
# vectorises them: they take a tenth of the time.
_ATANH = tuple(2.0 / (2 * k + 1) for k in range(11))
_TAYLOR = tuple(1.0 / math.factorial(k) for k in range(18))
_EXPONENT = np.int64(52)
_ROOT_HALF = np.int64(0x3FE6A09E667F3BCD)  # the bits of sqrt(1/2)


@numba.njit(inline="always", error_model="numpy", fastmath={"contract"})
def _log(u):
    """log u for u > 0: u = 2^e m with m in [sqrt(1/2), sqrt(2)), and log m = 2 atanh s with
    s = (m - 1) / (m + 1)."""
    z = np.float64(u).view(np.int64)
    e = (z - _ROOT_HALF) >> _EXPONENT
    m = np.int64(z - (e << _EXPONENT)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    series = 0.0
    for k in range(10, 0, -1):
        series = (series + _ATANH[k]) * q
    return np.int32(e) * math.log(2.0) + (2.0 * s + s * series)


@numba.njit(inline="always", error_model="numpy", fastmath={"contract"})
def _cos_sin(u):
    """cos and sin of 2 pi u for u in [0, 1]: Taylor series at the nearest multiple of pi / 2."""
    # 32 bits, because vector instructions convert only these.
    quarter = np.int32(4.0 * u + 0.5)
    y = (4.0 * u - quarter) * (0.5 * math.pi)
    q = -y * y
    cos, sin = 0.0, 0.0
    for k in range(16, 0, -2):
        cos = (cos + _TAYLOR[k]) * q
        sin = (sin + _TAYLOR[k + 1]) * q
    cos += 1.0
    sin = y * sin + y
    odd = (quarter & 1) != 0
    x = sin if odd else cos
    z = cos if odd else sin
    return (-x if ((quarter + 1) & 2) != 0 else x), (-z if (quarter & 2) != 0 else z)


@numba.njit(inline="always", error_model="numpy", fastmath={"contract"})
def normal_pair(key, counter):
    """Standard normal numbers `counter` (even) and `counter` + 1 of a stream, by Box and Muller."""
    radius = np.sqrt(-2.0 * _log(unit(key, counter)))
    cos, sin = _cos_sin(unit(key, counter + 1))
    return radius * cos, radius * sin


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def fill_normals(key, start, out):
    """Fill out (count) with standard normal numbers start, start + 1, ... of one stream."""
    for i in range(out.size // 2):
        out[2 * i], out[2 * i + 1] = normal_pair(key, start + 2 * i)
    if out.size % 2:
        out[out.size - 1] = normal_pair(key, start + out.size - 1)[0]


@jit(nogil=True, error_model="numpy", fastmath={"contract"})
def normals(keys, start, out):
    """Fill out (n_keys, count) with standard normal numbers start, start + 1, ... of each stream.

    `start` must be even: normal numbers come in pairs (`normal_pair`).
    """
    for s in range(keys.size):
        fill_normals(keys[s], start, out[s])


@jit(nogil=True)
def shuffles(keys, epochs, n):
    """Uniform permutations of 0, ..., n - 1 by stream and epoch, (n_keys, n_epochs, n) int32.

    This is the Fisher-Yates shuffle. Each index comes from 32 random bits scaled to its range, so
    its relative bias is at most n / 2^32.
    """
    out = np.empty((keys.size, epochs.size, n), dtype=np.int32)
    for s in range(keys.size):
        for e in range(epochs.size):
            key = bits(keys[s], epochs[e])
            order = out[s, e]
            for i in range(n):
                order[i] = i
            for i in range(n - 1, 0, -1):
                j = np.int64(((bits(key, i) >> np.uint64(32)) * np.uint64(i + 1)) >> np.uint64(32))
                order[i], order[j] = order[j], order[i]
    return out
