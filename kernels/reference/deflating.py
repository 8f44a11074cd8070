"""The image data of a PNG, filtered and deflated: what the CUDA kernels of `png_stream` make, byte for byte.

PNG specification, third edition (W3C, 2025), 9: filter types 1 (Sub), 2 (Up), 4 (Paeth), a row the one whose bytes, signed, have the
smallest sum of magnitudes, of every fourth four of them. RFC 1951: one block with a Huffman code of its own, matches of distance 1 and 3
alone, none of which leaves its piece of a row, so that all pieces are looked through at once. RFC 1950: the checksum of the rows.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

SUB, UP, PAETH = 1, 2, 4
FOUR, TRIED = 4, 4  # bytes; of so many fours one tells which filter a row gets
PIECE = 64  # bytes of a row
SHORTEST = 4  # bytes of a match
END = 256  # symbol of the block's end
SYMBOLS = 277  # literals, the end, lengths up to PIECE
FARTHEST = 3  # distance of the pixel before; its symbol is 2
LONGEST_CODE = 15
HEADER = 16  # bytes before the stream
_CODE_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
_DISTANCES = (1, 0, 1)  # lengths of the codes of distances 1, 2, 3

Bytes = NDArray[np.uint8]
Token = tuple[int, int, int, int]  # symbol, extra bits and their number; distance, 0 for a literal


def png_stream(pixels: Bytes, out: Bytes) -> None:
    """pixels [H, W, 3]. out [N]: int32 bytes of the stream, uint32 its rows' adler32, int32 1 where it does not fit into the rest, int32 0;
    then the stream. What comes after is undefined, as is the stream of one that does not fit.
    """
    lines = filtered(pixels)
    tokens = [tokens_of(line) for line in lines]
    counts = np.zeros(SYMBOLS, np.int64)
    for row in tokens:
        for symbol, *_ in row:
            counts[symbol] += 1
    counts[END] += 1
    lengths = code_lengths(counts)
    codes = canonical(lengths)
    bits = _Bits()
    _describe(bits, lengths)
    for row in tokens:
        for symbol, extra, width, distance in row:
            bits.add(codes[symbol], int(lengths[symbol]))
            bits.add(extra, width)
            if distance:
                bits.add(int(distance == FARTHEST), 1)
    bits.add(codes[END], int(lengths[END]))
    stream, room = bits.bytes(), len(out) - HEADER
    fits = len(stream) <= room
    out[:HEADER] = np.frombuffer(struct.pack("<iIii", len(stream), adler32(lines), int(not fits), 0), np.uint8)
    if fits:
        out[HEADER : HEADER + len(stream)] = np.frombuffer(stream, np.uint8)


def filtered(pixels: Bytes) -> Bytes:
    """[H, 1 + 3 W]: each row's filter type, and its bytes."""
    height = pixels.shape[0]
    rows = np.ascontiguousarray(pixels).reshape(height, -1).astype(np.int16)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    left, corner = (np.pad(plane[:, :-3], ((0, 0), (3, 0))) for plane in (rows, above))
    guess = left + above - corner
    near = [np.abs(guess - plane) for plane in (left, above, corner)]
    paeth = np.where((near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], above, corner))
    tried = np.stack([(rows - plane).astype(np.uint8) for plane in (left, above, paeth)])
    looked_at = np.arange(rows.shape[1]) // FOUR % TRIED == 0
    sums = np.abs(tried.view(np.int8)[..., looked_at].astype(np.int64)).sum(axis=2)
    best = sums.argmin(axis=0)
    lines = np.empty((height, rows.shape[1] + 1), np.uint8)
    lines[:, 0] = np.array([SUB, UP, PAETH], np.uint8)[best]
    lines[:, 1:] = tried[best, np.arange(height)]
    return lines


def tokens_of(line: Bytes) -> list[Token]:
    """Literals and matches of a row."""
    found: list[Token] = []
    values = line.tolist()
    for start in range(0, len(values), PIECE):
        stop, place = min(start + PIECE, len(values)), start
        while place < stop:
            one, three = (_run(values, place, stop, distance) for distance in (1, FARTHEST))
            length = max(one, three)
            if length < SHORTEST:
                found.append((values[place], 0, 0, 0))
                place += 1
                continue
            found.append((*_length_symbol(length), 1 if one >= three else FARTHEST))
            place += length
    return found


def _run(values: list[int], place: int, stop: int, distance: int) -> int:
    """Bytes from `place` that equal those so far before them, in this row."""
    end = place
    while distance <= end < stop and values[end] == values[end - distance]:
        end += 1
    return end - place


def _length_symbol(length: int) -> tuple[int, int, int]:
    """RFC 1951, 3.2.5: symbol of a length below 67, its extra bits and their number."""
    if length < 11:
        return 254 + length, 0, 0
    width = (length - 3).bit_length() - 3
    step = (length - 3) >> width  # 4..7
    return 257 + 4 * width + step, (length - 3) & ((1 << width) - 1), width


def code_lengths(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lengths of a prefix code, 0 for symbols that do not occur: Huffman's, cut off at LONGEST_CODE. At least two symbols occur."""
    order = sorted(int(symbol) for symbol in np.flatnonzero(counts))
    order.sort(key=lambda symbol: int(counts[symbol]))  # rarest first, then by symbol
    weights = [int(counts[symbol]) for symbol in order]
    depths = _depths(weights)
    per = [0] * (LONGEST_CODE + 1)
    for depth in depths:
        per[min(depth, LONGEST_CODE)] += 1
    used = sum(per[length] << (LONGEST_CODE - length) for length in range(1, LONGEST_CODE + 1))
    while used > 1 << LONGEST_CODE:  # one code of the longest becomes the sibling of a shorter one, which grows by a bit
        per[LONGEST_CODE] -= 1
        length = next(length for length in range(LONGEST_CODE - 1, 0, -1) if per[length])
        per[length] -= 1
        per[length + 1] += 2
        used -= 1
    lengths = np.zeros(SYMBOLS, np.int64)
    place = len(order)
    for length in range(1, LONGEST_CODE + 1):  # the commonest get the shortest
        for symbol in order[place - per[length] : place]:
            lengths[symbol] = length
        place -= per[length]
    return lengths


def _depths(weights: list[int]) -> list[int]:
    """Depths of the leaves of Huffman's tree over ascending weights: two queues, the leaf where both are as light."""
    leaves = len(weights)
    heavy, parent = [0] * (leaves - 1), [0] * (2 * leaves - 1)
    leaf = node = 0
    for made in range(leaves - 1):
        for _ in range(2):
            if leaf < leaves and (node >= made or weights[leaf] <= heavy[node]):
                heavy[made] += weights[leaf]
                parent[leaf] = made
                leaf += 1
            else:
                heavy[made] += heavy[node]
                parent[leaves + node] = made
                node += 1
    depth = [0] * (leaves - 1)
    for inner in range(leaves - 3, -1, -1):
        depth[inner] = depth[parent[leaves + inner]] + 1
    return [depth[parent[place]] + 1 for place in range(leaves)]


def canonical(lengths: NDArray[np.int64]) -> list[int]:
    """Codes of RFC 1951, 3.2.2, first bit lowest."""
    found, code = [0] * len(lengths), 0
    for length in range(1, LONGEST_CODE + 1):
        for symbol in np.flatnonzero(lengths == length).tolist():
            found[symbol] = int(f"{code:0{length}b}"[::-1], 2)
            code += 1
        code <<= 1
    return found


def adler32(lines: Bytes) -> int:
    """RFC 1950, of all rows, one after another."""
    data = lines.reshape(-1).astype(np.int64)
    low = (1 + int(data.sum())) % 65521
    high = (len(data) + int((data * np.arange(len(data), 0, -1)).sum())) % 65521
    return high << 16 | low


def _describe(bits: _Bits, lengths: NDArray[np.int64]) -> None:
    """The head of the block: all code lengths as they are, by a code of four bits each."""
    bits.add(1, 1)  # the last block
    bits.add(2, 2)  # with codes of its own
    bits.add(SYMBOLS - 257, 5)
    bits.add(len(_DISTANCES) - 1, 5)
    bits.add(len(_CODE_ORDER) - 4, 4)
    for symbol in _CODE_ORDER:
        bits.add(4 if symbol < 16 else 0, 3)
    for length in (*lengths.tolist(), *_DISTANCES):
        bits.add(int(f"{length:04b}"[::-1], 2), 4)


class _Bits:
    """A stream, lowest bit first."""

    def __init__(self) -> None:
        self._whole, self._value, self._count = bytearray(), 0, 0

    def add(self, value: int, count: int) -> None:
        self._value |= value << self._count
        self._count += count
        while self._count >= 8:
            self._whole.append(self._value & 255)
            self._value >>= 8
            self._count -= 8

    def bytes(self) -> bytes:
        return bytes(self._whole) + (bytes([self._value]) if self._count else b"")
