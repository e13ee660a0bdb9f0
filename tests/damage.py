"""Random damage to the bytes of any file; what knows its format is in `mutants` and `hostile_images`."""

from __future__ import annotations

import random

#: At the borders of what formats and languages hold.
NUMBERS = [
    *(-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 33, 64, 100, 255, 256, 257, 1000, 4096),
    *(2**16, 2**20, 2**24, 2**27, 2**30, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1),
]


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to five changes: flipped, left out, put in, said again, swapped, cut off."""
    b = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(b))
        length = rng.choice((1, 1, 2, 4, 16, 200))
        match rng.randrange(7):
            case 0:
                b[at] ^= 1 << rng.randrange(8)
            case 1:
                del b[at : at + length]
            case 2:
                b[at:at] = rng.randbytes(length)
            case 3:
                b[at:at] = b[at : at + length]
            case 4:
                del b[at:]
            case 5:  # two runs change places
                to = rng.randrange(len(b))
                b[at : at + length], b[to : to + length] = b[to : to + length], b[at : at + length]
            case _:  # a varint of another value, and perhaps of another length
                b[at : at + rng.choice((0, 1))] = _varint(rng.choice(NUMBERS) % 2**64)
        if not b:
            return b""
    return bytes(b)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes((*result, value))
