"""Random numbers as functions of what they are for.

Everything random in kgon is a pure function of a key and a counter: the key names the seed, the
member and the purpose, the counter is the step, the epoch or the sample. Nothing depends on what
was drawn before or on who else is drawing. So a member gets the same numbers alone and among a
thousand others, a resumed run gets the numbers that it would have got, and an estimate on the side
cannot disturb training.

The generator is SplitMix64 (Steele, Lea and Flood 2014): its finaliser applied to key + counter *
golden ratio passes BigCrush, and the members' keys are themselves hashes.
"""

import math
import zlib
from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


@numba.njit(inline="always", error_model="numpy")
def bits(key, counter):
    """64 random bits, the SplitMix64 output number `counter` of the stream `key`."""
    z = key + (np.uint64(counter) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # golden ratio
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(inline="always", error_model="numpy")
def unit(key, counter):
    """A uniform number in (0, 1), of 53 bits, never 0 or 1."""
    return (np.float64(bits(key, counter) >> np.uint64(11)) + 0.5) * 2.0**-53


@numba.njit(cache=True)
def _fold(keys, words):
    folded = np.empty_like(keys)
    for i in range(keys.size):
        key = keys[i]
        for word in words[i]:
            # Hashed before a word goes in: member ^ seed alone would be the same for many pairs.
            key = bits(bits(key, 0) ^ word, 1)
        folded[i] = key
    return folded


def member_keys(seed: int | Sequence[int], members: Sequence[int], purpose: str) -> Keys:
    """The stream keys of `members` (n_members,) for one purpose ("data", "order", ...).

    `seed` is that of all, or one for each member.
    """
    keys = np.asarray(members, dtype=np.uint64)
    seeds = [seed] * len(keys) if isinstance(seed, int) else seed
    words = np.empty((len(keys), 2), dtype=np.uint64)
    words[:, 0] = [s % 2**64 for s in seeds]
    words[:, 1] = zlib.crc32(purpose.encode())
    return _fold(keys, words)


def subkeys(keys: Keys, count: int) -> Keys:
    """`count` independent streams for each key, (*keys, count): the chains of a member, say."""
    words = np.tile(np.arange(count, dtype=np.uint64), keys.size)
    return _fold(np.repeat(keys.ravel(), count), words[:, None]).reshape(*keys.shape, count)


@numba.njit(cache=True, nogil=True)
def uniforms(keys, start, count):
    """Uniform numbers start, ..., start + count - 1 of each stream, (n_keys, count)."""
    out = np.empty((keys.size, count))
    for s in range(keys.size):
        for i in range(count):
            out[s, i] = unit(keys[s], start + i)
    return out


# The C library's logarithm and sines are called one number at a time, and cost more than a chain's
# step. These are short series without branches, which the compiler runs on several numbers at once.
_ATANH = tuple(2.0 / (2 * k + 1) for k in range(11))
_TAYLOR = tuple(1.0 / math.factorial(k) for k in range(18))
_EXPONENT = np.int64(52)
_ROOT_HALF = np.int64(0x3FE6A09E667F3BCD)  # the bits of sqrt(1/2)


@numba.njit(inline="always", error_model="numpy", fastmath={"contract"})
def _log(u):
    """log u for positive u: u = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh s."""
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
    """cos and sin of 2 pi u for u in [0, 1]: an angle of at most pi / 4 from a quarter turn."""
    # Of 32 bits, for which alone processors convert several at once.
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
    """Standard normal numbers `counter` (even) and `counter` + 1 of a stream, as `normals` has
    them: Box and Muller's transform of the uniform numbers of that place."""
    radius = np.sqrt(-2.0 * _log(unit(key, counter)))
    cos, sin = _cos_sin(unit(key, counter + 1))
    return radius * cos, radius * sin


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def normals(keys, start, out):
    """Fill out (n_keys, count) with standard normal numbers start, start + 1, ... of each stream.

    `start` must be even, so that a stream does not depend on how it is cut into calls.
    """
    for s in range(keys.size):
        key, row = keys[s], out[s]
        for i in range(row.size // 2):
            row[2 * i], row[2 * i + 1] = normal_pair(key, start + 2 * i)
        if row.size % 2:
            row[row.size - 1] = normal_pair(key, start + row.size - 1)[0]


_TWO_52 = np.uint64(0x4330000000000000)  # the bits of 2^52: with those of k < 2^52, 2^52 + k
_ONE = np.uint64(1)
_WHOLE = np.uint64(52)
_SIGN = np.uint64(63)


@numba.njit(inline="always", error_model="numpy")
def _whole(k):
    """k < 2^52 plus 2^52: with vector instructions, which have no conversion of 64 bits."""
    return np.uint64(_TWO_52 | k).view(np.float64)


@numba.njit(inline="always", error_model="numpy", fastmath={"contract"})
def noise_pair(key, counter):
    """Two standard normal numbers, as `noise` has them: Box and Muller's transform of output
    `counter` of the generator, its upper 32 bits for the radius, its lower ones for the angle.

    Half the work of `normal_pair` and less, for chains, which need a number for every parameter at
    every step. They are what the transform says within 2^-33 of the radius, and none is beyond
    6.8, which one pair in 10^10 would be.
    """
    z = bits(key, counter)
    u = _whole(z >> np.uint64(32)) - (2.0**52 - 0.5)  # 2^32 times a uniform number
    # As in `_log`, for u = 2^e m with e >= -1.
    w = np.float64(u).view(np.uint64)
    above = (w - np.uint64(_ROOT_HALF) + (_ONE << _WHOLE)) >> _WHOLE  # e + 1
    m = np.uint64(w - ((above - _ONE) << _WHOLE)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    series = 0.0
    for k in range(5, 0, -1):
        series = (series + _ATANH[k]) * q
    log = (_whole(above) - (2.0**52 + 33.0)) * math.log(2.0) + (2.0 * s + s * series)
    radius = np.sqrt(-2.0 * log)
    # An angle between -pi/2 and pi/2, and the sign that makes it one of the whole circle.
    turned = _whole((z >> _ONE) & np.uint64(0x7FFFFFFF)) - (2.0**52 + 2.0**30)
    y = turned * (math.pi * 2.0**-31) + math.pi * 2.0**-32
    radius = np.uint64(np.float64(radius).view(np.uint64) | (z << _SIGN)).view(np.float64)
    q = -y * y
    cos, sin = 0.0, 0.0
    for k in range(14, 0, -2):
        cos = (cos + _TAYLOR[k]) * q
        sin = (sin + _TAYLOR[k + 1]) * q
    return radius * (cos + 1.0), radius * (y * sin + y)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def noise(keys, start, out):
    """Fill out (n_keys, count) with the noise of a step, numbers start, start + 1, ... of each
    stream; start and count must be even."""
    for s in range(keys.size):
        row = out[s]
        for i in range(row.size // 2):
            row[2 * i], row[2 * i + 1] = noise_pair(keys[s], start // 2 + i)


@numba.njit(cache=True, nogil=True)
def shuffles(keys, epochs, n):
    """For each stream and epoch a uniform permutation of 0 .. n-1, (n_keys, n_epochs, n) int32.

    Fisher and Yates, with 32 random bits scaled to each range: no element is favoured by more than
    n / 2^32.
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
