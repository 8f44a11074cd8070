// Weights of samples: what each hides of the samples behind it, in the order of the ray.
#pragma once

namespace LANDMARK_VARIANT {

using landmark::Composite;

static inline F softplus(F x) { return select(x > set(20.0f), x, log_one_plus(exponential(min(set(20.0f), x)))); }

// alpha of sixteen samples, and the share of light that passes them
static inline void absorb(const Composite& c, F feature, F delta, float* alpha, float* passed) {
    const F zero = set(0.0f);
    F sigma = c.nonlinear ? max(zero, feature) : feature;
    sigma = c.softplus ? softplus(sigma + set(c.shift)) : max(zero, sigma);
    const F a = set(1.0f) - exponential((zero - sigma) * (delta * set(c.scale)));
    store(alpha, a), store(passed, (set(1.0f) - a) + set(1e-10f));
}

// A ray ends behind the sample after which less than `stop` passes: its later samples have the weight 0.
static int64_t composite(const Composite& c, float* weights, int64_t* coloured) {
    int64_t chosen = 0;
    int32_t ray = -1;
    double transmittance = 1.0;  // torch's cumprod of float32 runs in float64
    bool ended = false;
    for (int64_t start = 0; start < c.count; start += LANES) {
        const int lanes = c.count - start < LANES ? (int)(c.count - start) : LANES;
        float alpha[LANES], passed[LANES];
        absorb(c, load(c.feature + start, lanes), load(c.delta + start, lanes), alpha, passed);
        for (int i = 0; i < lanes; i++) {
            const int64_t m = start + i;
            if (c.ray[m] != ray) ray = c.ray[m], transmittance = 1.0, ended = false;
            const float weight = ended ? 0.0f : alpha[i] * (float)transmittance;
            weights[m] = weight;
            coloured[chosen] = m;
            chosen += weight > c.threshold;
            transmittance *= passed[i];
            ended |= transmittance < c.stop;
        }
    }
    return chosen;
}

// Density and composite in one: sixteen rays at a time, a sample of each in turn, until a ray ends as in
// `composite`. Every weight has the bits of the two apart. False: see density.
static bool weigh(const Field& f, const Points& p, const float* basis, const Composite& c, float* weights, int64_t* coloured, int64_t* chosen) {
    int32_t sample[LANES] = {}, end[LANES];
    double transmittance[LANES];
    float feature[LANES] = {}, alpha[LANES], passed[LANES];
    Place* places = places_of(f);
    Group g;
    bool present = true;
    int lanes = 0;
    int32_t cursor = 0;
    for (;;) {
        for (; lanes < LANES && cursor < p.count; lanes++) {
            sample[lanes] = cursor, transmittance[lanes] = 1.0;
            for (const int32_t ray = p.ray[cursor]; cursor < p.count && p.ray[cursor] == ray;) cursor++;
            end[lanes] = cursor;
        }
        if (!lanes) break;
        const I where = load(sample);
        present &= locate(f, p.rays, as_int(gather((const float*)p.ray, where)), gather(p.t, where), lanes, g);
        group_density(f, g, places, lanes, basis, feature);
        absorb(c, load(feature), gather(c.delta, where), alpha, passed);
        for (int i = lanes - 1; i >= 0; i--) {
            weights[sample[i]++] = alpha[i] * (float)transmittance[i];
            transmittance[i] *= passed[i];
            if (sample[i] < end[i] && !(transmittance[i] < c.stop)) continue;
            for (int32_t m = sample[i]; m < end[i]; m++) weights[m] = 0.0f;
            lanes--;  // the last one takes the place
            sample[i] = sample[lanes], end[i] = end[lanes], transmittance[i] = transmittance[lanes];
            sample[lanes] = 0;  // idle lanes read the first sample
        }
    }
    int64_t found = 0;
    for (int64_t start = 0; start < p.count; start += LANES) {
        const int n = p.count - start < LANES ? (int)(p.count - start) : LANES;
        for (uint32_t left = bits((load(weights + start, n) > set(c.threshold)) & first(n)); left; left &= left - 1)
            coloured[found++] = start + __builtin_ctz(left);
    }
    *chosen = found;
    return present;
}

}  // namespace LANDMARK_VARIANT
