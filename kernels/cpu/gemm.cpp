// The FP4 GEMM on a CPU: out = alpha * a b^T for a: [M, K], b: [N, K] in MXFP4, accumulated in float32 (gemm_layout.h).
//
// Both operands are packed, then threads take tiles of the output. An output is summed over k in one order, whatever the
// number of threads and the blocking: results don't depend on them.
#if defined(__AVX2__)

#include <cmath>
#include <cstdlib>

#include "gemm_pack.h"
#include "gemm_tile.h"

namespace {

// Packed operands are held up to this size each, a quarter of Zen 4's L3: memory is bounded, and reads stay in cache.
constexpr int64_t kChunkBytes = 8 << 20;
// Packed rows that pass over a panel of columns, while these are in L1 or L2: half of the smallest L2 of today.
constexpr int64_t kBlockBytes = 256 << 10;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `count` things in parts of equal size, none over `limit` (but at least 1): the size.
int64_t even_part(int64_t count, int64_t limit) { return ceil_div(count, ceil_div(count, std::max<int64_t>(limit, 1))); }

// 2^exponent as a product of two floats, for a sum below 2^(kLift + 39): what is under the range would round to 0.
struct PowerOfTwo {
    float first, second;
    explicit PowerOfTwo(int exponent)
        : first(exponent < -252 ? 0.0f : std::ldexp(1.0f, exponent / 2)), second(std::ldexp(1.0f, exponent - exponent / 2)) {}
};

struct Gemm {
    Operand a, b;
    Scales a_scales, b_scales;
    float alpha;
    char* out;

    template <class Type>
    bool run(int threads) const;
};

template <class T>
T* allocate(int64_t count) {
    return static_cast<T*>(std::aligned_alloc(64, ceil_div(count * sizeof(T), 64) * 64));
}

// Returns false, with nothing done, if memory runs out.
template <class Type>
bool Gemm::run(int threads) const {
    const int64_t groups = a.groups, element = sizeof(typename Type::Vector) / kLanes;
    const int64_t row_bytes = std::max<int64_t>(groups * sizeof(RowGroup), 1);
    const int64_t column_bytes = std::max<int64_t>(groups * sizeof(ColumnGroup), 1);
    const int64_t row_tiles = ceil_div(a.rows, kTileRows), column_tiles = ceil_div(b.rows, kTileColumns);
    const int64_t row_chunk = even_part(row_tiles, kChunkBytes / row_bytes);
    const int64_t column_chunk = even_part(column_tiles, kChunkBytes / column_bytes);
    const int64_t block = even_part(row_chunk, kBlockBytes / row_bytes), blocks = ceil_div(row_chunk, block);
    const PowerOfTwo scale(a_scales.high + b_scales.high - 2 * 127 - 2 - kLift);

    RowGroup* rows = allocate<RowGroup>(row_chunk * groups);
    ColumnGroup* columns = allocate<ColumnGroup>(column_chunk * groups);
    float* row_factor = allocate<float>(row_chunk * kTileRows);
    float* column_factor = allocate<float>(column_chunk * kTileColumns);
    const bool ok = rows && columns && row_factor && column_factor;

#pragma omp parallel num_threads(threads) if (ok)
    for (int64_t c0 = 0; ok && c0 < column_tiles; c0 += column_chunk) {
        const int64_t column_count = std::min(column_chunk, column_tiles - c0);
#pragma omp for schedule(dynamic) nowait
        for (int64_t c = 0; c < column_count; ++c) {
            const int64_t first = (c0 + c) * kTileColumns;
            pack_columns(b, b_scales, first, columns + c * groups);
            row_factors(b, b_scales, first, kTileColumns, scale.second, column_factor + c * kTileColumns);
        }
        for (int64_t r0 = 0; r0 < row_tiles; r0 += row_chunk) {
            const int64_t row_count = std::min(row_chunk, row_tiles - r0);
#pragma omp for schedule(dynamic, 8)
            for (int64_t r = 0; r < row_count; ++r) {
                const int64_t first = (r0 + r) * kTileRows;
                pack_rows(a, a_scales, first, rows + r * groups);
                row_factors(a, a_scales, first, kTileRows, alpha, row_factor + r * kTileRows);
            }
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < blocks * column_count; ++task) {
                const int64_t c = task % column_count, begin = task / column_count * block;
                const int64_t n = (c0 + c) * kTileColumns;
                for (int64_t r = begin; r < std::min(begin + block, row_count); ++r) {
                    const int64_t m = (r0 + r) * kTileRows;
                    alignas(64) float sums[kTileRows * kTileColumns];
#ifdef PF
                    for (int i = 0; i < kTileRows; ++i) for(int j=0;j<kTileColumns*4;j+=64) __builtin_prefetch(out + ((m+i) * b.rows + n) * element+j, 1);
#endif
                    tile_sums(rows + r * groups, columns + c * groups, groups, sums);
                    store_tile<Type>(sums, scale.first, row_factor + r * kTileRows, column_factor + c * kTileColumns,
                                     {out + (m * b.rows + n) * element, b.rows * element,
                                      int(std::min<int64_t>(kTileRows, a.rows - m)),
                                      int(std::min<int64_t>(kTileColumns, b.rows - n))});
                }
            }
        }
    }
    std::free(rows);
    std::free(columns);
    std::free(row_factor);
    std::free(column_factor);
    return ok;
}

}  // namespace

// type: 0 float32, 1 bfloat16, 2 float16. `done` is set to 1, or to 0 if the scales span too much or memory runs out.
QUARTET_EXPORT void quartet_scaled_mm(const uint8_t* a_codes, const uint8_t* a_scales, const uint8_t* b_codes,
                                      const uint8_t* b_scales, void* out, int32_t* done, int64_t rows, int64_t columns,
                                      int64_t groups, float alpha, int64_t type, int64_t threads) {
    const Operand a{a_codes, a_scales, rows, groups}, b{b_codes, b_scales, columns, groups};
    const Gemm gemm{a, b, survey(a), survey(b), alpha, static_cast<char*>(out)};
    *done = gemm.a_scales.span + gemm.b_scales.span <= kSpan &&
            (type == 0 ? gemm.run<Float32>(threads) : type == 1 ? gemm.run<BFloat16>(threads) : gemm.run<Float16>(threads));
}

#endif
