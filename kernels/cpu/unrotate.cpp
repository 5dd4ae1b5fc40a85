// The backward pass of a rotation and its trust mask: (x where the mask's bit is set, else 0) @ H^T.
//
// Unlike in a tile, a vector holds consecutive columns, since masks and outputs lie along rows too: transposing in and
// out would take as many shuffles as the butterflies do. 0.22 ns an element on one Zen4 core, with any rotation, where
// a copy takes 0.10.
#include "element.h"
#include "hadamard.h"
#include "parallel.h"

template <int stride>
struct Partner {
    static constexpr int of(int lane) { return lane ^ stride; }
};

// Butterflies at `stride` and above. Between lanes, lane i becomes its partner plus itself, or minus itself if i has
// the stride's bit.
template <int size, int stride>
QUARTET_INLINE void butterflies_from_stride(f32* v) {
    constexpr int vectors = size / kLanes;
    if constexpr (stride < kLanes) {
        i32 negate;
        for (int lane = 0; lane < kLanes; ++lane) negate[lane] = lane & stride ? INT32_MIN : 0;
        for (int i = 0; i < vectors; ++i) v[i] = shuffle<Partner<stride>>(v[i], v[i]) + (f32)((i32)v[i] ^ negate);
    } else {
        butterflies<vectors, stride / kLanes>(v);
    }
    if constexpr (2 * stride < size) butterflies_from_stride<size, 2 * stride>(v);
}

QUARTET_INLINE f32 select(f32 value, uint32_t bits) {
    i32 bit;
    for (int lane = 0; lane < kLanes; ++lane) bit[lane] = 1 << lane;
    return (splat((int32_t)bits) & bit) != 0 ? value : f32{};
}

// `size` columns at a time, which are a block of the rotation if `rotate`.
template <int size, bool rotate, class Element>
static void unrotate_row(const Element* x, const uint8_t* mask, Element* out, int64_t columns) {
    constexpr int vectors = size / kLanes;
    for (int64_t column = 0; column < columns; column += size) {
        f32 v[vectors];
        for (int i = 0; i < vectors; ++i) {
            const int64_t first = column + i * kLanes;
            v[i] = widen(x + first);
            if (mask) v[i] = select(v[i], load<uint16_t>(mask + first / 16 * 2) >> first % 16);
        }
        if constexpr (rotate) {
            butterflies_from_stride<size, 1>(v);
            for (int i = 0; i < vectors; ++i) v[i] = v[i] * hadamard_scale(size);
        }
        Element edge[size];
        Element* to = columns - column < size ? edge : out + column;
        for (int i = 0; i < vectors; ++i) narrow(v[i], to + i * kLanes);
        if (to == edge) std::memcpy(out + column, edge, (columns - column) * sizeof(Element));
    }
}

struct Unrotation {
    const void* x;
    const uint8_t* mask;  // or null
    void* out;
    int64_t rows, columns, padded, threads;

    template <int size, bool rotate, class Element>
    void run() const {
#pragma omp parallel for schedule(static) num_threads(useful_threads(rows * columns, threads))
        for (int64_t row = 0; row < rows; ++row)
            unrotate_row<size, rotate>((const Element*)x + row * padded, mask ? mask + row * padded / 8 : nullptr,
                                       (Element*)out + row * columns, columns);
    }

    template <class Element>
    void run(int64_t rotation) const {
        switch (rotation) {
            case 0: return run<16, false, Element>();
            case 16: return run<16, true, Element>();
            case 32: return run<32, true, Element>();
            case 64: return run<64, true, Element>();
            case 128: return run<128, true, Element>();
        }
    }
};

// x: [rows, padded], a multiple of the rotation and of 16.
QUARTET_EXPORT void quartet_unrotate(const void* x, const uint8_t* mask, void* out, int64_t type, int64_t rows,
                                     int64_t columns, int64_t padded, int64_t rotation, int64_t threads) {
    const Unrotation all = {x, mask, out, rows, columns, padded, threads};
    switch ((Type)type) {
        case Type::kFloat32: return all.run<float>(rotation);
        case Type::kBfloat16: return all.run<BFloat16>(rotation);
        case Type::kFloat16: return all.run<Float16>(rotation);
    }
}
