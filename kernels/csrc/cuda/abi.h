// Arguments of the CUDA launchers: plain structs, no torch headers, so that nvcc alone compiles every .cu.
// All pointers are device pointers. Launchers run on the given stream and return cudaGetLastError().
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#define LM_MAX_TABLES 12

// One dimension and resolution: plane [slots, h, w, C], line [slots, n, C], C = 8 * octets, channels last.
// dim 0: plane over (x, y), line along z; dim 1: (x, z), y; dim 2: (y, z), x.
// In a cut scene h, w are those of one block's tile of a plane of whole_h, whole_w; else they are equal.
struct LmTable {
    const void* plane;
    const void* line;
    int h, w, n, dim, whole_h, whole_w;
};

struct LmField {
    LmTable table[LM_MAX_TABLES];
    int tables, octets, half_precision;
    float low[3], inverse[3];  // box: corner, 2 / size
    int division[2];           // blocks along x, y; 0, 0 for a single-block scene
    const int64_t* slots;      // [blocks] row of the tables that holds a block, -1 absent; null: block b in row b
    const int2* origins;       // [blocks, tables] column, row of the whole plane at which a block's tile begins; null: not a cut scene
};

// Samples t = base[k] + extent[ray] * slope[k] of rays [count, 6], those inside crop and occupied.
struct LmMarch {
    const float* rays;
    const float* extent;
    const float* base;
    const float* slope;
    int count, samples;
    float crop[6];
    const uint32_t* bits;  // [z, y, words] one bit a voxel, x fastest; null: no mask
    int size[3], words;    // voxels along x, y, z
    float mask_low[3], mask_inverse[3], threshold;
    const uint32_t* coarse;  // one bit a cell of 8 voxels an axis: set if anything lies within one voxel of it
    int cells[3];
};

struct LmTrace {
    LmMarch march;
    LmField field;
    const float* basis;  // [tables * C] weights of the density products; null: 1
    int relu, nonlinear;
    float shift, scale, threshold, stop;
    int capacity;             // staged samples a ray
    int64_t list_capacity;    // coloured samples of the batch
    float2* stage;            // [capacity, count]
    int *found, *offset, *sums;  // [count], [count], [count / 1024 + 1]
    int4* list;               // [list_capacity] ray, t, weight (bits), the sample whose turn it is at this place
    float *alpha, *depth;     // [count]
    int* status;              // 0: coloured samples, 1: most of a ray, 2: samples in absent blocks, 3: survived samples
};

// march_density: the surviving samples of all rays, in their order, with this rank's share of the density.
struct LmSamples {
    LmMarch march;
    LmField field;
    const float* basis;
    int64_t capacity;
    int* ray;  // [capacity], as t, delta, partial
    float *t, *delta, *partial;
    int *found, *offset, *sums;  // [count], [count], [count / 1024 + 1]
    int* status;                 // 0: samples, 1: more than capacity, 2: samples in absent blocks, 3: samples
};

// weigh_list: composite of the lists of march_density, with the densities of all ranks.
struct LmWeigh {
    const float *density, *t, *delta;  // [samples]
    const int *found, *offset;         // [count]
    int count;
    int64_t samples;
    int relu, nonlinear;
    float shift, scale, threshold, stop;
    int64_t list_capacity;
    float2* stage;                 // [samples]
    int *coloured, *place, *sums;  // [count], [count], [count / 1024 + 1]
    int4* list;                    // as of trace
    float *alpha, *depth;          // [count]
    int* status;                   // 0: coloured samples, 1: more than list_capacity, 3: samples before the rays ended
};

// The staged samples of `count` rays into a list. stage: sample i of ray r at [i * count + r], or at [entry[r] + i].
struct LmCompact {
    const float2* stage;
    const int* entry;
    const float* delta;  // with entry: distances of the staged samples
    const float *extent, *base, *slope;  // without: as of LmMarch
    int samples, count;
    const int* found;
    int *offset, *sums;
    int4* list;
    int64_t list_capacity;
};

struct LmShade {
    LmField field;
    const float* rays;
    const int4* list;
    const int* status;
    int64_t list_capacity;
    const float* features;  // [list_capacity, 27], if the field has no tables
    const void* matrices;   // packed fp16, see shade.cu
    const float* biases;    // [264]
    float4* colour;         // [list_capacity] weight * rgb
    int pass;               // leave the colours of samples in absent blocks as they are
};

struct LmFeatures {
    LmField field;
    const float* rays;
    const int4* list;
    const int* status;  // 0: samples in the list; null: count
    int count, outputs;
    const float* basis;  // [outputs, tables * C]
    float* features;     // [count, outputs]
};

// png_stream: the image data of a PNG of rows of `bytes`, pixels of three. counts and out hold zeros; its fourth word stays so.
struct LmPng {
    const unsigned char* pixels;
    int rows, bytes;
    unsigned* lines;             // [rows, LM_PNG_LINE(bytes)]
    void* pieces;                // [rows, LM_PNG_PIECES(bytes)] of 16 bytes
    void* sums;                  // [rows] of 16 bytes
    int* counts;                 // [LM_PNG_SYMBOLS]
    unsigned short* row_counts;  // [rows, LM_PNG_SYMBOLS]
    unsigned* table;             // [LM_PNG_SYMBOLS]
    int* row_bits;               // [rows]
    unsigned* out;               // [words]
    int64_t words;
};
#define LM_PNG_SYMBOLS 277
#define LM_PNG_PIECES(bytes) ((bytes) / 64 + 1)
#define LM_PNG_LINE(bytes) (((bytes) + 3) / 4 + 1)  // words

enum { LM_UINT8, LM_UINT16, LM_FLOAT16, LM_FLOAT32 };  // what lm_quantise makes

// Launch shapes: 0 is the default; others are named where they are compiled. Bits do not depend on them.
#ifdef __cplusplus
extern "C" {
#endif
int lm_trace(const LmTrace* arguments, int shape, cudaStream_t stream);
int lm_march_density(const LmSamples* arguments, cudaStream_t stream);
int lm_weigh_list(const LmWeigh* arguments, cudaStream_t stream);
int lm_shade(const LmShade* arguments, int shape, int multiprocessors, cudaStream_t stream);
int lm_shade_matrices(int tables);  // halves of the packed matrices for this many tables of 48 channels
int lm_shade_bytes(int tables);     // shared memory a block of lm_shade needs
int lm_features(const LmFeatures* arguments, int multiprocessors, int shared_bytes, cudaStream_t stream);  // shared_bytes: that a block may have
int lm_pixel_rays(const float* pose, const float* lens, float center, const int64_t* index, int64_t count, int64_t width, float* rays, cudaStream_t stream);
int lm_ray_hull(const float* rays, int64_t count, float far, float floor, float* extent, cudaStream_t stream);

// values: count floats, or with alpha 3/4 of count; every fourth value is then alpha's. wrong: set to 1 by a magnitude past limit.
int lm_quantise(const float* values, const float* alpha, int64_t count, float limit, int kind, void* out, int* wrong, cudaStream_t stream);
int lm_png_stream(const LmPng* arguments, cudaStream_t stream);
int lm_png_shared(int bytes);  // shared memory that a block takes for a row
int lm_resolve(const float4* colour, const int* offset, const int* found, int count, int64_t list_capacity, float* rgb, cudaStream_t stream);

// Parts: sums of `found` before each ray, a block of 1024 rays at a time (offset) and of the blocks (sums); status[0] their total,
// status[1] whether it passes a capacity >= 0. add_sums finishes the offsets, as compact does.
int lm_scan(const int* found, int count, int* offset, int* sums, int* status, int64_t capacity, cudaStream_t stream);
int lm_add_sums(const int* sums, int count, int* offset, cudaStream_t stream);
int lm_compact(const LmCompact* arguments, cudaStream_t stream);
#ifdef __cplusplus
}
#endif
