// The march: which samples of a ray lie in the box and in occupied space. Sixteen neighbouring rays go together: where they run is
// bounded for eight samples at a time, then for two samples of four rays, and looked up in a coarse level of the mask that suits
// the size. What is left is tested against the mask itself, one sample of all sixteen rays at a time.
#pragma once

namespace LANDMARK_VARIANT {

using landmark::March;
using landmark::Survivors;

constexpr int GROUP = landmark::MARCH_GROUP, PAIR = 2;
constexpr int BATCH = 12;   // samples examined before the first of them is finished: the mask's memory answers many at once
constexpr int BORDER = 2;   // mask cells begin at -2, see pack_occupancy
constexpr int LEVELS = 16;
constexpr float BOUNDED = 1e15f;  // larger values are not bounded: their products could be infinite
constexpr float ROUNDING = 1e-6f;

// Tables of t = base + extent * slope over steps of some samples each: middles, largest distances from them, largest values.
struct Steps {
    const float *base, *slope, *base_half, *slope_half, *base_most, *slope_most;
};

static Steps steps_of(const float* tables, int stride) {
    return {tables, tables + stride, tables + 2 * stride, tables + 3 * stride, tables + 4 * stride, tables + 5 * stride};
}

static void fill_steps(const float* base, const float* slope, int samples, int size, int stride, float* tables) {
    for (int s = 0; s < stride; s++)
        for (int table = 0; table < 2; table++) {
            const float* value = table ? slope : base;
            const int begin = s * size < samples ? s * size : samples - 1;
            const int end = begin + size < samples ? begin + size : samples;
            float low = value[begin], high = value[begin];
            for (int k = begin + 1; k < end; k++) low = value[k] < low ? value[k] : low, high = value[k] > high ? value[k] : high;
            tables[table * stride + s] = (low + high) * 0.5f;
            tables[(2 + table) * stride + s] = (high - low) * 0.5f;
            tables[(4 + table) * stride + s] = __builtin_fabsf(low) > __builtin_fabsf(high) ? __builtin_fabsf(low) : __builtin_fabsf(high);
        }
}

static void march_groups(const float* base, const float* slope, int samples, float* groups) {
    const int stride = landmark::march_group_stride(samples);
    fill_steps(base, slope, samples, GROUP, stride, groups);
    fill_steps(base, slope, samples, PAIR, stride * (GROUP / PAIR), groups + 6 * stride);
}

struct Level {  // of the coarse mask
    const uint8_t* cells;
    int32_t shift, count[3];
    float reach, shrink;  // voxels around a point that its cell speaks for; cells a voxel
};

struct Levels {
    Level list[LEVELS];
    int count = 0;
};

static Levels read_levels(const March& m) {
    Levels levels;
    for (; m.codes && levels.count < m.level_count && levels.count < LEVELS; levels.count++) {
        const int64_t* row = m.levels + 4 * levels.count;
        Level& level = levels.list[levels.count];
        level.shift = (int32_t)((uintptr_t)(m.coarse + row[0]) & 3);
        level.cells = m.coarse + row[0] - level.shift;
        for (int a = 0; a < 3; a++) level.count[a] = (int32_t)row[3 - a];
        level.reach = (float)(1 << levels.count), level.shrink = 1.0f / level.reach;
    }
    return levels;
}

// The finest level that speaks for `reach` voxels around a point; 0 (do not know) if there is none.
static inline int level_for(const Levels& levels, F reach) {
    for (int level = 1; level < levels.count; level++)
        if (!bits(reach > set(levels.list[level].reach))) return level;
    return 0;
}

struct Rays {  // sixteen, one a lane
    F origin[3], direction[3], extent;
};

// Bounds of some rays' origin, direction and direction * extent, by axis, in voxels.
struct Bundle {
    F middle[3][3], half[3][3];
};

// Bounds of each four rays and of all sixteen. False if there are none: a value is too large, or not a number.
static inline bool bound_rays(const March& m, const Rays& rays, Bundle& fours, Bundle& all) {
    M bounded = first(LANES);
    for (int a = 0; a < 3; a++) {
        const F voxels = set(m.mask_inverse[a] * 0.5f * (float)(m.cells[a] - 4));
        F part[3] = {(rays.origin[a] - set(m.mask_low[a])) * voxels, rays.direction[a] * voxels, set(0.0f)};
        part[2] = part[1] * rays.extent;
        for (int i = 0; i < 3; i++) {
            bounded = bounded & (abs(part[i]) < set(BOUNDED));
            const F low = least4(part[i]), high = most4(part[i]), lowest = least_quarter(low), highest = most_quarter(high);
            fours.middle[i][a] = (low + high) * set(0.5f), fours.half[i][a] = (high - low) * set(0.5f);
            all.middle[i][a] = (lowest + highest) * set(0.5f), all.half[i][a] = (highest - lowest) * set(0.5f);
        }
        const F size = fma(abs(all.middle[2][a]) + all.half[2][a], set(m.slope_most),
                           fma(abs(all.middle[1][a]) + all.half[1][a], set(m.base_most), abs(all.middle[0][a]) + all.half[0][a]));
        all.half[0][a] = fma(size, set(ROUNDING), all.half[0][a]), fours.half[0][a] = fma(size, set(ROUNDING), fours.half[0][a]);
    }
    return bits(bounded) == 0xffff && m.base_most < BOUNDED && m.slope_most < BOUNDED;
}

// Where a bundle is in the steps that lanes stand for: a point, and how far from it on any axis.
static inline F bound_steps(const Bundle& bundle, F base, F slope, F base_half, F slope_half, F base_most, F slope_most, F* point) {
    F reach = set(0.0f);
    for (int a = 0; a < 3; a++) {
        point[a] = fma(slope, bundle.middle[2][a], fma(base, bundle.middle[1][a], bundle.middle[0][a]));
        const F along = fma(slope_half, abs(bundle.middle[2][a]), base_half * abs(bundle.middle[1][a]));
        reach = max(reach, fma(slope_most, bundle.half[2][a], fma(base_most, bundle.half[1][a], bundle.half[0][a])) + along);
    }
    return fma(reach, set(1.001f), set(1.1f));  // a voxel lights what is less than one voxel away; the rest is room for rounding
}

// One bit a lane: something may be occupied around the point.
static inline uint32_t near_points(const Level& level, const F* point) {
    I cell = seti(0);
    for (int a = 2; a >= 0; a--) {
        I index = truncate(fma(point[a], set(level.shrink), set((float)BORDER)));
        cell = cell * seti(level.count[a]) + max(seti(0), min(index, seti(level.count[a] - 1)));
    }
    return bits(seti(0) < gather_bytes(level.cells, cell + seti(level.shift)));
}

// The samples of sixteen rays that may touch an occupied voxel, ascending, to `list`; returns how many.
static int near_samples(const March& m, const Levels& levels, const Rays& rays, int32_t* list) {
    const int groups = landmark::march_group_count(m.samples), stride = landmark::march_group_stride(m.samples);
    const Steps wide = steps_of(m.groups, stride), narrow = steps_of(m.groups + 6 * stride, stride * (GROUP / PAIR));
    int count = 0;
    Bundle fours, all;
    const bool bounded = m.codes && bound_rays(m, rays, fours, all);
    for (int g = 0; g < groups; g += LANES) {
        uint32_t near = groups - g < LANES ? (1u << (groups - g)) - 1 : 0xffff;
        int level = 0;
        if (bounded) {
            F point[3];
            level = level_for(levels, bound_steps(all, load(wide.base + g), load(wide.slope + g), load(wide.base_half + g), load(wide.slope_half + g),
                                                  load(wide.base_most + g), load(wide.slope_most + g), point));
            near &= near_points(levels.list[level], point);
        }
        for (; near; near &= near - 1) {
            const int group = g + __builtin_ctz(near), pair = group * (GROUP / PAIR);
            uint32_t pairs = 15;
            if (bounded && level != 1) {  // lanes: four times four rays, four pairs of samples each
                F point[3];
                const F reach = bound_steps(fours, load4(narrow.base + pair), load4(narrow.slope + pair), load4(narrow.base_half + pair),
                                            load4(narrow.slope_half + pair), load4(narrow.base_most + pair), load4(narrow.slope_most + pair), point);
                const int finer = level_for(levels, reach);
                if (finer && (finer < level || !level)) {
                    const uint32_t lanes = near_points(levels.list[finer], point), halves = lanes | lanes >> 8;
                    pairs = (halves | halves >> 4) & 15;
                }
            }
            for (; pairs; pairs &= pairs - 1) {
                const int k = group * GROUP + PAIR * __builtin_ctz(pairs);
                list[count] = k, list[count + 1] = k + 1;
                count += k + 1 < m.samples ? PAIR : k < m.samples;
            }
        }
    }
    return count;
}

static inline I mask_codes(const March& m, const F* down) {
    I index[3];
    for (int a = 0; a < 3; a++) index[a] = max(seti(0), min(truncate(down[a]) + seti(BORDER), seti((int32_t)m.cells[a] - 1)));
    if (__builtin_expect(m.cells[0] * m.cells[1] * m.cells[2] < INT32_MAX, 1))
        return gather_bytes(m.codes, (index[2] * seti((int32_t)m.cells[1]) + index[1]) * seti((int32_t)m.cells[0]) + index[0]);
    int32_t x[LANES], y[LANES], z[LANES], code[LANES];
    store(x, index[0]), store(y, index[1]), store(z, index[2]);
    for (int i = 0; i < LANES; i++) code[i] = m.codes[(z[i] * m.cells[1] + y[i]) * m.cells[0] + x[i]];
    return load(code);
}

// A sample of each of sixteen rays, on its way: what is known once the mask's codes have been asked for.
struct Candidate {
    F pixel[3], down[3];
    I code;
    M inside;
};

static inline void examine(const March& m, const Rays& rays, int k, Candidate& c) {
    const F t = set(m.slope[k]) * rays.extent + set(m.base[k]);
    M outside = !first(LANES);
    for (int a = 0; a < 3; a++) {
        const F position = t * rays.direction[a] + rays.origin[a];
        outside = outside | (position < set(m.box[a])) | (position > set(m.box[3 + a]));
        if (!m.codes) continue;
        c.pixel[a] = ((position - set(m.mask_low[a])) * set(m.mask_inverse[a]) - set(1.0f) + set(1.0f)) * set(0.5f) * set((float)(m.cells[a] - 4));
        c.down[a] = floor(c.pixel[a]);
    }
    c.inside = !outside;
    if (m.codes) c.code = mask_codes(m, c.down);
}

static inline M mask_exceeds(const March& m, const Candidate& c) {
    F weight[3][2], total = set(0.0f);
    for (int a = 0; a < 3; a++) weight[a][0] = c.down[a] + set(1.0f) - c.pixel[a], weight[a][1] = c.pixel[a] - c.down[a];
    for (int corner = 0; corner < 8; corner++)
        total = add_where(has_bit(c.code, corner), total, weight[0][corner & 1] * weight[1][corner >> 1 & 1] * weight[2][corner >> 2]);
    return total > set(m.threshold);
}

// One bit a ray: its sample survives.
static inline uint32_t finish(const March& m, const Candidate& c) {
    if (!m.codes) return bits(c.inside);
    const uint32_t occupied = bits(c.inside & !(c.code == seti(0)));
    const uint32_t full = m.full_passes ? occupied & bits(c.code == seti(255)) : 0;
    return occupied == full ? full : full | (occupied & bits(mask_exceeds(m, c)));
}

// Adds the survivors of rays r .. r + count - 1, ray by ray, and clears `kept`, [samples] bits of rays.
static void emit(const March& m, int64_t r, int count, int32_t* kept, int32_t* blocks, uint16_t* rows, Survivors& out) {
    int used = 0;
    for (int k = 0; k < m.samples; k += LANES) {
        const I lanes = load(kept + k);
        if (!bits(!(lanes == seti(0)))) continue;
        for (int i = 0; i < LANES; i++) rows[LANES * used + i] = (uint16_t)bits(has_bit(lanes, i));
        store(kept + k, seti(0));
        blocks[used++] = k;
    }
    for (int i = 0; i < count; i++) {
        const F extent = set(m.extent[r + i]);
        for (int b = 0; b < used; b++) {
            const uint32_t row = rows[LANES * b + i];
            if (!row) continue;
            const int k = blocks[b];
            const M chosen = from_bits(row);
            const F t = load(m.slope + k) * extent + load(m.base + k), after = load(m.slope + k + 1) * extent + load(m.base + k + 1);
            compress(out.t + out.count, chosen, t);
            compress(out.delta + out.count, chosen, after - t);
            store(out.ray + out.count, seti((int32_t)(r + i)));
            out.count += __builtin_popcount(row);
        }
    }
}

// Rays begin .. end - 1, until some may not fit: returns the first of them, or end.
static int64_t march(const March& m, int64_t begin, int64_t end, Survivors& out) {
    const Levels levels = read_levels(m);
    const int padded = landmark::march_padded(m.samples);
    int32_t *kept = m.scratch, *list = kept + padded, *blocks = list + padded;
    uint16_t* rows = (uint16_t*)(blocks + padded / LANES);
    for (int k = 0; k < padded; k++) kept[k] = 0;
    Candidate batch[BATCH];
    for (int64_t r = begin; r < end; r += LANES) {
        const int count = end - r < LANES ? (int)(end - r) : LANES;
        if (out.capacity - out.count < (int64_t)count * m.samples + LANES) return r;
        float columns[7][LANES];
        for (int i = 0; i < LANES; i++) {  // lanes beyond the last ray repeat it
            const int64_t ray = r + (i < count ? i : count - 1);
            for (int a = 0; a < 6; a++) columns[a][i] = m.rays[6 * ray + a];
            columns[6][i] = m.extent[ray];
        }
        Rays rays;
        for (int a = 0; a < 3; a++) rays.origin[a] = load(columns[a]), rays.direction[a] = load(columns[3 + a]);
        rays.extent = load(columns[6]);
        const int near = near_samples(m, levels, rays, list);
        const uint32_t real = count < LANES ? (1u << count) - 1 : 0xffff;
        for (int n = 0; n < near; n += BATCH) {
            const int together = near - n < BATCH ? near - n : BATCH;
            for (int i = 0; i < together; i++) examine(m, rays, list[n + i], batch[i]);
            for (int i = 0; i < together; i++) kept[list[n + i]] = (int32_t)(finish(m, batch[i]) & real);
        }
        if (near) emit(m, r, count, kept, blocks, rows, out);
    }
    return end;
}

}  // namespace LANDMARK_VARIANT
