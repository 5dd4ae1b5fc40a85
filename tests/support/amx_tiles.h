// The tile instructions of AMX in plain C++, for a CPU that lacks them: `-include amx_tiles.h`. Shapes are those of the tile
// configuration, and what the instruction would refuse ends the process. `amx_tiles_products` says how many of a kind ran.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbf16ps

namespace amx_tiles {

struct Tile {
    int rows, bytes;
    uint8_t row[16][64];
};

struct State {
    bool configured = false;
    Tile tile[8];
};

inline State& state() {
    static thread_local State state;
    return state;
}

inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "AMX: %s\n", what);
    std::abort();
}

inline Tile& tile(int number) {
    require(state().configured, "no tile configuration is loaded");
    return state().tile[number];
}

inline void load_config(const void* from) {
    uint8_t bytes[64];
    std::memcpy(bytes, from, sizeof bytes);
    require(bytes[0] == 1, "the palette is not 1");
    for (int i = 1; i < 16; ++i) require(bytes[i] == 0, "a reserved byte, or start_row, is not 0");
    State& to = state();
    to.configured = true;
    for (int i = 0; i < 8; ++i) {
        uint16_t width;
        std::memcpy(&width, bytes + 16 + 2 * i, 2);
        require(width <= 64 && bytes[48 + i] <= 16, "a tile is too large");
        to.tile[i].rows = bytes[48 + i], to.tile[i].bytes = width;
    }
}

inline void load(int number, const void* from, int64_t stride) {
    Tile& to = tile(number);
    std::memset(to.row, 0, sizeof to.row);
    for (int r = 0; r < to.rows; ++r) std::memcpy(to.row[r], (const char*)from + r * stride, to.bytes);
}

inline void store(int number, void* to, int64_t stride) {
    const Tile& from = tile(number);
    for (int r = 0; r < from.rows; ++r) std::memcpy((char*)to + r * stride, from.row[r], from.bytes);
}

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

inline float bf16(const uint8_t* from) {
    uint32_t bits = uint32_t(from[1]) << 24 | uint32_t(from[0]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return flushed(value);
}

inline std::atomic<int64_t> int8_products{0}, bf16_products{0};

template <class Cell, class Add>
void multiply(int sums, int left, int right, const Add& add) {
    Tile &c = tile(sums), &a = tile(left), &b = tile(right);
    require(sums != left && sums != right && left != right, "a tile is used twice");
    require(a.rows == c.rows && b.bytes == c.bytes && a.bytes == 4 * b.rows, "the shapes of tiles don't fit");
    for (int m = 0; m < c.rows; ++m)
        for (int n = 0; n < c.bytes / 4; ++n) {
            Cell cell;
            std::memcpy(&cell, c.row[m] + 4 * n, 4);
            cell = add(cell, a.row[m], b, n);
            std::memcpy(c.row[m] + 4 * n, &cell, 4);
        }
}

inline void dpbssd(int sums, int left, int right) {
    ++int8_products;
    multiply<int32_t>(sums, left, right, [](int32_t cell, const uint8_t* row, const Tile& b, int n) {
        for (int k = 0; k < b.rows; ++k)
            for (int i = 0; i < 4; ++i) cell += int8_t(row[4 * k + i]) * int8_t(b.row[k][4 * n + i]);
        return cell;
    });
}

// Even and odd elements are summed apart, then added to the cell.
inline void dpbf16ps(int sums, int left, int right) {
    ++bf16_products;
    multiply<float>(sums, left, right, [](float cell, const uint8_t* row, const Tile& b, int n) {
        float part[2] = {};
        for (int k = 0; k < b.rows; ++k)
            for (int i = 0; i < 2; ++i)
                part[i] = flushed(std::fma(bf16(row + 4 * k + 2 * i), bf16(b.row[k] + 4 * n + 2 * i), part[i]));
        return flushed(flushed(cell) + flushed(part[0] + part[1]));
    });
}

}  // namespace amx_tiles

extern "C" __attribute__((visibility("default"), used)) inline int64_t amx_tiles_products(int bf16) {
    return bf16 ? amx_tiles::bf16_products : amx_tiles::int8_products;
}

#define _tile_loadconfig(from) amx_tiles::load_config(from)
#define _tile_release() (amx_tiles::state().configured = false)
#define _tile_zero(to) std::memset(amx_tiles::tile(to).row, 0, sizeof amx_tiles::tile(to).row)
#define _tile_loadd(to, from, stride) amx_tiles::load(to, from, stride)
#define _tile_stored(from, to, stride) amx_tiles::store(from, to, stride)
#define _tile_dpbssd(sums, left, right) amx_tiles::dpbssd(sums, left, right)
#define _tile_dpbf16ps(sums, left, right) amx_tiles::dpbf16ps(sums, left, right)
