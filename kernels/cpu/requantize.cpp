// Quantizes the transpose of a quantized matrix, without writing its values to memory.
#include "decode.h"
#include "operand.h"
#include "parallel.h"

struct Source {
    const uint8_t *codes, *scales;
    int64_t rows, groups;
};

// The 32 x 32 codes at row 32 * to_group and column 32 * from_group. Rows that are not there decode to 0.
static void requantize_square(const Source& from, const Grid& grid, const Operand& to, int64_t from_group,
                              int64_t to_group) {
    int64_t row = to_group * kGroup;
    const uint8_t* codes = from.codes + (row * from.groups + from_group) * 16;
    int64_t stride = from.groups * 16;
    uint8_t edge[kGroup * 16] = {};
    int rows = (int)std::min<int64_t>(kGroup, from.rows - row);
    if (rows < kGroup) {
        for (int r = 0; r < rows; ++r) std::memcpy(edge + 16 * r, codes + r * stride, 16);
        codes = edge, stride = 16;
    }
    uint8_t scales[kGroup] = {};
    for (int r = 0; r < rows; ++r) scales[r] = from.scales[(row + r) * from.groups + from_group];
    const int largest = *std::max_element(scales, scales + kGroup);
    Table table[kGroup];
    for (int r = 0; r < kGroup; ++r)
        if (to.quest)
            grid.scaled(scales[r], table[r]);
        else
            Grid::aligned(scales[r] - largest, scales[r] == 255, table[r]);
    for (int lane = 0; lane < kGroup; lane += kLanes) {
        const int64_t to_row = from_group * kGroup + lane;
        if (to.quest)
            quantize_tile(Decoded<false>{codes + lane / 2, stride, table}, to, to_row, to_group);
        else
            quantize_tile(Decoded<true>{codes + lane / 2, stride, table}, to, to_row, to_group, largest - 127);
    }
}

QUARTET_EXPORT void quartet_requantize(const uint8_t* codes, const uint8_t* scales, int64_t rows, int64_t groups,
                                       float shrink, Request* request, int64_t threads) {
    if (!(request->known = request->is_known())) return;
    Source from = {codes, scales, rows, groups};
    Grid grid(shrink);
    Operand to(*request, groups * kGroup, rows, shrink);
#pragma omp parallel for collapse(2) schedule(static) num_threads(useful_threads(rows * groups * kGroup, threads))
    for (int64_t from_group = 0; from_group < groups; ++from_group)
        for (int64_t to_group = 0; to_group < to.groups; ++to_group)
            requantize_square(from, grid, to, from_group, to_group);
}
