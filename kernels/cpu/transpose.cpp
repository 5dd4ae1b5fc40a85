// The transpose of an operand in square blocks: codes as they are, scales one a block. Memory bound but for the turn of
// bytes: a strip of rows is turned by tiles that stay in L1, so that what is written lies in whole lines.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "operand.h"
#include "parallel.h"

static const int64_t kTile = 64;  // bytes of a row, and bytes of a row of the result

// Two rows of nibbles as bytes: columns 2i and 2i + 1, the first row in the low nibble.
static void pair_rows(const uint8_t* first, const uint8_t* second, int64_t bytes, uint8_t* even, uint8_t* odd) {
    for (int64_t i = 0; i < bytes; ++i) {
        even[i] = (uint8_t)((first[i] & 15) | (second[i] << 4));
        odd[i] = (uint8_t)((first[i] >> 4) | (second[i] & 0xf0));
    }
}

// `height` rows of `width` bytes, `kTile` apart, to rows of the result that are `stride` apart.
static void turn(const uint8_t* tile, int64_t height, int64_t width, uint8_t* to, int64_t stride, int64_t step) {
    for (int64_t column = 0; column < width; ++column)
        for (int64_t row = 0; row < height; ++row) to[column * step * stride + row] = tile[row * kTile + column];
}

// codes: uint8[rows, row_bytes], to uint8[columns, full / packed]; `packed` codes a byte, the first in the low nibble.
// `full` is `rows` padded by codes 0.
static void turn_codes(const uint8_t* codes, int64_t rows, int64_t row_bytes, int64_t packed, int64_t full, uint8_t* to,
                       int64_t threads) {
    const int64_t stride = full / packed, strips = (stride + kTile - 1) / kTile;
#pragma omp parallel for schedule(static) num_threads(useful_threads(rows * row_bytes, threads))
    for (int64_t strip = 0; strip < strips; ++strip) {
        alignas(64) uint8_t zeros[kTile] = {0}, even[kTile * kTile], odd[kTile * kTile];
        const int64_t first = strip * kTile, height = std::min(kTile, stride - first);
        for (int64_t byte = 0; byte < row_bytes; byte += kTile) {
            const int64_t width = std::min(kTile, row_bytes - byte);
            const auto row_at = [&](int64_t row) { return row < rows ? codes + row * row_bytes + byte : zeros; };
            for (int64_t i = 0; i < height; ++i)
                if (packed == 2)
                    pair_rows(row_at(2 * (first + i)), row_at(2 * (first + i) + 1), width, even + i * kTile, odd + i * kTile);
                else
                    memcpy(even + i * kTile, row_at(first + i), width);
            turn(even, height, width, to + packed * byte * stride + first, stride, packed);
            if (packed == 2) turn(odd, height, width, to + (2 * byte + 1) * stride + first, stride, packed);
        }
    }
}

// scales: uint8[rows, groups], alike in each block of `group` rows, to uint8[groups * group, full / group].
QUARTET_EXPORT void quartet_transpose(const uint8_t* codes, const uint8_t* scales, int64_t rows, int64_t groups,
                                      int64_t group, int64_t packed, int64_t full, uint8_t* to, uint8_t* to_scales,
                                      int64_t threads) {
    turn_codes(codes, rows, groups * group / packed, packed, full, to, threads);
    const int64_t blocks = full / group;
    for (int64_t column = 0; column < groups; ++column) {
        uint8_t* line = to_scales + column * group * blocks;
        for (int64_t block = 0; block < blocks; ++block) line[block] = scales[block * group * groups + column];
        for (int64_t copy = 1; copy < group; ++copy) memcpy(line + copy * blocks, line, blocks);
    }
}
