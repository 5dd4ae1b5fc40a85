// How the FP4 GEMM holds its operands, and the arithmetic that this is for.
//
//     out[m, n] = alpha * sum_g 2^(a_scale[m, g] - 127) 2^(b_scale[n, g] - 127) / 4 * dot[m, n, g]
//
// `dot` is the sum over a group's 32 products of twice the E2M1 values: integers -12 .. 12, so |dot| <= 4608.
//
// The scales cost no multiplication. Write e for the scales' exponent: a float32 with the exponent field of 2^(23 + e)
// has a unit of 2^e in the last place of its mantissa, so that
//
//     bits(1.5 * 2^23) + (e << 23) + dot    are the bits of    (1.5 * 2^23 + dot) 2^e .
//
// The left side is integer additions, and vpdpbusd does the last one as it goes; subtracting 1.5 * 2^(23 + e) leaves
// dot * 2^e, exactly, to be added to the float32 accumulator. A group of 32 k is 8 vpdpbusd, 2 integer and 2 float
// additions a vector of outputs; converting, multiplying and a fused multiply-add put two more on vpdpbusd's own ports.
//
// The column operand is stored as unsigned bytes, 12 too large, for vpdpbusd: `start` takes 12 * sum(row) off beforehand.
//
// Range: exponents are relative to the operand's largest, plus kLift. If the two operands' exponents together span
// kSpan or less, every term is a multiple of 2^(kLift - kSpan) = 2^-126, so no term is subnormal; and K terms are below
// 2^(kLift + 13) * K / 32, so none overflows. Larger spans are the caller's to handle.
#pragma once

#include "simd.h"

constexpr int kGroup = 32;               // elements that share a scale
constexpr int kGroupBytes = kGroup / 2;  // of packed codes
constexpr int kSteps = kGroup / 4;       // a step of the dot product has four elements
constexpr int kOffset = 12;              // of the column operand's bytes
constexpr int kNanScale = 255;

constexpr uint32_t kMagic = 0x4B400000;  // bits of 1.5 * 2^23
constexpr int kMantissa = 23;
constexpr int kLift = 64;
constexpr int kSpan = kLift + 126;

// A tile of the output is kTileRows x kTileColumns, its accumulators in registers.
#ifndef TR
#define TR 4
#endif
#ifndef TV
#define TV 2
#endif
constexpr int kTileRows = TR;
constexpr int kTileVectors = TV;
constexpr int kTileColumns = kTileVectors * kLanes;

// One group of the rows of a tile. k runs over the 16 low nibbles, then the 16 high ones, for both operands alike.
struct RowGroup {
    int8_t codes[kTileRows][kGroup];
    uint32_t unit[kTileRows];   // kMagic + (exponent << 23)
    uint32_t start[kTileRows];  // unit - 12 * sum(codes)
};

// One group of the columns of a tile: a vector has four k of kLanes columns.
struct alignas(64) ColumnGroup {
    uint8_t codes[kSteps][kTileColumns][4];
    uint32_t exponent[kTileColumns];  // << 23
};
