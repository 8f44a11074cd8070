// Density and appearance features of samples, sixteen at a time for their places, one at a time over channels.
#pragma once

namespace LANDMARK_VARIANT {

constexpr int TILE = 48;  // samples of one matrix product

// sums of sixteen samples += products in one table, times the weights of its channels if given
template <class R>
static inline void add_density(const R& reader, const Group& g, int lanes, const float* basis, F* sums, H* sums8) {
    if (reader.pairs()) {
        const H weight = basis ? load8(basis) : one8();
        for (int i = 0; i < lanes; i++) sums8[i] = fma(reader.product8(g.row[i], i), weight, sums8[i]);
        return;
    }
    for (int i = 0; i < lanes; i++)
        reader.products(g.row[i], i, [&](int c, F product, int n) {
            if (basis) product = product * (n == LANES ? load(basis + c) : load(basis + c, n));
            sums[i] = sums[i] + product;
        });
}

// Density features of the first `lanes` samples of a group.
static inline void group_density(const Field& f, const Group& g, Place* places, int lanes, const float* basis, float* feature) {
    F sums[LANES];
    H sums8[LANES];
    find_places(f, g, places);
    for (int i = 0; i < LANES; i++) sums[i] = set(0.0f), sums8[i] = zero8();
    for (int k = 0; k < f.count; k++) {
        with_reader(f.tables[k], places[k], [&](const auto& reader) { add_density(reader, g, lanes, basis, sums, sums8); });
        if (basis) basis += f.tables[k].channels;
    }
    for (int i = 0; i < lanes; i++) feature[i] = sum(sums[i]) + sum(sums8[i]);
}

static bool density(const Field& f, const Points& p, const float* basis, float* feature) {
    Place* places = places_of(f);
    Group g;
    bool present = true;
    for (int64_t start = 0; start < p.count; start += LANES) {
        const int lanes = p.count - start < LANES ? (int)(p.count - start) : LANES;
        present &= locate(f, p.rays, load(p.ray + start, lanes), load(p.t + start, lanes), lanes, g);
        group_density(f, g, places, lanes, basis, feature + start);
    }
    return present;
}

template <class R>
static inline void store_products(const R& reader, const Group& g, int lanes, float* out, int64_t columns) {
    for (int i = 0; i < lanes; i++) {
        float* row = out + i * columns;
        reader.products(g.row[i], i, [&](int c, F product, int n) { n == LANES ? store(row + c, product) : store(row + c, product, n); });
    }
}

// basis [outputs, columns] -> features [count, outputs]; scratch: appearance_floats()
static bool appearance(const Field& f, const Points& p, const float* basis, int outputs, float* scratch, float* features) {
    int64_t columns = 0;
    for (int k = 0; k < f.count; k++) columns += f.tables[k].channels;
    const int padded = (outputs + LANES - 1) / LANES * LANES;
    float* products = scratch;
    float* transposed = products + TILE * columns;
    float* sums = transposed + padded * columns;
    for (int64_t k = 0; k < columns; k++)
        for (int o = 0; o < padded; o++) transposed[k * padded + o] = o < outputs ? basis[o * columns + k] : 0.0f;

    Place* places = places_of(f);
    Group g;
    bool present = true;
    for (int64_t start = 0; start < p.count; start += TILE) {
        const int size = p.count - start < TILE ? (int)(p.count - start) : TILE;
        for (int part = 0; part < size; part += LANES) {
            const int lanes = size - part < LANES ? size - part : LANES;
            const int64_t m = start + part;
            present &= locate(f, p.rays, load(p.ray + m, lanes), load(p.t + m, lanes), lanes, g);
            find_places(f, g, places);
            float* out = products + part * columns;
            for (int k = 0; k < f.count; out += f.tables[k].channels, k++)
                with_reader(f.tables[k], places[k], [&](const auto& reader) { store_products(reader, g, lanes, out, columns); });
        }
        product({products, columns, transposed, padded, sums, padded, size, (int)columns, padded / LANES, nullptr, false});
        for (int i = 0; i < size; i++)
            for (int o = 0; o < outputs; o += LANES)
                store(features + (start + i) * outputs + o, load(sums + i * padded + o), outputs - o < LANES ? outputs - o : LANES);
    }
    return present;
}

}  // namespace LANDMARK_VARIANT
