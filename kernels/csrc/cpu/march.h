// The march: which samples of a ray lie in the box and in occupied space. Sixteen groups of eight samples are tested against a
// coarse level at once; then the samples of two groups that may touch something against the mask itself.
#pragma once

namespace LANDMARK_VARIANT {

using landmark::March;
using landmark::Survivors;

constexpr int GROUP = landmark::MARCH_GROUP;
constexpr int PENDING = 24, WORDS = 16;
constexpr int BORDER = 2;  // mask cells begin at -2, see pack_occupancy

static void march_groups(const float* base, const float* slope, int samples, float* groups) {
    const int count = landmark::march_group_count(samples), stride = (count + 15) / 16 * 16;
    for (int g = 0; g < stride; g++) {
        int low = g * GROUP < samples ? g * GROUP : samples - 1;
        int high = low + GROUP - 1 < samples ? low + GROUP - 1 : samples - 1;
        groups[g] = base[low], groups[stride + g] = slope[low];
        groups[2 * stride + g] = base[high], groups[3 * stride + g] = slope[high];
    }
}

struct Level {  // the coarse level a ray is tested against
    const uint8_t* cells;
    int32_t count[3];
    F step[3], start[3];  // cell = t * step + start
};

static inline F group_t(const March& m, int g, int end, F extent) {
    const int stride = (landmark::march_group_count(m.samples) + 15) / 16 * 16;
    const float* p = m.groups + 2 * end * stride + g;
    return load(p) + extent * load(p + stride);
}

static Level choose_level(const March& m, const float* ray, F extent) {
    float direction[3], offset[3], longest = 0.0f;
    for (int a = 0; a < 3; a++) {
        const float voxels = m.mask_inverse[a] * 0.5f * (float)(m.cells[a] - 4);  // a scene unit
        direction[a] = ray[3 + a] * voxels, offset[a] = (ray[a] - m.mask_low[a]) * voxels;
        longest = __builtin_fabsf(direction[a]) > longest ? __builtin_fabsf(direction[a]) : longest;
    }
    F span = set(0.0f);
    for (int g = 0; g < landmark::march_group_count(m.samples); g += LANES) span = max(span, abs(group_t(m, g, 1, extent) - group_t(m, g, 0, extent)));
    // a voxel lights what is less than one voxel away; the rest is room for rounding
    const float reach = longest * (largest(span) * 0.5f) * 1.001f + 1.1f;
    int level = 1;
    while (level < m.level_count && (float)(1 << level) < reach) level++;
    if (!(level < m.level_count && (float)(1 << level) >= reach)) level = 0;  // too coarse a step, or NaN: do not know
    const int64_t* row = m.levels + 4 * level;
    const float shrink = 1.0f / (float)(1 << level);
    Level chosen;
    chosen.cells = m.coarse + row[0];
    for (int a = 0; a < 3; a++) {
        chosen.count[a] = (int32_t)row[3 - a];
        chosen.step[a] = set(direction[a] * shrink);
        chosen.start[a] = set(offset[a] * shrink + (float)BORDER);
    }
    return chosen;
}

// One bit for each of the groups g .. g + 15: it may touch an occupied voxel.
static inline uint32_t near_mask(const March& m, const Level& level, int g, F extent) {
    F middle = (group_t(m, g, 0, extent) + group_t(m, g, 1, extent)) * set(0.5f);
    I cell = seti(0);
    for (int a = 2; a >= 0; a--) {
        I index = truncate(fma(middle, level.step[a], level.start[a]));
        index = max(seti(0), min(index, seti(level.count[a] - 1)));
        cell = cell * seti(level.count[a]) + index;
    }
    const uintptr_t shift = (uintptr_t)level.cells & 3;
    return bits(seti(0) < gather_bytes(level.cells - shift, cell + seti((int32_t)shift)));
}

static inline I mask_codes(const March& m, const F* pixel) {
    I index[3];
    for (int a = 0; a < 3; a++) index[a] = max(seti(0), min(truncate(floor(pixel[a])) + seti(BORDER), seti((int32_t)m.cells[a] - 1)));
    if (__builtin_expect(m.cells[0] * m.cells[1] * m.cells[2] < INT32_MAX, 1))
        return gather_bytes(m.codes, (index[2] * seti((int32_t)m.cells[1]) + index[1]) * seti((int32_t)m.cells[0]) + index[0]);
    int32_t x[LANES], y[LANES], z[LANES], code[LANES];
    store(x, index[0]), store(y, index[1]), store(z, index[2]);
    for (int i = 0; i < LANES; i++) code[i] = m.codes[(z[i] * m.cells[1] + y[i]) * m.cells[0] + x[i]];
    return load(code);
}

static inline M mask_exceeds(const March& m, const F* pixel, I code) {
    F weight[3][2], total = set(0.0f);
    for (int a = 0; a < 3; a++) {
        F down = floor(pixel[a]);
        weight[a][0] = down + set(1.0f) - pixel[a], weight[a][1] = pixel[a] - down;
    }
    for (int corner = 0; corner < 8; corner++) {
        F both = weight[0][corner & 1] * weight[1][corner >> 1 & 1] * weight[2][corner >> 2];
        total = total + both * to_float(shift_right(code, corner) & seti(1));
    }
    return total > set(m.threshold);
}

// Samples k .. k + 7 and l .. l + 7 of a ray, on their way: what is known once the mask's codes have been asked for.
struct Candidate {
    F t, pixel[3];
    I code;
    M inside;
    int32_t k, l, ray;
};

static inline int most_of_group(const March& m, int k) { return m.samples - k < GROUP ? m.samples - k : GROUP; }

static inline void examine(const March& m, const F* origin, const F* direction, F extent, Candidate& c) {
    c.t = load2(m.slope + c.k, m.slope + c.l) * extent + load2(m.base + c.k, m.base + c.l);
    M outside = !first(most_of_group(m, c.k), most_of_group(m, c.l));
    for (int a = 0; a < 3; a++) {
        F position = c.t * direction[a] + origin[a];
        outside = outside | (position < set(m.box[a])) | (position > set(m.box[3 + a]));
        if (m.codes)
            c.pixel[a] = ((position - set(m.mask_low[a])) * set(m.mask_inverse[a]) - set(1.0f) + set(1.0f)) * set(0.5f) *
                         set((float)(m.cells[a] - 4));
    }
    c.inside = !outside;
    if (m.codes) c.code = mask_codes(m, c.pixel);
}

static inline void finish(const March& m, const Candidate& c, Survivors& out) {
    M kept = c.inside;
    if (m.codes) {
        M occupied = kept & !(c.code == seti(0));
        kept = occupied & (c.code == seti(m.full_passes ? 255 : 256));
        if (bits(occupied) != bits(kept)) kept = kept | (occupied & mask_exceeds(m, c.pixel, c.code));
    }
    if (!bits(kept)) return;
    const F extent = set(m.extent[c.ray]);
    const F after = load2(m.slope + c.k + 1, m.slope + c.l + 1) * extent + load2(m.base + c.k + 1, m.base + c.l + 1);
    compress(out.t + out.count, kept, c.t);
    compress(out.delta + out.count, kept, after - c.t);
    store(out.ray + out.count, seti(c.ray));
    out.count += __builtin_popcount(bits(kept));
}

// Candidates are finished some time after they were examined, so that the mask's memory answers many at once.
struct Pending {
    Candidate list[PENDING];
    int count = 0;

    inline void finish_all(const March& m, Survivors& out) {
        for (int i = 0; i < count; i++) finish(m, list[i], out);
        count = 0;
    }
};

// Adds the samples of one ray's groups g .. g + 15 that `near` has a bit for.
static inline void examine_groups(const March& m, int32_t r, int g, uint32_t near, Pending& pending, Survivors& out) {
    const float* ray = m.rays + 6 * (int64_t)r;
    const F extent = set(m.extent[r]);
    F origin[3], direction[3];
    for (int a = 0; a < 3; a++) origin[a] = set(ray[a]), direction[a] = set(ray[3 + a]);
    while (near) {
        if (pending.count == PENDING) pending.finish_all(m, out);
        Candidate& c = pending.list[pending.count++];
        c.ray = r;
        c.k = (g + __builtin_ctz(near)) * GROUP;
        near &= near - 1;
        c.l = near ? (g + __builtin_ctz(near)) * GROUP : m.samples;
        near &= near - 1;
        examine(m, origin, direction, extent, c);
    }
}

// Rays begin .. end - 1, until one may not fit: returns its index, or end.
static int64_t march(const March& m, int64_t begin, int64_t end, Survivors& out) {
    const int groups = landmark::march_group_count(m.samples), words = (groups + 15) / 16;
    const int together = words <= WORDS ? WORDS / words : 1;  // rays whose coarse cells are asked for at once
    uint32_t near[WORDS];
    Pending pending;
    for (int64_t r0 = begin; r0 < end;) {
        int rays = end - r0 < together ? (int)(end - r0) : together;
        while (rays && out.capacity - out.count - (int64_t)pending.count * LANES < (int64_t)rays * m.samples + LANES) {
            if (pending.count) pending.finish_all(m, out);
            else rays--;
        }
        if (!rays) return r0;
        for (int w0 = 0; w0 < words; w0 += WORDS) {
            const int n = words - w0 < WORDS ? words - w0 : WORDS;
            for (int i = 0; i < rays; i++) {
                const F extent = set(m.extent[r0 + i]);
                Level level;
                if (m.codes) level = choose_level(m, m.rays + 6 * (r0 + i), extent);
                for (int w = 0; w < n; w++) {
                    const int g = (w0 + w) * LANES, left = groups - g < LANES ? groups - g : LANES;
                    near[i * n + w] = (m.codes ? near_mask(m, level, g, extent) : 0xffffu) & ((1u << left) - 1);
                }
            }
            for (int i = 0; i < rays; i++)
                for (int w = 0; w < n; w++)
                    if (near[i * n + w]) examine_groups(m, (int32_t)(r0 + i), (w0 + w) * LANES, near[i * n + w], pending, out);
        }
        r0 += rays;
    }
    pending.finish_all(m, out);
    return end;
}

}  // namespace LANDMARK_VARIANT
