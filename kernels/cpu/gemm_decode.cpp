// MXFP4 to float32, for products by torch.mm.
#include "decode.h"

// out[row, k] = value of codes[row, k] * 2^(scales[row, k / 32] - 127).
QUARTET_EXPORT void quartet_decode(const uint8_t* codes, const uint8_t* scales, float* out, int64_t rows,
                                   int64_t groups, int64_t threads) {
    const Grid grid(1.0f);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t group = 0; group < rows * groups; ++group) {
        Table table;
        grid.scaled(scales[group], table);
        for (int k = 0; k < 32; k += kLanes) store(out + group * 32 + k, decode(codes + group * 16 + k / 2, table));
    }
}
