// How the output of a product is divided: among threads, and into parts whose packed operands stay in a cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>

namespace gemm {

// Packed rows at a time, to stay in L2 while columns pass; packed columns at a time, to stay in L3. Fewer columns mean
// packing rows more often: 4096x4096x4096 on one Zen 4 core, 1, 4, 16 MiB of columns: 395, 425, 350 to 396 Gop/s.
constexpr int64_t kRowBytes = 256 << 10, kColumnBytes = 4 << 20;

// Another thread is worth it for 10 us of work.
constexpr int64_t kThreadProducts = 2 << 20;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The size of even parts of `count` things, between 1 and `limit`.
inline int64_t even_part(int64_t count, int64_t limit) {
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

// Tiles `begin` .. `end - 1` along one side of the output.
struct Range {
    int64_t begin, end;

    int64_t size() const { return end - begin; }
    Range part(int64_t index, int64_t parts) const { return {size() * index / parts, size() * (index + 1) / parts}; }
};

// Cycles a group: to multiply a tile, to pack its rows, to pack its columns.
struct Cycles {
    int64_t tile, rows, columns;
};

// Calls `part(rows, columns)` for one rectangle of tiles a thread, of the shape that takes the fewest cycles. Whether
// every call returned true.
template <class Part>
bool in_parts(Range rows, Range columns, int64_t products, Cycles cycles, int64_t threads, const Part& part) {
    threads = std::clamp<int64_t>(products / kThreadProducts, 1, threads);
    int64_t row_parts = 1, least = std::numeric_limits<int64_t>::max();
    for (int64_t parts = 1; parts <= threads; ++parts) {
        if (threads % parts) continue;
        const int64_t r = ceil_div(rows.size(), parts), c = ceil_div(columns.size(), threads / parts);
        const int64_t sum = r * c * cycles.tile + r * cycles.rows + c * cycles.columns;
        if (sum < least) least = sum, row_parts = parts;
    }
    const int64_t column_parts = threads / row_parts;
    bool ok = true;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(&& : ok) if (threads > 1)
    for (int64_t i = 0; i < threads; ++i)
        ok = part(rows.part(i / column_parts, row_parts), columns.part(i % column_parts, column_parts)) && ok;
    return ok;
}

// Goes through a rectangle of tiles so that packed operands stay in a cache: `pack_columns(c)` for the next `column_step`
// columns, then for each next `row_step` rows `pack_rows(r)`, then `tile(r, c, r0, c0)` for each tile of both, of which `r0`
// and `c0` were packed first.
template <class PackRows, class PackColumns, class Tile>
void through_caches(Range rows, Range columns, int64_t row_step, int64_t column_step, const PackRows& pack_rows,
                    const PackColumns& pack_columns, const Tile& tile) {
    for (int64_t c0 = columns.begin; c0 < columns.end; c0 += column_step) {
        const int64_t c1 = std::min(c0 + column_step, columns.end);
        pack_columns(Range{c0, c1});
        for (int64_t r0 = rows.begin; r0 < rows.end; r0 += row_step) {
            const int64_t r1 = std::min(r0 + row_step, rows.end);
            pack_rows(Range{r0, r1});
            for (int64_t c = c0; c < c1; ++c)
                for (int64_t r = r0; r < r1; ++r) tile(r, c, r0, c0);
        }
    }
}

}  // namespace gemm
