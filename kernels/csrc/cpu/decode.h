// The colour decoder on tiles of samples. Activations lie [column, sample], so that a layer's output is the next one's input
// as it is, and encodings are made sixteen samples at a time.
#pragma once

namespace LANDMARK_VARIANT {

using landmark::Decoder;

static inline int rows_of(int n) { return (n + 7) / 8 * 8; }

static size_t decode_scratch(const Decoder& d) {
    return (size_t)TILE * (rows_of(d.columns) + rows_of(d.hidden[0]) + rows_of(d.hidden[1]) + 8) + 16;
}

// Rows `from` .. of x, each times 2^0 .. 2^(octaves - 1): all sines to rows `to` .., then all cosines.
static inline void encode(float* x, int from, int count, int octaves, int to) {
    for (int c = 0; c < count; c++)
        for (int s = 0; s < TILE; s += LANES) {
            F value = load(x + (from + c) * TILE + s);
            for (int f = 0; f < octaves; f++, value = value * set(2.0f)) {
                F sine, cosine;
                sine_cosine(value, sine, cosine);
                store(x + (to + c * octaves + f) * TILE + s, sine);
                store(x + (to + (count + c) * octaves + f) * TILE + s, cosine);
            }
        }
}

static void decode(const Decoder& d, float* rgb) {
    const int view = d.view_pe >= 0 ? 3 : 0;
    float* input = (float*)(((uintptr_t)d.scratch + 63) & ~(uintptr_t)63);
    float* layer[2] = {input + TILE * rows_of(d.columns), nullptr};
    layer[1] = layer[0] + TILE * rows_of(d.hidden[0]);
    float* colour = layer[1] + TILE * rows_of(d.hidden[1]);
    for (int64_t start = 0; start < d.count; start += TILE) {
        const int size = d.count - start < TILE ? (int)(d.count - start) : TILE;
        for (int s = 0; s < TILE; s += LANES) {
            const int lanes = size - s < 0 ? 0 : size - s < LANES ? size - s : LANES;
            for (int c = 0; c < d.inputs; c += LANES) {
                const int n = d.inputs - c < LANES ? d.inputs - c : LANES;
                F block[LANES];  // samples beyond the last are 0
                for (int i = 0; i < LANES; i++) block[i] = i < lanes ? load(d.features + (start + s + i) * d.inputs + c, n) : set(0.0f);
                transpose(block);
                for (int i = 0; i < n; i++) store(input + (c + i) * TILE + s, block[i]);
            }
            const I ray = load(d.ray + start + (lanes ? s : 0), lanes) * seti(6);
            for (int c = 0; c < view; c++) store(input + (d.inputs + c) * TILE + s, gather(d.rays + 3 + c, ray));
        }
        int column = d.inputs + view;
        if (d.fea_pe > 0) encode(input, 0, d.inputs, d.fea_pe, column), column += 2 * d.inputs * d.fea_pe;
        if (d.view_pe > 0) encode(input, d.inputs, view, d.view_pe, column);
        product({d.weights[0], d.columns, input, TILE, layer[0], TILE, d.hidden[0], d.columns, TILE / LANES, d.biases[0], true});
        product({d.weights[1], d.hidden[0], layer[0], TILE, layer[1], TILE, d.hidden[1], d.hidden[0], TILE / LANES, d.biases[1], true});
        product({d.weights[2], d.hidden[1], layer[1], TILE, colour, TILE, 3, d.hidden[1], TILE / LANES, d.biases[2], false});
        for (int c = 0; c < 3; c++)
            for (int s = 0; s < TILE; s += LANES) {
                F x = load(colour + c * TILE + s);
                store(colour + c * TILE + s, set(1.0f) / (set(1.0f) + exponential(set(0.0f) - x)));
            }
        for (int s = 0; s < size; s++)
            for (int c = 0; c < 3; c++) rgb[(start + s) * 3 + c] = colour[c * TILE + s];
    }
}

}  // namespace LANDMARK_VARIANT
