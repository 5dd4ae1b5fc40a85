// Quantizes a matrix, or its transpose, by any quantizer, panel by panel. For what quantize.cpp knows, this takes 1.4
// times as long: 0.76 ns an element instead of 0.54 for mxfp4-sr (512x1792, one Zen4 core, AVX512).
#include <atomic>

#include "parallel.h"
#include "power_scale.h"
#include "tensor_scale.h"

// The rotated panel at logical row `row` and block `block` of columns, under absmax without the factor of the rotation.
// Inlined it takes registers from what follows: 5 to 10 % of the time of nvfp4-rtn.
__attribute__((noinline)) static void read_panel(const View& from, const Destination& to, int64_t row, int64_t block,
                                                 Panel& panel) {
    panel.tiles = to.tiles, panel.width = to.block;
    for (int t = 0; t < panel.tiles; ++t)
        read_tile(from, row + t * kLanes, block * to.block, to.block, panel.tile(t));
    const int period = std::max((int)to.request.rotation, 16) - 1;
    for (int t = 0; t < panel.tiles; ++t) {
        f32* column = panel.tile(t);
        for (int c = 0; c < panel.width; ++c) {
            i32 bits = (i32)column[c];
            column[c] = (f32)((bits & 0x7fffffff) >= to.zero_below ? bits ^ to.sign[c & period] : i32{});
        }
        rotate_tile(column, panel.width, (int)to.request.rotation, to.absmax ? 1.0f : to.root);
    }
}

// Rounds one group of one tile, scaled, by `bits` random bits an element.
template <int bits>
QUARTET_INLINE void round_by_noise(const Destination& to, const f32* scaled, int64_t row, int64_t group, int count,
                                   u32* dword) {
    constexpr int dwords = 16 / bits;  // of a block of random words
    for (int k = 0; k < count; k += dwords) {
        u32 words[4];
        noise_words<bits>(to.key, to.stream, row, 8 * (group * count + k), words);
        round_stochastic_e2m1<bits>(scaled + 8 * k, words, dword + k);
    }
}

// The codes of one group of one tile, scaled, as `count` dwords.
QUARTET_INLINE void round_e2m1(const Destination& to, const f32* scaled, int64_t row, int64_t group, int count, u32* dword) {
    switch (to.request.rounding) {
        case Rounding::kStochastic:
            if (to.request.noise_bits == 8)
                round_by_noise<8>(to, scaled, row, group, count, dword);
            else
                round_by_noise<16>(to, scaled, row, group, count, dword);
            break;
        case Rounding::kNearest:
        case Rounding::kEden:
            for (int k = 0; k < count; ++k) dword[k] = round_nearest_e2m1(scaled + 8 * k);
            break;
    }
}

// Rounds and writes one group of one tile, scaled.
static void write_group(const Destination& to, const f32* scaled, int64_t row, int64_t group, i32 valid) {
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
static void correct_scales(const Destination& to, const f32* scaled, int64_t row, int64_t group, i32* scale) {
    f32 factor = eden_factor(scaled, to.block);
    u32 words[4];
    philox_words(to.key, to.stream, row, group / 8, words);
    for (int g = 0; g < to.groups_of_block; ++g) {
        int place = (int)((group + g) % 8);
        i32 bits = (i32)(words[place / 2] >> place % 2 * 16 & 0xffff);
        scale[g] = to.two_level ? e4m3_stochastic(e4m3_magnitude(scale[g]) * factor, bits)
                                : corrected_power(scale[g], factor, bits);
    }
}

static void quantize_panel(const View& from, const Destination& to, int64_t row, int64_t block, float of_tensor) {
    Panel panel;
    i32 scale[kMaxTiles * kMaxBlock / 16], valid[kMaxTiles * kMaxBlock / 16];
    read_panel(from, to, row, block, panel);
    const bool eden = to.request.rounding == Rounding::kEden;
    const int64_t first_group = block * to.groups_of_block;
    for (int g = 0; g < to.groups_of_block; ++g) {
        i32 *of_group = scale + g * panel.tiles, *good = valid + g * panel.tiles;
        if (to.two_level)
            scale_by_e4m3(to, panel, g * to.group, of_tensor, of_group, good);
        else
            scale_by_power(to, panel, g * to.group, of_group, good);
        for (int t = 0; t < panel.tiles && row + t * kLanes < to.rows; ++t)
            write_group(to, panel.tile(t) + g * to.group, row + t * kLanes, first_group + g, good[t]);
    }
    if (eden) correct_scales(to, panel.tile(0), row, first_group, scale);
    for (int g = 0; g < to.groups_of_block; ++g)
        for (int t = 0; t < panel.tiles && row + t * kLanes < to.rows; ++t) {
            i32 byte = scale[g * panel.tiles + t], good = valid[g * panel.tiles + t];
            if (to.two_level) byte = good ? byte : splat(kE4m3Nan);
            write_scales(to, row + t * kLanes, first_group + g, byte);
        }
}

// The bits of the largest magnitude of one panel's valid groups.
static int32_t largest_of_panel(const View& from, const Destination& to, int64_t row, int64_t block) {
    Panel panel;
    i32 largest[kMaxTiles], valid[kMaxTiles], most = {};
    read_panel(from, to, row, block, panel);
    for (int g = 0; g < to.groups_of_block; ++g) {
        largest_of_valid(to, panel, g * to.group, largest, valid);
        for (int t = 0; t < panel.tiles; ++t) most = larger(most, largest[t]);
    }
    agree_on_largest(&most, 1);
    return most[0];
}

// Calls `work(row, block)` for every panel, in the order in which the matrix lies in memory.
template <class Work>
static void for_each_panel(const View& from, const Destination& to, int64_t threads, const Work& work) {
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
    const Destination to(*request, from.rows(), from.columns());
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
