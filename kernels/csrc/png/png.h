// The image data of a PNG, a band of rows at a time: arguments as plain structs, no torch, no Python. Each instruction set compiles the
// kernels once (variant_*.cpp) into a table of functions; png.cpp picks one table for the process.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {

// Rows of a picture, one after another without gaps.
struct LmPngBand {
    const uint8_t* pixels;  // [rows, bytes]
    const uint8_t* above;   // the row before them; null at the top
    int64_t rows, bytes;
    int32_t pixel;   // bytes of one: 1 to 8
    int32_t swap;    // values of two bytes, the lower first; PNG wants the higher first
    int32_t effort;  // 0: stored; 1: deflated where a few rows say that it pays, else stored; 2: deflated
    int32_t last;    // the stream ends with this band
    uint8_t* scratch;  // lm_png_scratch() bytes
};

// What a band leaves to the next. At the beginning hold 0, held 0, adler 1.
struct LmPngState {
    uint64_t hold;   // bits that fill no byte yet
    uint32_t held;   // how many, below 8
    uint32_t adler;  // RFC 1950: checksum of the filtered rows so far
};
}

namespace landmark {

constexpr int PIECE = 64;                                     // bytes of a row that are looked at together
constexpr int END = 256, SYMBOLS = 285, LONGEST = 14;         // RFC 1951; bits of the longest code: four codes and 7 bits fit into 64
constexpr int MOST_PIECES = 4;                                // of a match
constexpr int RUN[MOST_PIECES + 1] = {0, 276, 280, 282, 284};  // symbols of matches of so many pieces: 64, 128, 192, 256 bytes
constexpr int RUN_EXTRA[MOST_PIECES + 1] = {0, 64 - 59, 128 - 115, 192 - 163, 256 - 227}, RUN_WIDTH[MOST_PIECES + 1] = {0, 3, 4, 5, 5};
constexpr int MARGIN = 64;   // bytes that may be read and written around rows
constexpr int GROUP = 4;     // pieces that are counted together
constexpr uint32_t LOW = 0xffff;

// A Huffman code. entry: a symbol's bits, the first lowest, and their number << 16. The same of literals by bytes.
struct Code {
    uint32_t entry[SYMBOLS];
    alignas(64) uint8_t length[256], low[256], high[256];
};

struct PngKernels {
    const char* name;
    // Rows as PNG wants them, [rows, 1 + bytes], each by the filter that suits it, or as they are. Returns their checksum after `adler`.
    uint32_t (*filter)(const LmPngBand&, uint8_t* rows, uint8_t* lines, uint32_t adler);
    uint32_t (*copy)(const LmPngBand&, int64_t first, int64_t count, uint8_t* lines, uint32_t adler);
    // Adds to counts[SYMBOLS] what `pack` would write of every so many groups of pieces.
    void (*count)(const uint8_t* lines, int64_t rows, int64_t length, int every, uint32_t* counts);
    // Writes lines from bit `at` of `out` on, without the block's head and end. Returns the bit after them; up to 15 bytes more are written.
    uint64_t (*pack)(const uint8_t* lines, int64_t rows, int64_t length, const Code&, uint8_t* out, uint64_t at);
};

extern const PngKernels png_avx512, png_avx2, png_portable;

// Bytes of one of the two rows that `filter` keeps.
inline int64_t row_room(int64_t bytes) { return (bytes + 4 * MARGIN) / MARGIN * MARGIN; }

}  // namespace landmark
