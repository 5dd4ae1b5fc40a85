// Quantizes a matrix, or its transpose, by any quantizer, panel by panel. For what quantize.cpp knows, this takes 1.4
// times as long: 0.76 ns an element instead of 0.54 for mxfp4-sr (512x1792, one Zen4 core, AVX512).
#include <atomic>

#include "parallel.h"
#include "power_scale.h"
#include "tensor_scale.h"

// Multiplies the rows whose largest is below 2^-63 by 2^64, of a square block all or none, and says which: 64 or 0.
static void lift_panel(const Target& to, Panel& panel, i32* lift) {
    i32 largest[kMaxTiles];
    for (int t = 0; t < panel.tiles; ++t) largest[t] = largest_bits(panel.tile(t), panel.width);
    if (to.square) agree_on_largest(largest, panel.tiles);
    for (int t = 0; t < panel.tiles; ++t) {
        lift[t] = (largest[t] < (127 - 63) << 23) & 64;
        if (!any(lift[t] != 0)) continue;
        for (int c = 0; c < panel.width; ++c) {
            i32 bits = (i32)panel.tile(t)[c];
            panel.tile(t)[c] = (f32)(bits & ((bits & kInfinity) != 0)) * power_of_two(lift[t]);
        }
    }
}

// The rotated panel at logical row `row` and block `block` of columns.
static void read_panel(const View& from, const Target& to, int64_t row, int64_t block, Panel& panel, i32* lift) {
    panel.tiles = to.tiles, panel.width = to.block;
    for (int t = 0; t < panel.tiles; ++t) {
        read_tile(from, row + t * kLanes, block * to.block, to.block, panel.tile(t));
        lift[t] = i32{};
    }
    if (to.lifts) lift_panel(to, panel, lift);
    const int period = std::max((int)to.request.rotation, 16) - 1;
    for (int t = 0; t < panel.tiles; ++t) {
        f32* column = panel.tile(t);
        for (int c = 0; c < panel.width; ++c) {
            i32 bits = (i32)column[c];
            column[c] = (f32)((bits & 0x7fffffff) >= to.zero_below ? bits ^ to.sign[c & period] : i32{});
        }
        rotate_tile(column, panel.width, (int)to.request.rotation);
    }
}

// The codes of one group of one tile, scaled, as `count` dwords.
QUARTET_INLINE void round_e2m1(const Target& to, const f32* scaled, int64_t row, int64_t group, int count, u32* dword) {
    switch (to.request.rounding) {
        case Rounding::kStochastic:
            for (int k = 0; k < count; ++k) {
                u32 noise[4];
                philox_noise(to.key, to.stream, row, group * count + k, noise);
                dword[k] = round_stochastic_e2m1(scaled + 8 * k, noise);
            }
            break;
        case Rounding::kNearest:
        case Rounding::kEden:
            for (int k = 0; k < count; ++k) dword[k] = round_nearest_e2m1(scaled + 8 * k);
            break;
    }
}

// Rounds and writes one group of one tile, scaled.
static void write_group(const Target& to, const f32* scaled, int64_t row, int64_t group, i32 valid) {
    u32 dword[8] = {};
    int count = 0;
    switch (to.request.elements) {
        case Elements::kE4m3:
            count = to.group / 4;
            for (int k = 0; k < count; ++k) dword[k] = round_nearest_e4m3(scaled + 4 * k);
            break;
        case Elements::kE2m1:
            count = to.group / 8;
            round_e2m1(to, scaled, row, group, count, dword);
            break;
    }
    write_codes(to, row, group, dword, count);
    if (!to.request.mask) return;
    u32 keep = ~u32{};
    if (to.request.elements == Elements::kE2m1 && !to.two_level) {
        keep = u32{};
        for (int c = 0; c < to.group; ++c) keep |= (u32)(magnitude(scaled[c]) < 6.0f) & (1u << c);
    }
    write_mask(to, row, group, keep & (u32)valid);
}

// EDEN's scales of the groups of one tile, whose columns are scaled.
static void correct_scales(const Target& to, const f32* scaled, int64_t row, int64_t group, const i32* nonzero,
                           i32* scale) {
    f32 factor = eden_factor(scaled, to.block);
    u32 noise[4];
    philox_noise(to.key, to.stream, row, group / 8, noise);
    for (int g = 0; g < to.groups_of_block; ++g) {
        int place = (int)((group + g) % 8);
        i32 bits = (i32)(noise[place / 2] >> place % 2 * 16 & 0xffff);
        scale[g] = to.two_level ? e4m3_stochastic(e4m3_magnitude(scale[g]) * factor, bits)
                                : corrected_power(scale[g], factor, bits, nonzero[g]);
    }
}

static void quantize_panel(const View& from, const Target& to, int64_t row, int64_t block, float of_tensor) {
    Panel panel;
    i32 lift[kMaxTiles], scale[kMaxTiles * kMaxBlock / 16], valid[kMaxTiles * kMaxBlock / 16];
    i32 nonzero[kMaxBlock / 16];
    read_panel(from, to, row, block, panel, lift);
    const bool eden = to.request.rounding == Rounding::kEden;
    const int64_t first_group = block * to.groups_of_block;
    for (int g = 0; g < to.groups_of_block; ++g) {
        i32 *of_group = scale + g * panel.tiles, *good = valid + g * panel.tiles;
        if (eden) nonzero[g] = largest_bits(panel.tile(0) + g * to.group, to.group) != 0;
        if (to.two_level)
            scale_by_e4m3(to, panel, g * to.group, of_tensor, of_group, good);
        else
            scale_by_power(to, panel, g * to.group, lift, of_group, good);
        for (int t = 0; t < panel.tiles && row + t * kLanes < to.rows; ++t)
            write_group(to, panel.tile(t) + g * to.group, row + t * kLanes, first_group + g, good[t]);
    }
    if (eden) correct_scales(to, panel.tile(0), row, first_group, nonzero, scale);
    for (int g = 0; g < to.groups_of_block; ++g)
        for (int t = 0; t < panel.tiles && row + t * kLanes < to.rows; ++t) {
            i32 byte = scale[g * panel.tiles + t], good = valid[g * panel.tiles + t];
            if (to.two_level) byte = good ? byte : splat(kE4m3Nan);
            write_scales(to, row + t * kLanes, first_group + g, byte);
        }
}

// The bits of the largest magnitude of one panel's valid groups.
static int32_t largest_of_panel(const View& from, const Target& to, int64_t row, int64_t block) {
    Panel panel;
    i32 lift[kMaxTiles], largest[kMaxTiles], valid[kMaxTiles], most = {};
    read_panel(from, to, row, block, panel, lift);
    for (int g = 0; g < to.groups_of_block; ++g) {
        largest_of_valid(to, panel, g * to.group, largest, valid);
        for (int t = 0; t < panel.tiles; ++t) most = larger(most, largest[t]);
    }
    agree_on_largest(&most, 1);
    return most[0];
}

// Calls `work(row, block)` for every panel, in the order in which the matrix lies in memory.
template <class Work>
static void for_each_panel(const View& from, const Target& to, int64_t threads, const Work& work) {
    const int64_t panels = (to.rows + to.panel_rows() - 1) / to.panel_rows();
    const int64_t outer = from.transposed ? to.blocks : panels, inner = from.transposed ? panels : to.blocks;
    threads = useful_threads(to.rows * to.blocks * to.block, threads);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t i = 0; i < outer; ++i)
        for (int64_t j = 0; j < inner; ++j)
            work((from.transposed ? j : i) * to.panel_rows(), from.transposed ? i : j);
}

// `transposed` asks for the quantized transpose of the matrix.
QUARTET_EXPORT void quartet_quantize_any(const void* x, int64_t type, int64_t rows, int64_t columns, int64_t stride,
                                         int64_t transposed, AnyRequest* request, int64_t threads) {
    if (!(request->known = request->is_known())) return;
    const View from = {{x, (Type)type, rows, columns, stride}, transposed != 0};
    const Target to(*request, from.rows(), from.columns());
    float of_tensor = 1.0f;
    if (to.two_level) {
        std::atomic<int32_t> most{0};  // the maximum doesn't depend on the order in which threads find it
        for_each_panel(from, to, threads, [&](int64_t row, int64_t block) {
            const int32_t bits = largest_of_panel(from, to, row, block);
            for (int32_t seen = most; bits > seen && !most.compare_exchange_weak(seen, bits);) {}
        });
        const int32_t bits = most;
        of_tensor = *to.request.tensor_scale = tensor_scale(to, load<float>(&bits));
    }
    for_each_panel(from, to, threads, [&](int64_t row, int64_t block) {
        quantize_panel(from, to, row, block, of_tensor);
    });
}
