// Reads a tile of a matrix, or of its transpose: `width` columns of kLanes rows, a column a vector, zeros beyond the
// edges. Unlike the chunks of chunk.h, a tile may be as wide as any block of a quantizer.
#pragma once

#include <type_traits>

#include "chunk.h"

constexpr int kMaxBlock = 128;

struct View {
    Matrix matrix;
    bool transposed;  // whether the operand is the matrix's transpose

    int64_t rows() const { return transposed ? matrix.columns : matrix.rows; }
    int64_t columns() const { return transposed ? matrix.rows : matrix.columns; }
};

// Consecutive elements of the matrix are rows of the operand: lanes.
template <class Element>
void read_lanes(const Element* from, int64_t stride, int64_t lanes, int64_t there, int width, f32* column) {
    for (int c = 0; c < width; ++c) {
        if (c >= there)
            column[c] = f32{};
        else
            column[c] = widen_first(from + c * stride, (int)std::clamp<int64_t>(lanes, 0, kLanes));
    }
}

// Consecutive elements of the matrix are columns of the operand: vectors to transpose.
template <class Element>
void read_rows(const Element* from, int64_t stride, int64_t rows, int64_t there, int width, f32* column) {
    alignas(64) float buffer[kLanes * kMaxBlock];
    RowMajor source = {buffer, width};
    if constexpr (std::is_same<Element, float>::value) {
        if (rows >= kLanes && there >= width) source = {from, stride};
    }
    if (source.values == buffer)
        for (int r = 0; r < kLanes; ++r)
            for (int c = 0; c < width; c += kLanes) {
                const int count = r < rows ? (int)std::clamp<int64_t>(there - c, 0, kLanes) : 0;
                store(buffer + r * width + c, widen_first(from + r * stride + c, count));
            }
    for (int c = 0; c < width; c += 4) source.four(c, column + c);
}

template <class Element>
QUARTET_INLINE void read_elements(const View& view, int64_t row, int64_t column, int width, f32* to) {
    const Matrix& x = view.matrix;
    const Element* values = (const Element*)x.values;
    if (view.transposed)
        read_lanes(values + column * x.stride + row, x.stride, x.columns - row, x.rows - column, width, to);
    else
        read_rows(values + row * x.stride + column, x.stride, x.rows - row, x.columns - column, width, to);
}

inline void read_tile(const View& view, int64_t row, int64_t column, int width, f32* to) {
    switch (view.matrix.type) {
        case Type::kFloat32: return read_elements<float>(view, row, column, width, to);
        case Type::kBfloat16: return read_elements<BFloat16>(view, row, column, width, to);
        case Type::kFloat16: return read_elements<Float16>(view, row, column, width, to);
    }
}
