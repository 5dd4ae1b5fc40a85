// A block of the input matrix, small enough for the L1 or L2 cache, as float32. Blocks of a float32 matrix are used where
// they are; other types, and edges that don't fill whole tiles, are copied to a buffer with zeros around them.
#pragma once

#include "element.h"
#include "tile.h"

constexpr int kBlockRows = 64, kBlockColumns = 128;

struct Matrix {
    const void* values;
    Type type;
    int64_t rows, columns, stride;  // columns are contiguous
};

constexpr int64_t padded(int64_t size) { return (size + kGroup - 1) / kGroup * kGroup; }

struct Block {
    const float* values;
    int64_t stride;
    int rows, columns;  // in the matrix; readable are `padded` of them
};

// kLanes elements, of which the first `count` are there and the rest are 0.
template <class Element>
QUARTET_INLINE f32 widen_first(const Element* from, int count) {
    if (count >= kLanes) return widen(from);
    Element there[kLanes] = {};
    if (count > 0) std::memcpy(there, from, count * sizeof(Element));
    return widen(there);
}

template <class Element>
void copy_block(const Matrix& matrix, int64_t row, int64_t column, const Block& block, float* to) {
    const Element* from = (const Element*)matrix.values + row * matrix.stride + column;
    for (int r = 0; r < padded(block.rows); ++r)
        for (int c = 0; c < padded(block.columns); c += kLanes)
            store(to + r * kBlockColumns + c, widen_first(from + r * matrix.stride + c, r < block.rows ? block.columns - c : 0));
}

inline Block block_at(const Matrix& from, int64_t row, int64_t column, float* buffer) {
    Block block = {buffer, kBlockColumns, (int)std::min<int64_t>(kBlockRows, from.rows - row),
                   (int)std::min<int64_t>(kBlockColumns, from.columns - column)};
    if (from.type == kBFloat16) {
        copy_block<BFloat16>(from, row, column, block, buffer);
    } else if (from.type == kFloat16) {
        copy_block<Float16>(from, row, column, block, buffer);
    } else if (block.rows % kGroup || block.columns % kGroup) {
        copy_block<float>(from, row, column, block, buffer);
    } else {
        block.values = (const float*)from.values + row * from.stride + column;
        block.stride = from.stride;
    }
    return block;
}
