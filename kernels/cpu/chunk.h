// A chunk of the input matrix as float32, small enough to be read twice from the cache. Chunks of a float32 matrix are
// used where they are; other types, and edges that don't fill whole tiles, are copied, with zeros around them.
#pragma once

#include "element.h"
#include "tile.h"

// As good as any on 512x1792 and 1792x640: QuEST 0.58 ns an element, against 0.62 with 128x64; SR in both directions
// 1.12, against 1.29 with 128x128 (one Zen4 core, AVX512).
constexpr int kChunkRows = 64, kChunkColumns = 128;

struct Matrix {
    const void* values;
    Type type;
    int64_t rows, columns, stride;  // columns are contiguous
};

struct Chunk {
    const float* values;
    int64_t stride;
    int rows, columns;  // in the matrix; readable are whole groups of them
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
void copy_chunk(const Matrix& matrix, int64_t row, int64_t column, const Chunk& chunk, float* to) {
    const Element* from = (const Element*)matrix.values + row * matrix.stride + column;
    for (int r = 0; r < groups_of(chunk.rows) * kGroup; ++r)
        for (int c = 0; c < groups_of(chunk.columns) * kGroup; c += kLanes) {
            int there = r < chunk.rows ? chunk.columns - c : 0;
            store(to + r * kChunkColumns + c, widen_first(from + r * matrix.stride + c, there));
        }
}

inline Chunk chunk_at(const Matrix& from, int64_t row, int64_t column, float* buffer) {
    Chunk chunk = {buffer, kChunkColumns, (int)std::min<int64_t>(kChunkRows, from.rows - row),
                   (int)std::min<int64_t>(kChunkColumns, from.columns - column)};
    switch (from.type) {
        case Type::kFloat32:
            if (chunk.rows % kGroup || chunk.columns % kGroup) {
                copy_chunk<float>(from, row, column, chunk, buffer);
            } else {
                chunk.values = (const float*)from.values + row * from.stride + column;
                chunk.stride = from.stride;
            }
            break;
        case Type::kBfloat16: copy_chunk<BFloat16>(from, row, column, chunk, buffer); break;
        case Type::kFloat16: copy_chunk<Float16>(from, row, column, chunk, buffer); break;
    }
    return chunk;
}
