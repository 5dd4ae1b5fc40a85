// The FP4 GEMM: out = alpha * a b^T for a: [M, K] and b: [N, K] in MXFP4, accumulated in float32 (see gemm_layout.h).
//
// A thread packs the operands of its part of the output for itself: packing is 3 % of the work, and sharing it is slower
// when cores don't share a cache. (Two Zen 4 cores, 512x640x640, Gop/s, shared or by thread: in one CCX 750 or 7xx, in two
// CCXs 478 or xxx.) Each output is summed over k in one order, so bits depend neither on threads nor on blocking.
#if defined(__AVX2__)

#include <cmath>
#include <cstdlib>
#include <memory>

#include "gemm_pack.h"
#include "gemm_tile.h"

namespace gemm {
namespace {

constexpr int64_t kRowBytes = 256 << 10;   // packed rows, at a time, to stay in L2 while panels of columns pass
constexpr int64_t kColumnBytes = 4 << 20;  // packed columns, at a time: bounds the memory

// Cycles a group, on Zen 4: to multiply a tile, to pack its rows, to pack its columns.
constexpr int64_t kTileCycles = 70, kRowCycles = 32, kColumnCycles = 222;
constexpr int64_t kThreadProducts = 2 << 20;  // what is worth another thread: 10 us

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
    int64_t begin, end;

    int64_t size() const { return end - begin; }
    Range part(int64_t index, int64_t parts) const {
        return {begin + size() * index / parts, begin + size() * (index + 1) / parts};
    }
};

// Tiles of one operand, packed. `value` is what their outputs are multiplied by, unless there is a NaN.
template <class Group>
struct Packed {
    const Blocks& blocks;
    const Scales& scales;
    float value;
    int64_t capacity;
    std::unique_ptr<Group[], decltype(&std::free)> groups{allocate<Group>(capacity * blocks.groups), &std::free};
    std::unique_ptr<float[], decltype(&std::free)> factors{allocate<float>(capacity * Group::kCount), &std::free};
};
}
}
#endif
