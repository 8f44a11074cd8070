// Weights of samples: what each hides of the samples behind it, in the order of the ray.
#pragma once

namespace LANDMARK_VARIANT {

using landmark::Composite;

static inline F softplus(F x) { return select(x > set(20.0f), x, log_one_plus(exponential(min(set(20.0f), x)))); }

static int64_t composite(const Composite& c, float* weights, int64_t* coloured) {
    int64_t chosen = 0;
    int32_t ray = -1;
    double transmittance = 1.0;  // torch's cumprod of float32 runs in float64
    for (int64_t start = 0; start < c.count; start += LANES) {
        const int lanes = c.count - start < LANES ? (int)(c.count - start) : LANES;
        F sigma = load(c.feature + start, lanes);
        const F zero = set(0.0f);
        if (c.nonlinear) sigma = max(zero, sigma);
        sigma = c.softplus ? softplus(sigma + set(c.shift)) : max(zero, sigma);
        F alpha = set(1.0f) - exponential((zero - sigma) * (load(c.delta + start, lanes) * set(c.scale)));
        F passed = (set(1.0f) - alpha) + set(1e-10f);
        float alphas[LANES], passes[LANES];
        store(alphas, alpha), store(passes, passed);
        for (int i = 0; i < lanes; i++) {
            const int64_t m = start + i;
            if (c.ray[m] != ray) ray = c.ray[m], transmittance = 1.0;
            const float weight = alphas[i] * (float)transmittance;
            weights[m] = weight;
            coloured[chosen] = m;
            chosen += weight > c.threshold;
            transmittance *= passes[i];
        }
    }
    return chosen;
}

}  // namespace LANDMARK_VARIANT
