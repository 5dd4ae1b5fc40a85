// Quantizes a matrix along its rows, along its columns, or both from one read.
#include "block.h"
#include "operand.h"

static void quantize_rows(const Block& block, const Operand& to, int64_t row, int64_t column) {
    for (int r = 0; r < block.rows; r += kLanes)
        for (int c = 0; c < block.columns; c += kGroup)
            quantize_tile(RowMajor{block.values + r * block.stride + c, block.stride}, to, row + r, (column + c) / kGroup);
}

static void quantize_columns(const Block& block, const Operand& to, int64_t row, int64_t column) {
    for (int c = 0; c < block.columns; c += kLanes)
        for (int r = 0; r < block.rows; r += kGroup)
            quantize_tile(ColumnMajor{block.values + r * block.stride + c, block.stride}, to, column + c, (row + r) / kGroup);
}

QUARTET_EXPORT void quartet_quantize(const void* x, int64_t type, int64_t rows, int64_t columns, int64_t stride,
                                     OPERAND(row), OPERAND(column), int64_t threads) {
    Matrix matrix = {x, (Type)type, rows, columns, stride};
    Operand along_rows = operand(rows, columns, OPERAND_VALUES(row));
    Operand along_columns = operand(columns, rows, OPERAND_VALUES(column));
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row += kBlockRows)
        for (int64_t column = 0; column < columns; column += kBlockColumns) {
            alignas(64) float buffer[kBlockRows * kBlockColumns];
            Block block = block_at(matrix, row, column, buffer);
            if (along_columns.codes) quantize_columns(block, along_columns, row, column);
            if (along_rows.codes) quantize_rows(block, along_rows, row, column);
        }
}
