// Sums of one panel of rows and one of columns by the tiles of AMX: `sums[kPanelRows][kPanelRows]`, in one order of k.
//
// tdpbssd adds 16x64 by 64x16 int8 to int32; tdpbf16ps 16x32 by 32x16 bf16 to float32, as fused multiply-adds to nearest,
// subnormal inputs and results taken as zeros. Four tiles of sums, two of rows and two of columns are the eight there are.
#pragma once

#include "gemm_amx_pack.h"

namespace gemm {

// Has the tiles in their full size, and lets go of them: the system saves them at each switch of tasks.
class AmxState {
public:
    AmxState() {
        struct alignas(64) Config {
            uint8_t palette, start_row, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        };
        Config config{1, 0, {}, {}, {}};
        std::fill_n(config.row_bytes, 8, 64);
        std::fill_n(config.rows, 8, kTileSide);
        asm volatile("" ::: "memory");  // GCC's intrinsics don't say that they read memory
        _tile_loadconfig(&config);
    }
    ~AmxState() { _tile_release(); }
    AmxState(const AmxState&) = delete;
    AmxState& operator=(const AmxState&) = delete;
};

// The instruction's tile numbers are part of its code, so they must be literals.
#define QUARTET_AMX_SUMS(multiply)                                    \
    constexpr int stride = kPanelRows * 4;                            \
    asm volatile("" ::: "memory");                                    \
    _tile_zero(0);                                                    \
    _tile_zero(1);                                                    \
    _tile_zero(2);                                                    \
    _tile_zero(3);                                                    \
    for (int64_t s = 0; s < steps; ++s) {                             \
        _tile_loadd(4, rows[s].tile[0].row, 64);                           \
        _tile_loadd(5, rows[s].tile[1].row, 64);                           \
        _tile_loadd(6, columns[s].tile[0].row, 64);                        \
        _tile_loadd(7, columns[s].tile[1].row, 64);                        \
        multiply(0, 4, 6);                                            \
        multiply(1, 4, 7);                                            \
        multiply(2, 5, 6);                                            \
        multiply(3, 5, 7);                                            \
    }                                                                 \
    _tile_stored(0, sums, stride);                                    \
    _tile_stored(1, sums + kTileSide, stride);                        \
    _tile_stored(2, sums + kTileSide * kPanelRows, stride);           \
    _tile_stored(3, sums + kTileSide * (kPanelRows + 1), stride);

inline void bf16_sums(const AmxStep* rows, const AmxStep* columns, int64_t steps, float* sums) {
    QUARTET_AMX_SUMS(_tile_dpbf16ps)
}

// The integers times `row_units[r] * column_units[c]`, powers of two.
inline void integer_sums(const AmxStep* rows, const AmxStep* columns, int64_t steps, const float* row_units,
                         const float* column_units, float* sums) {
    QUARTET_AMX_SUMS(_tile_dpbssd)
    for (int r = 0; r < kPanelRows; ++r)
        for (int c = 0; c < kPanelRows; c += kLanes) {
            const i32 whole = load<i32>(sums + r * kPanelRows + c);
            store(sums + r * kPanelRows + c,
                  __builtin_convertvector(whole, f32) * row_units[r] * load<f32>(column_units + c));
        }
}

#undef QUARTET_AMX_SUMS

}  // namespace gemm
