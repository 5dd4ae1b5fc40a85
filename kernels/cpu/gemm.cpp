// The FP4 GEMM: out = alpha * a b^T for a: [M, K] and b: [N, K] in MXFP4 or NVFP4, accumulated in float32 (see
// gemm_layout.h).
//
// Each thread has a rectangle of the output and packs for itself what it needs for it: packing twice costs less than
// passing packed lines from core to core. 512x640x640 on two Zen 4 cores, packed together or apart: 750 and 827 Gop/s
// where they share an L3, 479 and 800 where they don't. Each output is summed over k in one order, so its bits depend
// neither on the number of threads nor on the blocking.
#if defined(__AVX2__)

#include <cmath>
#include <cstdlib>
#include <memory>

#include "gemm_pack.h"
#include "gemm_tile.h"

namespace gemm {
namespace {

// Packed rows at a time, to stay in L2 while columns pass; packed columns at a time, to stay in L3. Fewer columns mean
// packing rows more often: 4096x4096x4096 on one Zen 4 core, 1, 4, 16 MiB of columns: 395, 425, 350 to 396 Gop/s.
constexpr int64_t kRowBytes = 256 << 10, kColumnBytes = 4 << 20;

// Cycles a group, on Zen 4: to multiply a tile, to pack its rows, to pack its columns.
constexpr int64_t kTileCycles = 70, kRowCycles = 32, kColumnCycles = 222;
// Another thread is worth it for 10 us of work.
constexpr int64_t kThreadProducts = 2 << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The size of even parts of `count` things, between 1 and `limit`.
int64_t even_part(int64_t count, int64_t limit) {
    const int64_t parts = ceil_div(count, std::max<int64_t>(limit, 1));
    return std::max<int64_t>(ceil_div(count, std::max<int64_t>(parts, 1)), 1);
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

template <class T>
std::unique_ptr<T[], Free> allocate(int64_t count) {
    return std::unique_ptr<T[], Free>(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) / 64 + 1) * 64)));
}

// 2^exponent as a product. Sums are below 2^(kLift + 39) = 2^103, for K below 2^31: less than 2^-252 takes them to 0.
struct PowerOfTwo {
    float first, second;

    explicit PowerOfTwo(int exponent)
        : first(exponent < -252 ? 0.0f : std::ldexp(1.0f, exponent / 2)),
          second(std::ldexp(1.0f, exponent - exponent / 2)) {}
};

// Tiles `begin` .. `end - 1` along one side of the output.
struct Range {
    int64_t begin, end;

    int64_t size() const { return end - begin; }
    Range part(int64_t index, int64_t parts) const { return {size() * index / parts, size() * (index + 1) / parts}; }
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
    typename Format::ScalesOf a_scales, b_scales;
    float scale, column_factor, row_factor;

    bool run_as(int64_t type, void* out, int64_t threads) const {
        switch ((Type)type) {
            case Type::kFloat32: return run(static_cast<float*>(out), threads);
            case Type::kBfloat16: return run(static_cast<BFloat16*>(out), threads);
            case Type::kFloat16: return run(static_cast<Float16*>(out), threads);
        }
        return false;
    }

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
    threads = std::clamp<int64_t>(a.rows * b.rows * a.groups * kGroup / kThreadProducts, 1, threads);
    int64_t row_parts = 1, least = std::numeric_limits<int64_t>::max();
    for (int64_t parts = 1; parts <= threads; ++parts) {
        if (threads % parts) continue;
        const int64_t r = ceil_div(rows.size(), parts), c = ceil_div(columns.size(), threads / parts);
        const int64_t cycles = r * c * kTileCycles + r * kRowCycles + c * kColumnCycles;
        if (cycles < least) least = cycles, row_parts = parts;
    }
    const int64_t column_parts = threads / row_parts;
    bool ok = true;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(&& : ok) if (threads > 1)
    for (int64_t i = 0; i < threads; ++i)
        ok = run_part(out, rows.part(i / column_parts, row_parts), columns.part(i % column_parts, column_parts)) && ok;
    return ok;
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
    for (int64_t c0 = columns.begin; c0 < columns.end; c0 += column_step) {
        const int64_t c1 = std::min(c0 + column_step, columns.end);
        pack(b, b_scales, column_factor, c0, c1, column_groups.get(), column_factors.get());
        for (int64_t r0 = rows.begin; r0 < rows.end; r0 += row_step) {
            const int64_t r1 = std::min(r0 + row_step, rows.end);
            pack(a, a_scales, row_factor, r0, r1, row_groups.get(), row_factors.get());
            for (int64_t c = c0; c < c1; ++c)
                for (int64_t r = r0; r < r1; ++r) {
                    const Place<Element> to = place(out, r, c);
                    alignas(64) float sums[kTileRows * kTileColumns];
                    prefetch_tile(to);
                    tile_sums(&row_groups[(r - r0) * groups], &column_groups[(c - c0) * groups], groups, sums);
                    store_tile(sums, scale, &row_factors[(r - r0) * kTileRows],
                               &column_factors[(c - c0) * kTileColumns], to);
                }
        }
    }
    return true;
}

template <class Format>
template <class Element>
Place<Element> Product<Format>::place(Element* out, int64_t row, int64_t column) const {
    const int64_t m = row * kTileRows, n = column * kTileColumns;
    return {out + m * b.rows + n, b.rows, int(std::min<int64_t>(kTileRows, a.rows - m)),
            int(std::min<int64_t>(kTileColumns, b.rows - n))};
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
        const Product<Nvfp4> product{a, b, {}, {}, 0.25f, *b_tensor_scale, *a_tensor_scale * alpha};
        *done = product.run_as(type, out, threads);
        return;
    }
    const Scales a_range = survey(a), b_range = survey(b);
    const PowerOfTwo scale(a_range.high + b_range.high - 2 * 127 - 2 - kLift);
    const Product<Mxfp4> product{a, b, a_range, b_range, scale.first, scale.second, alpha};
    *done = a_range.span + b_range.span <= kSpan && product.run_as(type, out, threads);
}

#endif
