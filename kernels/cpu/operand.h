// A quantized operand: what is done to its tiles, and where their codes, scales and mask bits go.
#pragma once

#include "encode.h"
#include "entries.h"
#include "scale.h"

// What native.py passes; `known` is set to whether these kernels know it. `seed` is null unless rounding is stochastic.
// `signs` (32 of +-1) and `sign_seed` are null unless signs are random, when one of them is given. `mask` is null if it
// is not wanted.
struct Request {
    int64_t known;
    Scale scale;
    ScaleRounding scale_rounding;
    Rounding rounding;
    int64_t rotation, noise_bits, stream;
    double shrink;
    const int64_t* seed;
    const float* signs;
    const int64_t* sign_seed;
    uint8_t *codes, *scales, *mask;

    bool is_known() const {
        return is_entry(ScaleFormat::kE8m0, scale) && is_entry(scale_rounding) && is_entry(rounding) &&
               scale_rounding != ScaleRounding::kError && scale_rounding != ScaleRounding::kEven && rounding != Rounding::kEden &&
               (scale == Scale::kQuest || scale_rounding == ScaleRounding::kDown) &&
               (rotation == 0 || rotation == kGroup) && (noise_bits == 8 || noise_bits == 16);
    }
};

struct Operand {
    int64_t rows, groups;  // of the logical operand; padded columns are 32 * groups
    bool quest, stochastic;
    int noise_bits;
    int32_t carry;       // of QuEST's scales: see scale.h
    float root, factor;  // from sums of the rotation to values; and what is scaled (values for quest) to the grid
    Rotation rotation;
    PhiloxKey key;
    uint32_t stream;
    uint8_t* codes;   // [rows, 16 * groups]
    uint8_t* scales;  // [rows, groups]
    uint8_t* mask;    // [rows, 4 * groups], or null

    static int32_t carry_of(const Request& request) {
        switch (request.scale_rounding) {
            case ScaleRounding::kNearest: return scale_carry(kRootOfTwo);
            case ScaleRounding::kUp: return scale_carry(1);
            case ScaleRounding::kDown:
            case ScaleRounding::kError:
            case ScaleRounding::kEven: break;
        }
        return 0;
    }

    // `source_shrink`: the input is codes, times it.
    Operand(const Request& request, int64_t rows, int64_t columns, double source_shrink = 1)
        : rows(rows),
          groups(groups_of(columns)),
          quest(request.scale == Scale::kQuest),
          stochastic(request.rounding == Rounding::kStochastic),
          noise_bits((int)request.noise_bits),
          carry(carry_of(request)),
          root((float)(root_of(request.rotation) / source_shrink)),
          factor(quest ? 1.0f : (float)(root_of(request.rotation) / source_shrink * request.shrink)),
          key(request.seed ? *request.seed : 0),
          stream((uint32_t)request.stream),
          codes(request.codes),
          scales(request.scales),
          mask(request.mask) {
        SignBits drawn = request.sign_seed ? philox_signs(*request.sign_seed, request.stream) : SignBits{};
        rotation.on = request.rotation != 0;
        for (int i = 0; i < kGroup; ++i)
            rotation.sign[i] = (request.signs ? request.signs[i] < 0 : drawn.negative(i)) ? INT32_MIN : 0;
    }
};

// Writes the first `lanes` rows of a quantized tile.
QUARTET_INLINE void write_tile(const Operand& to, int64_t row, int64_t group, int lanes, Codes codes, Scales scales,
                               u32 keep) {
    for (int k = 0; k < 4; ++k) codes.dword[k] &= (u32)scales.kept;
    transpose_4x4(codes.dword);
    keep &= (u32)scales.valid;
    const int64_t groups = to.groups, first = row * groups + group;
    uint8_t *to_codes = to.codes + 16 * first, *to_scales = to.scales + first, *to_mask = to.mask;
    for (int lane = 0; lane < lanes; ++lane) {
        std::memcpy(to_codes + 16 * groups * lane, (const char*)&codes.dword[lane % 4] + lane / 4 * 16, 16);
        to_scales[groups * lane] = (uint8_t)((const int32_t*)&scales.byte)[lane];
    }
    if (!to_mask) return;
    for (int lane = 0; lane < lanes; ++lane)
        std::memcpy(to_mask + 4 * (first + groups * lane), (const char*)&keep + 4 * lane, 4);
}

template <int bits>
QUARTET_INLINE Codes encode_with_noise(const Tile& tile, const Operand& to, f32 multiplier, int64_t row, int64_t group) {
    return encode_stochastic<bits>(tile, multiplier, [&](int block, u32 words[4]) {
        noise_words<bits>(to.key, to.stream, row, kGroup * group + 128 / bits * block, words);
    });
}

// Quantizes the tile at logical row `row` and group `group`, of values times 2^exponent.
template <class Source>
QUARTET_INLINE void quantize_tile(const Source& source, const Operand& to, int64_t row, int64_t group,
                                  int32_t exponent = 0) {
    Tile tile;
    Scales scales = to.quest ? rotate_with_quest_scales(source, to.rotation, to.carry, tile)
                             : rotate_with_absmax_scales(source, to.rotation, to.root, splat(exponent), tile);
    u32 keep = ~u32{};
    Codes codes;
    if (to.stochastic) {
        f32 multiplier = power_of_two(scales.exponent + kStochasticUnit) * to.factor;
        codes = to.noise_bits == 8 ? encode_with_noise<8>(tile, to, multiplier, row, group)
                                   : encode_with_noise<16>(tile, to, multiplier, row, group);
    } else if (to.mask) {
        keep = u32{};
        codes = encode_nearest<true>(tile, power_of_two(scales.exponent) * to.factor, keep);
    } else {
        codes = encode_nearest<false>(tile, power_of_two(scales.exponent) * to.factor, keep);
    }
    int64_t left = to.rows - row;
    if (left >= kLanes)
        write_tile(to, row, group, kLanes, codes, scales, keep);
    else
        write_tile(to, row, group, (int)left, codes, scales, keep);
}
