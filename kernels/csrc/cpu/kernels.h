// Arguments of the CPU kernels: plain structs, no torch. Each instruction set compiles all kernels once (variant_*.cpp) into a
// table of functions; binding.cpp picks one table for the process.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace landmark {

// One dimension and resolution: plane [rows, height, width, channels], line [rows, length, channels], float32 or float16.
// In a cut scene height and width are those of one block's tile of a plane of whole_height, whole_width; else they are equal.
// dim 0: plane over (x, y), line along z; dim 1: (x, z), y; dim 2: (y, z), x.
struct Table {
    const void* plane;
    const void* line;
    int64_t height, width, whole_height, whole_width, length;
    int channels, dim;
    bool half_plane, half_line;
};

struct Field {
    const Table* tables;
    int count;
    float low[3], inverse[3];  // box: corner, 2 / size
    int division[2];           // blocks along x, y; 0, 0 for a single-block scene
    const int64_t* slots;      // [blocks] row of the tables that holds a block, -1 absent; null: block b in row b
    const int32_t* origins;    // [blocks, count, 2] column and row of the whole plane at which a block's tile begins; null: not cut
    void* scratch;             // field_scratch() bytes
};

struct Points {  // samples: rays [., 6], ray [count], t [count]
    const float* rays;
    const int32_t* ray;
    const float* t;
    int64_t count;
};

struct Pixels {  // of a camera: pose [3, 4], lens (fl_x, fl_y, cx, cy), index [count] = row * width + column
    float pose[12], lens[4], center;
    const int64_t* index;
    int64_t count, width;
};

struct March {
    const float* rays;    // [., 6]
    const float* extent;  // [.]
    const float* base;    // [samples + 32], the last one repeated
    const float* slope;
    const float* groups;  // march_groups() made it: bounds of base and slope over some samples each
    float base_most, slope_most;  // largest absolute values
    int samples;
    int32_t* scratch;  // march_scratch() numbers
    float box[6];
    const uint8_t* codes;  // null: no mask
    int64_t cells[3];      // of codes along x, y, z
    const uint8_t* coarse;
    const int64_t* levels;  // [level_count, 4]
    int level_count;
    float mask_low[3], mask_inverse[3], threshold;
    bool full_passes;  // a cell whose eight voxels are all set passes
};

struct Survivors {
    int32_t* ray;
    float* t;
    float* delta;
    int64_t capacity, count;
};

struct Composite {
    const float* feature;
    const int32_t* ray;
    const float* delta;
    int64_t count;
    bool softplus, nonlinear;
    float shift, scale, threshold;
    float stop;  // a ray ends where less light passes
};

struct Decoder {
    const float* features;  // [., inputs]
    int inputs;
    const float* rays;
    const int32_t* ray;
    int64_t count;
    const float* weights[3];  // [hidden[i] or 3, columns]
    const float* biases[3];   // or null
    int columns, hidden[2];
    int fea_pe, view_pe;
    float* scratch;  // decode_scratch() floats
};

struct Kernels {
    const char* name;
    void (*pixel_rays)(const Pixels&, float* rays);
    void (*march_groups)(const float* base, const float* slope, int samples, float* groups);
    int64_t (*march)(const March&, int64_t begin, int64_t end, Survivors&);  // stops at the first ray that may not fit: its index
    size_t (*field_scratch)(const Field&);
    bool (*density)(const Field&, const Points&, const float* basis, float* feature);  // false: a sample in an absent block
    bool (*appearance)(const Field&, const Points&, const float* basis, int outputs, float* products, float* features);
    int64_t (*composite)(const Composite&, float* weights, int64_t* coloured);  // how many are coloured
    bool (*weigh)(const Field&, const Points&, const float* basis, const Composite&, float* weights, int64_t* coloured, int64_t* found);
    size_t (*decode_scratch)(const Decoder&);
    void (*decode)(const Decoder&, float* rgb);
};

extern const Kernels kernels_avx512, kernels_avx2, kernels_portable;

constexpr int MARCH_GROUP = 8;
inline int march_group_count(int samples) { return (samples + MARCH_GROUP - 1) / MARCH_GROUP; }
inline int march_group_stride(int samples) { return (march_group_count(samples) + 15) / 16 * 16; }
inline size_t march_group_floats(int samples) { return (size_t)6 * 5 * march_group_stride(samples); }  // of groups, and of a group's four pairs
inline int march_padded(int samples) { return (samples + 31) / 16 * 16; }
inline size_t march_scratch(int samples) { return (size_t)3 * march_padded(samples); }
inline size_t appearance_floats(int64_t columns, int outputs) {  // products of one tile, basis transposed, features of one tile
    size_t padded = (size_t)(outputs + 15) / 16 * 16;
    return (size_t)48 * columns + padded * columns + 48 * padded + 64;
}

}  // namespace landmark
