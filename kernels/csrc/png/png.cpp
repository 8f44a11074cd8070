// A band of a PNG: which instruction set, whether it is deflated, its Huffman code and blocks (RFC 1951). Plain C to whoever loads it.
#include <algorithm>
#include <cstring>
#include <iterator>

#include "png.h"

namespace landmark {
namespace {

constexpr int64_t STORED = 0xffff;  // bytes of a stored block, at most
constexpr int EVERY = 8;            // one group of pieces of so many is counted
constexpr int64_t SAMPLE = 1 << 14;  // bytes of a band that are tried
constexpr int HEAD_BITS = 3 + 5 + 5 + 4 + 3 * 19 + 4 * (SYMBOLS + 1);
constexpr uint64_t LAST_BLOCK = 3;  // with the usual codes and nothing in it: ten bits

bool supported(const PngKernels& kernels) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (&kernels == &png_avx512) {
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
    }
    if (&kernels == &png_avx2) return avx2;
#endif
    return &kernels == &png_portable;
}

const PngKernels* const variants[] = {
#if defined(__x86_64__)
    &png_avx512, &png_avx2,
#endif
    &png_portable};

const PngKernels* chosen = *std::find_if(std::begin(variants), std::end(variants), [](const PngKernels* k) { return supported(*k); });

// Few bits at a time, the first lowest.
struct Stream {
    uint8_t* out;
    uint64_t at;

    Stream(uint8_t* out, const LmPngState& state) : out(out), at(state.held) { std::memcpy(out, &state.hold, 8); }
    void put(uint32_t bits, int count) {
        for (int i = 0; i < count; i++, at++) {
            if (at % 8 == 0) out[at / 8] = 0;
            out[at / 8] |= (uint8_t)((bits >> i & 1) << at % 8);
        }
    }
    void align() { at = (at + 7) / 8 * 8; }
};

uint32_t reversed(uint32_t code, int length) {
    uint32_t found = 0;
    for (int i = 0; i < length; i++) found |= (code >> i & 1) << (length - 1 - i);
    return found;
}

// Lengths of a prefix code, 0 for symbols that do not occur: Huffman's, cut off at LONGEST. At least two symbols occur.
void code_lengths(const uint32_t* counts, uint8_t* lengths) {
    uint64_t keys[SYMBOLS];  // count, symbol
    int leaves = 0;
    for (int i = 0; i < SYMBOLS; i++) {
        if (counts[i] > 0) keys[leaves++] = (uint64_t)counts[i] << 32 | (uint64_t)i;
    }
    std::sort(keys, keys + leaves);
    uint32_t heavy[SYMBOLS];
    int parent[2 * SYMBOLS], leaf = 0, node = 0;
    for (int made = 0; made < leaves - 1; made++) {  // two queues, the leaf where both are as light
        heavy[made] = 0;
        for (int child = 0; child < 2; child++) {
            if (leaf < leaves && (node >= made || (uint32_t)(keys[leaf] >> 32) <= heavy[node])) {
                heavy[made] += (uint32_t)(keys[leaf] >> 32), parent[leaf++] = made;
            } else {
                heavy[made] += heavy[node], parent[leaves + node++] = made;
            }
        }
    }
    heavy[leaves - 2] = 0;  // from here on depths
    for (int i = leaves - 3; i >= 0; i--) heavy[i] = heavy[parent[leaves + i]] + 1;
    int per[LONGEST + 2] = {}, used = 0;
    for (int i = 0; i < leaves; i++) per[std::min<int>((int)heavy[parent[i]] + 1, LONGEST)]++;
    for (int length = 1; length <= LONGEST; length++) used += per[length] << (LONGEST - length);
    for (; used > 1 << LONGEST; used--) {  // one code of the longest becomes the sibling of a shorter one, which grows by a bit
        int length = LONGEST - 1;
        while (per[length] == 0) length--;
        per[LONGEST]--, per[length]--, per[length + 1] += 2;
    }
    std::fill_n(lengths, SYMBOLS, (uint8_t)0);
    for (int length = 1, place = leaves; length <= LONGEST; place -= per[length++]) {
        for (int i = place - per[length]; i < place; i++) lengths[keys[i] & 0xffffffff] = (uint8_t)length;
    }
}

// RFC 1951, 3.2.2.
Code canonical(const uint8_t* lengths) {
    Code code;
    uint32_t next = 0;
    for (int length = 1; length <= LONGEST; length++, next <<= 1) {
        for (int i = 0; i < SYMBOLS; i++) {
            if (lengths[i] == length) code.entry[i] = reversed(next++, length) | (uint32_t)length << 16;
        }
    }
    for (int i = 0; i < SYMBOLS; i++) {
        if (lengths[i] == 0) code.entry[i] = 0;
    }
    for (int i = 0; i < 256; i++) code.length[i] = lengths[i], code.low[i] = (uint8_t)code.entry[i], code.high[i] = (uint8_t)(code.entry[i] >> 8 & 0xff);
    return code;
}

// The head of a block that is not the last: all code lengths as they are, by a code of four bits each; the only distance has a code of one.
void describe(Stream& stream, const uint8_t* lengths) {
    stream.put(2 << 1, 3);
    stream.put(SYMBOLS - 257, 5);
    stream.put(0, 5);
    stream.put(15, 4);
    for (int i = 0; i < 19; i++) stream.put(i < 3 ? 0 : 4, 3);  // all but the three symbols that repeat
    for (int i = 0; i < SYMBOLS; i++) stream.put(reversed(lengths[i], 4), 4);
    stream.put(reversed(1, 4), 4);
}

// What one in `every` groups of pieces says of a code for all lines. Every symbol that `pack` may meet has one.
void lengths_of(const uint8_t* lines, int64_t rows, int64_t length, int every, uint32_t* counts, uint8_t* lengths) {
    std::fill_n(counts, SYMBOLS, 0u);
    std::fill_n(counts, END + 1, 1u);
    for (int pieces = 1; pieces <= MOST_PIECES; pieces++) counts[RUN[pieces]] = 1;
    chosen->count(lines, rows, length, every, counts);
    code_lengths(counts, lengths);
}

// Whether rows from the middle shrink to 0.6.
bool pays(const LmPngBand& band, uint8_t* rows, uint8_t* lines) {
    LmPngBand some = band;
    some.rows = std::min(band.rows, SAMPLE / (band.bytes + 1) + 1);
    const int64_t first = (band.rows - some.rows) / 2;
    some.pixels += first * band.bytes;
    if (first > 0) some.above = some.pixels - band.bytes;
    chosen->filter(some, rows, lines, 1);
    uint32_t counts[SYMBOLS];
    uint8_t lengths[SYMBOLS];
    lengths_of(lines, some.rows, band.bytes + 1, 1, counts, lengths);
    int64_t bits = 0;
    for (int i = 0; i < SYMBOLS; i++) bits += (int64_t)counts[i] * lengths[i];
    return bits * 10 <= some.rows * (band.bytes + 1) * 8 * 6;
}

void store_block(Stream& stream, int64_t size) {
    stream.put(0, 3);
    stream.align();
    stream.put((uint32_t)size, 16);
    stream.put((uint32_t)~size, 16);
}

// Whole rows a block, where one fits.
uint32_t store_rows(Stream& stream, const LmPngBand& band, uint8_t* lines, uint32_t adler) {
    const int64_t length = band.bytes + 1, most = STORED / length;
    for (int64_t y = 0; y < band.rows && most > 0; y += most) {
        const int64_t count = std::min(most, band.rows - y);
        store_block(stream, count * length);
        adler = chosen->copy(band, y, count, stream.out + stream.at / 8, adler);
        stream.at += (uint64_t)(count * length) * 8;
    }
    for (int64_t y = 0; y < band.rows && most == 0; y++) {
        adler = chosen->copy(band, y, 1, lines, adler);
        for (int64_t start = 0; start < length; start += STORED) {
            const int64_t size = std::min(STORED, length - start);
            store_block(stream, size);
            std::memcpy(stream.out + stream.at / 8, lines + start, (size_t)size);
            stream.at += (uint64_t)size * 8;
        }
    }
    return adler;
}

uint32_t deflate_rows(Stream& stream, const LmPngBand& band, uint8_t* rows, uint8_t* lines, uint32_t adler) {
    const int64_t length = band.bytes + 1;
    const Stream before = stream;
    const uint32_t sum = chosen->filter(band, rows, lines, adler);
    uint32_t counts[SYMBOLS];
    uint8_t lengths[SYMBOLS];
    lengths_of(lines, band.rows, length, EVERY, counts, lengths);
    const Code code = canonical(lengths);
    const uint8_t first = stream.out[0];
    describe(stream, lengths);
    stream.at = chosen->pack(lines, band.rows, length, code, stream.out, stream.at);
    stream.put(code.entry[END] & LOW, (int)(code.entry[END] >> 16));
    if (stream.at - before.at <= (uint64_t)(band.rows * length) * 8) return sum;
    stream = before;  // noise
    stream.out[0] = first;
    return store_rows(stream, band, lines, adler);
}

}  // namespace
}  // namespace landmark

#define LANDMARK_EXPORT extern "C" __attribute__((visibility("default")))

// Name of the instruction set in use; `name`, if given and supported here, is used from now on (for tests: not while others run).
LANDMARK_EXPORT const char* lm_png_variant(const char* name) {
    for (const landmark::PngKernels* kernels : landmark::variants) {
        if (name && !std::strcmp(kernels->name, name) && landmark::supported(*kernels)) landmark::chosen = kernels;
    }
    return landmark::chosen->name;
}

LANDMARK_EXPORT int64_t lm_png_scratch(int64_t rows, int64_t bytes) {
    using namespace landmark;
    return 2 * row_room(bytes) + rows * (bytes + 1) + 3 * MARGIN;
}

// Bytes that lm_png_band may write: LONGEST bits a byte, or stored blocks, and the block's head and end.
LANDMARK_EXPORT int64_t lm_png_room(int64_t rows, int64_t bytes) {
    const int64_t size = rows * (bytes + 1);
    return size * landmark::LONGEST / 8 + 5 * (size / landmark::STORED + rows + 1) + landmark::HEAD_BITS / 8 + 3 * landmark::MARGIN;
}

// Writes a band's part of the stream. Returns how many whole bytes that is.
LANDMARK_EXPORT int64_t lm_png_band(const LmPngBand* band, LmPngState* state, uint8_t* out) {
    using namespace landmark;
    uint8_t *rows = band->scratch, *lines = rows + 2 * row_room(band->bytes) + MARGIN;
    Stream stream(out, *state);
    if (band->effort == 2 || (band->effort == 1 && pays(*band, rows, lines))) {
        state->adler = deflate_rows(stream, *band, rows, lines, state->adler);
    } else {
        state->adler = store_rows(stream, *band, lines, state->adler);
    }
    if (band->last) {
        stream.put(LAST_BLOCK, 10);
        stream.align();
    }
    state->held = stream.at % 8;
    state->hold = state->held > 0 ? out[stream.at / 8] & ((1u << state->held) - 1) : 0;
    return (int64_t)(stream.at / 8);
}
