// Quantizes a matrix along its rows, along its columns, or both from one read.
#include "chunk.h"
#include "operand.h"
#include "parallel.h"

static void quantize_rows(const Chunk& chunk, const Operand& to, int64_t row, int64_t column) {
    for (int r = 0; r < chunk.rows; r += kLanes)
        for (int c = 0; c < chunk.columns; c += kGroup) {
            RowMajor source = {chunk.values + r * chunk.stride + c, chunk.stride};
            quantize_tile(source, to, row + r, (column + c) / kGroup);
        }
}

static void quantize_columns(const Chunk& chunk, const Operand& to, int64_t row, int64_t column) {
    for (int c = 0; c < chunk.columns; c += kLanes)
        for (int r = 0; r < chunk.rows; r += kGroup) {
            ColumnMajor source = {chunk.values + r * chunk.stride + c, chunk.stride};
            quantize_tile(source, to, column + c, (row + r) / kGroup);
        }
}

// `row` and `column` ask for the quantized matrix and for its quantized transpose; either may be null.
QUARTET_EXPORT void quartet_quantize(const void* x, int64_t type, int64_t rows, int64_t columns, int64_t stride,
                                     Request* row, Request* column, int64_t threads) {
    if (row && !(row->known = row->is_known())) return;
    if (column && !(column->known = column->is_known())) return;
    Matrix matrix = {x, (Type)type, rows, columns, stride};
    Operand along_rows(row ? *row : Request(), rows, columns);
    Operand along_columns(column ? *column : Request(), columns, rows);
#pragma omp parallel for collapse(2) schedule(static) num_threads(useful_threads(rows * columns, threads))
    for (int64_t r = 0; r < rows; r += kChunkRows)
        for (int64_t c = 0; c < columns; c += kChunkColumns) {
            alignas(64) float buffer[kChunkRows * kChunkColumns];
            Chunk chunk = chunk_at(matrix, r, c, buffer);
            if (column) quantize_columns(chunk, along_columns, r, c);
            if (row) quantize_rows(chunk, along_rows, r, c);
        }
}
