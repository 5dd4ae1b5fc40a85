// Quantized operands to float32, as kernels/numerics/reference.py decodes them, for products by torch.mm and to quantize again.
#include "decode.h"
#include "e4m3.h"
#include "element.h"
#include "parallel.h"

// The factors of a group's scale, one after the other: 2^-127 is subnormal, so it goes in two steps, which
// flush-to-zero spares.
struct ScaleFactors {
    float first, second;
};

static ScaleFactors scale_factors(uint8_t byte, const float* tensor_scale) {
    if (tensor_scale) return {e4m3_value(byte) * *tensor_scale, 1.0f};
    uint32_t bits = byte == 255 ? 0x7fc00000 : (uint32_t)(byte ? byte : 1) << 23;
    return {load<float>(&bits), byte ? 1.0f : 0.5f};
}

static void decode_e2m1_group(const uint8_t* codes, const Grid& grid, ScaleFactors scale, int group, float* out) {
    Table table;
    for (int code = 0; code < 16; ++code) table.value[code] = grid.value[code] * scale.first * scale.second;
    for (int k = 0; k < group; k += kLanes) store(out + k, decode(codes + k / 2, table));
}

static void decode_e4m3_group(const uint8_t* codes, ScaleFactors scale, int group, float* out) {
    for (int k = 0; k < group; k += kLanes) {
        // By way of 16 bits, GCC 12 takes 0.24 ns an element, at once 0.53 (one Zen4 core, AVX512).
        i32 code = __builtin_convertvector(__builtin_convertvector(load<u8>(codes + k), u16), i32);
        store(out + k, e4m3_value(code) * scale.first * scale.second);
    }
}

// out[row, k] = value of codes[row, k] / shrink * scale[row, k / group]. `tensor_scale` is null with E8M0 scales, else
// they are E4M3. Codes are E4M3 (not shrunk) or E2M1.
QUARTET_EXPORT void quartet_decode(const uint8_t* codes, int64_t elements, const uint8_t* scales,
                                   const float* tensor_scale, float shrink, float* out, int64_t groups, int64_t group, int64_t threads) {
    const Grid grid(shrink);
#pragma omp parallel for schedule(static) num_threads(useful_threads(groups * group, threads))
    for (int64_t i = 0; i < groups; ++i) {
        const ScaleFactors scale = scale_factors(scales[i], tensor_scale);
        switch ((Elements)elements) {
            case Elements::kE4m3:
                decode_e4m3_group(codes + i * group, scale, (int)group, out + i * group);
                break;
            case Elements::kE2m1:
                decode_e2m1_group(codes + i * group / 2, grid, scale, (int)group, out + i * group);
                break;
        }
    }
}
