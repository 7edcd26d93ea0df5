"""Random numbers as functions of what they are for.

Everything random in kgon is a pure function of a key and a counter: the key names the seed, the
member and the purpose, the counter is the step, the epoch or the sample. Nothing depends on what
was drawn before or on who else is drawing. So a member gets the same numbers alone and among a
thousand others, a resumed run gets the numbers that it would have got, and an estimate on the side
cannot disturb training.

The generator is SplitMix64 (Steele, Lea and Flood 2014): its finaliser applied to key + counter *
golden ratio passes BigCrush, and the members' keys are themselves hashes.
"""

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


@numba.njit(cache=True, nogil=True)
def normals(keys, start, out):
    """Fill out (n_keys, count) with standard normal numbers start, start + 1, ... of each stream.

    Box and Muller's transform of uniform numbers 2i and 2i + 1 gives normal numbers 2i and 2i + 1;
    `start` must be even, so that a stream does not depend on how it is cut into calls.
    """
    count = out.shape[1]
    for s in range(keys.size):
        for i in range(0, count, 2):
            radius = np.sqrt(-2.0 * np.log(unit(keys[s], start + i)))
            angle = 2.0 * np.pi * unit(keys[s], start + i + 1)
            out[s, i] = radius * np.cos(angle)
            if i + 1 < count:
                out[s, i + 1] = radius * np.sin(angle)


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
