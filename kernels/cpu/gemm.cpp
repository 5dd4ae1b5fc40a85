// The FP4 GEMM: out = alpha * a b^T for a: [M, K] and b: [N, K] in MXFP4 or NVFP4, accumulated in float32 (see
// gemm_layout.h).
//
// Each thread has a rectangle of the output and packs for itself what it needs for it: packing twice costs less than
// passing packed lines from core to core. 512x640x640 on two Zen 4 cores, packed together or apart: 750 and 827 Gop/s
// where they share an L3, 479 and 800 where they don't. Each output is summed over k in one order, so its bits depend
// neither on the number of threads nor on the blocking.
#if defined(__AVX2__)

#include <cmath>

#include "gemm_amx.h"
#include "gemm_pack.h"
#include "gemm_parts.h"
#include "gemm_tile.h"

namespace gemm {
namespace {

// On Zen 4.
constexpr Cycles kCycles{70, 32, 222};

// 2^exponent as a product. Sums are below 2^(kLift + 39) = 2^103, for K below 2^31: less than 2^-252 takes them to 0.
struct PowerOfTwo {
    float first, second;

    explicit PowerOfTwo(int exponent)
        : first(exponent < -252 ? 0.0f : std::ldexp(1.0f, exponent / 2)),
          second(std::ldexp(1.0f, exponent - exponent / 2)) {}
};

struct Mxfp4 {
    using ScalesOf = Scales;
    using Rows = RowGroup;
    using Columns = ColumnGroup;
};

struct Nvfp4 {
    using ScalesOf = E4m3Scales;
    using Rows = RowPair;
    using Columns = ColumnPair;
};

// Outputs are sums * scale * column_factor * row_factor.
template <class Format>
struct Product {
    using Rows = typename Format::Rows;
    using Columns = typename Format::Columns;
    Blocks a, b;
    const typename Format::ScalesOf &a_scales, &b_scales;
    float scale, column_factor, row_factor;

    template <class Element>
    bool run(Element* out, int64_t threads) const;
    template <class Element>
    bool run_part(Element* out, Range rows, Range columns) const;
    template <class Element>
    Place<Element> place(Element* out, int64_t row, int64_t column) const;
};

// This and the next return false if memory runs out.
template <class Format>
template <class Element>
bool Product<Format>::run(Element* out, int64_t threads) const {
    const Range rows{0, ceil_div(a.rows, kTileRows)}, columns{0, ceil_div(b.rows, kTileColumns)};
    return in_parts(rows, columns, a.rows * b.rows * a.groups * kGroup, kCycles, threads,
                    [&](Range r, Range c) { return run_part(out, r, c); });
}

template <class Format>
template <class Element>
bool Product<Format>::run_part(Element* out, Range rows, Range columns) const {
    const int64_t groups = a.groups;
    const int64_t row_step = even_part(rows.size(), kRowBytes / int64_t(groups * sizeof(Rows) + 1));
    const int64_t column_step = even_part(columns.size(), kColumnBytes / int64_t(groups * sizeof(Columns) + 1));
    const auto row_groups = allocate<Rows>(row_step * groups);
    const auto column_groups = allocate<Columns>(column_step * groups);
    const auto row_factors = allocate<float>(row_step * kTileRows);
    const auto column_factors = allocate<float>(column_step * kTileColumns);
    if (!row_groups || !column_groups || !row_factors || !column_factors) return false;
    through_caches(
        rows, columns, row_step, column_step,
        [&](Range r) { pack(a, a_scales, row_factor, r.begin, r.end, row_groups.get(), row_factors.get()); },
        [&](Range c) { pack(b, b_scales, column_factor, c.begin, c.end, column_groups.get(), column_factors.get()); },
        [&](int64_t r, int64_t c, int64_t r0, int64_t c0) {
            const Place<Element> to = place(out, r, c);
            alignas(64) float sums[kTileRows * kTileColumns];
            prefetch_tile(to);
            tile_sums(&row_groups[(r - r0) * groups], &column_groups[(c - c0) * groups], groups, sums);
            store_tile<kTileColumns>(sums, scale, &row_factors[(r - r0) * kTileRows],
                                     &column_factors[(c - c0) * kTileColumns], to);
        });
    return true;
}

template <class Format>
template <class Element>
Place<Element> Product<Format>::place(Element* out, int64_t row, int64_t column) const {
    const int64_t m = row * kTileRows, n = column * kTileColumns;
    return {out + m * b.rows + n, b.rows, int(std::min<int64_t>(kTileRows, a.rows - m)),
            int(std::min<int64_t>(kTileColumns, b.rows - n))};
}

// False if memory runs out.
template <class Product>
bool run_as(int64_t type, const Product& product, void* out, int64_t threads) {
    switch ((Type)type) {
        case Type::kFloat32: return product.run(static_cast<float*>(out), threads);
        case Type::kBfloat16: return product.run(static_cast<BFloat16*>(out), threads);
        case Type::kFloat16: return product.run(static_cast<Float16*>(out), threads);
    }
    return false;
}

}  // namespace
}  // namespace gemm

// MXFP4, or NVFP4 where there are tensor scales (else null), with two scales a group of 32. `done` is set to 1; or to 0 if
// MXFP4's scales span too much (gemm_layout.h) or memory runs out.
QUARTET_EXPORT void quartet_scaled_mm(const uint8_t* a_codes, const uint8_t* a_scales, const float* a_tensor_scale,
                                      const uint8_t* b_codes, const uint8_t* b_scales, const float* b_tensor_scale,
                                      void* out, int64_t type, int32_t* done, int64_t rows, int64_t columns,
                                      int64_t groups, float alpha, int64_t threads) {
    using namespace gemm;
    const Blocks a{a_codes, a_scales, rows, groups}, b{b_codes, b_scales, columns, groups};
    if (a_tensor_scale) {
        const float row_factor = *a_tensor_scale * alpha, column_factor = *b_tensor_scale;
        const E4m3Scales values;
#if defined(QUARTET_AMX)
        const AmxProduct<E4m3Scales> product{a, b, values, values, 1.0f, column_factor, row_factor, 0, 0};
#else
        const Product<Nvfp4> product{a, b, values, values, 0.25f, column_factor, row_factor};
#endif
        *done = run_as(type, product, out, threads);
        return;
    }
    const Scales a_range = survey(a), b_range = survey(b);
    const PowerOfTwo scale(a_range.high + b_range.high - 2 * 127 - 2 - kLift);
#if defined(QUARTET_AMX)
    const int a_lift = std::max(a_range.span - 125, 0), b_lift = kLift + 2 - a_lift;
    const AmxProduct<Scales> product{a, b, a_range, b_range, scale.first, scale.second, alpha, a_lift, b_lift};
#else
    const Product<Mxfp4> product{a, b, a_range, b_range, scale.first, scale.second, alpha};
#endif
    *done = a_range.span + b_range.span <= kSpan && run_as(type, product, out, threads);
}

#endif
