// Where samples lie in the grid: block, texels and weights of each table. Coordinates are formed in LandMark's order of
// operations, every product and sum rounded; only sums over texels and channels use fused multiply-adds.
#pragma once

namespace LANDMARK_VARIANT {

using landmark::Field;
using landmark::Points;
using landmark::Table;

struct Place {  // of sixteen samples in one table
    alignas(64) int32_t texel[LANES], node[LANES];  // of the lower left texel, the lower node; the block's rows not counted
    alignas(64) float x0[LANES], x1[LANES], y0[LANES], y1[LANES], line0[LANES], line1[LANES];
    alignas(64) float corner[4][LANES];  // products of the plane's weights: x0 y0, x1 y0, x0 y1, x1 y1
};

struct Group {  // of sixteen samples
    F coordinate[3];  // in the box or the block, -1 .. 1
    F exists;         // 1, or 0 for a sample in no block
    alignas(64) int32_t block[LANES], row[LANES];
};

// The two texels around a coordinate on an axis of `size`: the lower one's index, at most size - 2, and both weights, 0 where
// the texel is outside.
static inline void neighbours(F coordinate, int64_t size, I& index, F& low_weight, F& high_weight) {
    F pixel = (coordinate + set(1.0f)) * set(0.5f) * set((float)(size - 1));
    F down = floor(pixel);
    I low = truncate(down);
    F above = pixel - down, below = down + set(1.0f) - pixel;
    const I zero = seti(0), last = seti((int32_t)(size - 1));
    const F one = set(1.0f), none = set(0.0f);
    below = below * select((low < zero) | (last < low), none, one);
    above = above * select((low < seti(-1)) | ((last - seti(1)) < low), none, one);
    M before = low == seti(-1), end = (low == last) & !(last == zero);
    low_weight = select(before, size > 1 ? above : below, select(end, above, below));
    high_weight = select(before, size > 1 ? below : above, select(end, below, above));
    index = max(zero, min(low, seti(size > 1 ? (int32_t)size - 2 : 0)));
}

// Blocks of a multi-block scene, whose coordinates are replaced by those in the block. Returns the samples in no block.
static inline uint32_t enter_blocks(const Field& f, const float* size, Group& g) {
    const F rows = set((float)f.division[1]);
    F index = floor((g.coordinate[0] + set(1.0f)) / set(size[0])) * rows + floor((g.coordinate[1] + set(1.0f)) / set(size[1]));
    F column = floor(index / rows);
    F cell[2] = {column, index - column * rows};
    for (int axis = 0; axis < 2; axis++) {
        F low = cell[axis] * set(size[axis]) - set(1.0f);
        F high = (cell[axis] + set(1.0f)) * set(size[axis]) - set(1.0f);
        g.coordinate[axis] = (g.coordinate[axis] - low) * set(2.0f) / (high - low) - set(1.0f);
    }
    const I last = seti(f.division[0] * f.division[1] - 1);
    I block = truncate(index);
    M outside = (block < seti(0)) | (last < block);
    g.exists = select(outside, set(0.0f), set(1.0f));
    store(g.block, max(seti(0), min(block, last)));
    return bits(outside);
}

// Blocks of a cut scene: coordinates stay those of the whole, and every sample has a block.
static inline void find_blocks(const Field& f, const float* size, Group& g) {
    I cell[2];
    for (int axis = 0; axis < 2; axis++) {
        const F inside = max(set(0.0f), floor((g.coordinate[axis] + set(1.0f)) / set(size[axis])));
        cell[axis] = max(seti(0), truncate(min(set((float)(f.division[axis] - 1)), inside)));  // NaN: the first
    }
    store(g.block, cell[0] * seti(f.division[1]) + cell[1]);
}

// Samples t of rays; false if one of the first `lanes` of them lies in a block that is absent.
static inline bool locate(const Field& f, const float* rays, I ray, F t, int lanes, Group& g) {
    const I place = ray * seti(6);
    for (int axis = 0; axis < 3; axis++) {
        F position = t * gather(rays + 3 + axis, place) + gather(rays + axis, place);
        g.coordinate[axis] = (position - set(f.low[axis])) * set(f.inverse[axis]) - set(1.0f);
    }
    g.exists = set(1.0f);
    store(g.row, seti(0));
    if (!f.division[0]) return true;
    uint32_t missing = 0;
    const float size[2] = {(float)(2.0 / f.division[0]), (float)(2.0 / f.division[1])};
    if (f.origins) find_blocks(f, size, g);
    else missing = enter_blocks(f, size, g);
    store(g.row, load(g.block));
    if (!f.slots) return true;
    bool present = true;
    for (int i = 0; i < LANES; i++) {
        int64_t slot = f.slots[g.block[i]];
        if (slot < 0) present &= i >= lanes || (missing >> i & 1), slot = 0;
        g.row[i] = (int32_t)slot;
    }
    return present;
}

static inline I within_tile(I index, const int32_t* origin, I entry, int64_t size) {
    const I first = as_int(gather((const float*)origin, entry));
    return max(seti(0), min(index - first, seti(size > 1 ? (int32_t)size - 2 : 0)));
}

static inline void find_places(const Field& f, const Group& g, Place* places) {
    for (int i = 0; i < f.count; i++) {
        const Table& table = f.tables[i];
        const int across = table.dim == 2 ? 1 : 0, down = table.dim == 0 ? 1 : 2, along = 2 - table.dim;
        I x, y, z;
        F left, right, low, high;
        neighbours(g.coordinate[across], table.whole_width, x, left, right);
        store(places[i].x0, left), store(places[i].x1, right);
        neighbours(g.coordinate[down], table.whole_height, y, low, high);
        store(places[i].y0, low), store(places[i].y1, high);
        store(places[i].corner[0], left * low), store(places[i].corner[1], right * low);
        store(places[i].corner[2], left * high), store(places[i].corner[3], right * high);
        if (f.origins) {
            const I entry = (load(g.block) * seti(f.count) + seti(i)) * seti(2);
            x = within_tile(x, f.origins, entry, table.width), y = within_tile(y, f.origins + 1, entry, table.height);
        }
        neighbours(g.coordinate[along], table.length, z, low, high);
        store(places[i].line0, low * g.exists), store(places[i].line1, high * g.exists);
        store(places[i].texel, y * seti((int32_t)table.width) + x);
        store(places[i].node, z);
    }
}

static size_t field_scratch(const Field& f) { return sizeof(Place) * f.count + 64; }

static inline Place* places_of(const Field& f) { return (Place*)(((uintptr_t)f.scratch + 63) & ~(uintptr_t)63); }

// Texels of one table, of element types T (plane) and L (line): float, or uint16_t for float16.
template <class T, class L>
struct Reader {
    const T* plane;
    const L* line;
    const Place& place;
    const int64_t channels, right, above, next, plane_row, line_row;  // elements to the neighbours and to the next block

    inline Reader(const Table& t, const Place& at)
        : plane((const T*)t.plane), line((const L*)t.line), place(at), channels(t.channels), right(t.width > 1 ? t.channels : 0),
          above(t.height > 1 ? t.width * t.channels : 0), next(t.length > 1 ? t.channels : 0),
          plane_row(t.height * t.width * t.channels), line_row(t.length * t.channels) {}
    inline const T* texel(int64_t row, int i) const { return plane + row * plane_row + place.texel[i] * channels; }
    inline const L* node(int64_t row, int i) const { return line + row * line_row + place.node[i] * channels; }

    // body(c, plane * line of sample i in channels c .. c + n - 1, n) for all channels, n <= 16
    template <class Body>
    inline void products(int64_t row, int i, const Body& body) const {
        const T* p = texel(row, i);
        const L* l = node(row, i);
        const F w00 = set(place.corner[0][i]), w01 = set(place.corner[1][i]), w10 = set(place.corner[2][i]), w11 = set(place.corner[3][i]);
        const F w0 = set(place.line0[i]), w1 = set(place.line1[i]);
        int c = 0;
        for (; c + LANES <= channels; c += LANES, p += LANES, l += LANES) {
            F texels = load(p) * w00;
            texels = fma(load(p + right), w01, texels);
            texels = fma(load(p + above), w10, texels);
            texels = fma(load(p + above + right), w11, texels);
            body(c, texels * fma(load(l + next), w1, load(l) * w0), LANES);
        }
        const int n = (int)channels - c;
        if (!n) return;
        F texels = load(p, n) * w00;
        texels = fma(load(p + right, n), w01, texels);
        texels = fma(load(p + above, n), w10, texels);
        texels = fma(load(p + above + right, n), w11, texels);
        body(c, texels * fma(load(l + next, n), w1, load(l, n) * w0), n);
    }
    // all of eight channels, where texels have a right and nodes a next neighbour: both of a pair are one vector
    inline H product8(int64_t row, int i) const {
        const T* p = texel(row, i);
        const F texels = fma(load(p + above), set(place.y1[i]), load(p) * set(place.y0[i]));
        const H nodes = fold(load(node(row, i)) * set2(place.line0[i], place.line1[i]));
        return fold(texels * set2(place.x0[i], place.x1[i])) * nodes;
    }
    inline bool pairs() const { return channels == 8 && right && next; }
};

template <class Body>
static inline void with_reader(const Table& t, const Place& place, const Body& body) {
    if (t.half_plane) {
        if (t.half_line) body(Reader<uint16_t, uint16_t>(t, place));
        else body(Reader<uint16_t, float>(t, place));
    } else {
        if (t.half_line) body(Reader<float, uint16_t>(t, place));
        else body(Reader<float, float>(t, place));
    }
}

}  // namespace LANDMARK_VARIANT
