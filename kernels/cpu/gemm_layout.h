// How the FP4 GEMM holds its operands, and the arithmetic that this is for.
//
//     out[m, n] = alpha * sum_g 2^(a_scale[m, g] - 127) 2^(b_scale[n, g] - 127) dot[m, n, g] / 4
//
// `dot` is the sum over a group's 32 products of twice the E2M1 values: integers -12 .. 12, so |dot| <= 4608.
//
// The scales cost no multiplication. A float32 around 1.5 * 2^(23 + e) has a unit of 2^e in its last place, so
//
//     bits(1.5 * 2^23) + (e << 23) + dot    are the bits of    (1.5 * 2^23 + dot) 2^e
//
// for the exponent e of the two scales' product. The left side is integer additions, the last of which vpdpbusd does as
// it goes; subtracting 1.5 * 2^(23 + e) leaves dot * 2^e, exactly, for the float32 accumulator. So 32 k of a vector of
// outputs are 8 vpdpbusd and 4 additions, which Zen 4 runs on other ports: 425 Gop/s (512x640x640, one core, packing
// included). Converting `dot`, multiplying by the scales and a fused multiply-add compete for its ports: 350.
//
// The columns are stored as unsigned bytes, 12 too large, as vpdpbusd wants them: `start` holds -12 * sum(row).
//
// Range: e is relative to the largest scales, plus kLift. If the exponents of the two operands' groups together span
// kSpan or less, every term is a multiple of 2^(kLift - kSpan) = 2^-126, so no term is subnormal; and the sum is below
// 2^(kLift + 13) * K / 32, so it doesn't overflow. Larger spans are left to the caller.
//
// NVFP4 has a scale for 16, no power of two: two dot products of 32 codes, each converted and multiplied by its scales,
// whose product has 8 bits and so leaves `dot`, of 12, exact.
#pragma once

#include "simd.h"

namespace gemm {

constexpr int kGroup = 32;               // elements that share a scale; of NVFP4 two groups
constexpr int kGroupBytes = kGroup / 2;  // their packed codes
constexpr int kSteps = kGroup / 4;       // vpdpbusd takes four elements
constexpr int kOffset = 12;              // of the columns' bytes
constexpr int kNanScale = 255;

constexpr uint32_t kMagic = 0x4B400000;  // the bits of 1.5 * 2^23
constexpr int kMantissaBits = 23;
constexpr int kLift = 64;
constexpr int kSpan = kLift + 126;

// The part of the output whose sums are in registers. Rows x vectors, Gop/s on one Zen 4 core (512x640x640):
//                4x1  4x2  4x3  5x2  6x1  6x2  8x1
//   avx512vnni   397  422  385  422  428  405  424
//   avx512       286  297  269  289  289  292  284
//   avx2         237  267  265  268  246  221  247
constexpr int kTileRows = 4;
constexpr int kTileVectors = 2;
constexpr int kTileColumns = kTileVectors * kLanes;

// One group of a tile's rows, kCount of them, with kScales scales each. For both operands, k runs over the low nibbles of a group, then over the high ones.
struct RowGroup {
    static constexpr int kCount = kTileRows;
    static constexpr int kScales = 1;
    int8_t codes[kTileRows][kGroup];
    uint32_t unit[kTileRows];   // kMagic + (exponent << 23)
    uint32_t start[kTileRows];  // unit - 12 * sum(codes)
};

// One group of a tile's columns. A vector has four k of kLanes columns.
struct alignas(64) ColumnGroup {
    static constexpr int kCount = kTileColumns;
    static constexpr int kScales = 1;
    uint8_t codes[kSteps][kTileColumns][4];
    uint32_t exponent[kTileColumns];  // << 23
};

// The same for two groups of NVFP4. The first one's k are those of steps 0, 1, 4 and 5.
struct RowPair {
    static constexpr int kCount = kTileRows;
    static constexpr int kScales = 2;
    int8_t codes[kTileRows][kGroup];
    float scale[2][kTileRows];
    uint32_t start[2][kTileRows];  // -12 * sum(codes)
};

struct alignas(64) ColumnPair {
    static constexpr int kCount = kTileColumns;
    static constexpr int kScales = 2;
    uint8_t codes[kSteps][kTileColumns][4];
    float scale[2][kTileColumns];
};

}  // namespace gemm
