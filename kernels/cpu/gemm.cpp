// The FP4 GEMM: out = alpha * a b^T for a: [M, K] and b: [N, K] in MXFP4, accumulated in float32 (see gemm_layout.h).
//
// Both operands are packed, then threads take tiles of the output. Each output is summed over k in one fixed order, so the
// result depends neither on the number of threads nor on the blocking.
#if defined(__AVX2__)

#include <cmath>
#include <cstdlib>
#include <memory>

#include "gemm_pack.h"
#include "gemm_tile.h"

namespace gemm {
namespace {

// Each packed operand is held up to this size, a quarter of Zen 4's L3, so that memory is bounded.
constexpr int64_t kChunkBytes = 8 << 20;
// Rows that pass over one panel of columns: they stay in L2 for the next one. 32 to 512 KiB are equally fast on Zen 4.
constexpr int64_t kBlockBytes = 128 << 10;
// Products that are worth another thread: 10 us of them.
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

// One operand in tiles of `Group::kCount` rows, of which `chunk` are packed at a time.
template <class Group>
struct Packed {
    Blocks blocks;
    Scales scales;
    float value;  // what its outputs are multiplied by, unless there is a NaN
    int64_t tile_bytes = std::max<int64_t>(blocks.groups * sizeof(Group), 1);
    int64_t tiles = ceil_div(blocks.rows, Group::kCount);
    int64_t chunk = even_part(tiles, kChunkBytes / tile_bytes);
    std::unique_ptr<Group[], Free> groups = allocate<Group>(chunk * blocks.groups);
    std::unique_ptr<float[], Free> all_factors = allocate<float>(chunk * Group::kCount);

    bool allocated() const { return groups && all_factors; }
    Group* tile(int64_t slot) const { return groups.get() + slot * blocks.groups; }
    float* factors(int64_t slot) const { return all_factors.get() + slot * Group::kCount; }

    void pack_tile(int64_t index, int64_t slot) const {
        pack(blocks, scales, index * Group::kCount, tile(slot));
        row_factors(blocks, scales, index * Group::kCount, Group::kCount, value, factors(slot));
    }
};

// 2^exponent as a product. Sums are below 2^(kLift + 39) = 2^103 for any K below 2^31, so less than 2^-252 makes them 0.
struct PowerOfTwo {
    float first, second;

    explicit PowerOfTwo(int exponent)
        : first(exponent < -252 ? 0.0f : std::ldexp(1.0f, exponent / 2)),
          second(std::ldexp(1.0f, exponent - exponent / 2)) {}
};

template <class Element>
void multiply(const Packed<RowGroup>& a, const Packed<ColumnGroup>& b, float scale, Element* out, int64_t threads) {
    const int64_t products = a.blocks.rows * b.blocks.rows * a.blocks.groups * kGroup;
    threads = std::clamp<int64_t>(products / kThreadProducts, 1, threads);
    const int64_t block = even_part(a.chunk, kBlockBytes / a.tile_bytes), blocks = ceil_div(a.chunk, block);
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t column = 0; column < b.tiles; column += b.chunk) {
        const int64_t columns = std::min(b.chunk, b.tiles - column);
#pragma omp for schedule(dynamic) nowait
        for (int64_t c = 0; c < columns; ++c) b.pack_tile(column + c, c);
        for (int64_t row = 0; row < a.tiles; row += a.chunk) {
            const int64_t rows = std::min(a.chunk, a.tiles - row);
#pragma omp for schedule(dynamic, 8)
            for (int64_t r = 0; r < rows; ++r) a.pack_tile(row + r, r);
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < blocks * columns; ++task) {
                const int64_t c = task % columns, n = (column + c) * kTileColumns, begin = task / columns * block;
                for (int64_t r = begin; r < std::min(begin + block, rows); ++r) {
                    const int64_t m = (row + r) * kTileRows;
                    const Place<Element> place{out + m * b.blocks.rows + n, b.blocks.rows,
                                               int(std::min<int64_t>(kTileRows, a.blocks.rows - m)),
                                               int(std::min<int64_t>(kTileColumns, b.blocks.rows - n))};
                    alignas(64) float sums[kTileRows * kTileColumns];
                    prefetch_tile(place);
                    tile_sums(a.tile(r), b.tile(c), a.blocks.groups, sums);
                    store_tile(sums, scale, a.factors(r), b.factors(c), place);
                }
            }
        }
    }
}

}  // namespace
}  // namespace gemm

// `done` is set to 1; or to 0, with nothing written, if the scales span too much (gemm_layout.h) or memory runs out.
QUARTET_EXPORT void quartet_scaled_mm(const uint8_t* a_codes, const uint8_t* a_scales, const uint8_t* b_codes,
                                      const uint8_t* b_scales, void* out, int64_t type, int32_t* done, int64_t rows,
                                      int64_t columns, int64_t groups, float alpha, int64_t threads) {
    using namespace gemm;
    const Blocks a_blocks{a_codes, a_scales, rows, groups}, b_blocks{b_codes, b_scales, columns, groups};
    const Scales a_survey = survey(a_blocks), b_survey = survey(b_blocks);
    *done = 0;
    if (a_survey.span + b_survey.span > kSpan) return;
    const PowerOfTwo scale(a_survey.high + b_survey.high - 2 * 127 - 2 - kLift);
    const Packed<RowGroup> a{a_blocks, a_survey, alpha};
    const Packed<ColumnGroup> b{b_blocks, b_survey, scale.second};
    if (!a.allocated() || !b.allocated()) return;
    if (type == kFloat32) multiply(a, b, scale.first, static_cast<float*>(out), threads);
    if (type == kBFloat16) multiply(a, b, scale.first, static_cast<BFloat16*>(out), threads);
    if (type == kFloat16) multiply(a, b, scale.first, static_cast<Float16*>(out), threads);
    *done = 1;
}

#endif
