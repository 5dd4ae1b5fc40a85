// A block of the input matrix, small enough for the L1 or L2 cache, as float32. Blocks of a float32 matrix are used where
// they are; other types, and edges that don't fill whole tiles, are copied to a buffer with zeros around them.
#pragma once

#include "element.h"
#include "tile.h"

constexpr int kBlockRows = 128, kBlockColumns = 64;

struct Matrix {
    const void* values;
    Type type;
    int64_t rows, columns, stride;  // columns are contiguous
};

struct Block {
    const float* values;
    int64_t stride;
    int rows, columns;  // in the matrix; readable are both rounded up to 32
};

template <class Element>
void copy_block(const Matrix& from, int64_t row, int64_t column, const Block& block, float* to) {
    const Element* source = (const Element*)from.values + row * from.stride + column;
    std::memset(to, 0, sizeof(float) * kBlockRows * kBlockColumns);
    for (int r = 0; r < block.rows; ++r, source += from.stride, to += kBlockColumns) {
        int c = 0;
        for (; c + kLanes <= block.columns; c += kLanes) store(to + c, widen(source + c));
        if (c == block.columns) continue;
        Element last[kLanes] = {};
        std::memcpy(last, source + c, (block.columns - c) * sizeof(Element));
        store(to + c, widen(last));
    }
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
