// A quantized operand of any quantizer: what is done to its panels, and where their codes, scales and mask bits go.
#pragma once

#include "entries.h"
#include "philox.h"
#include "panel.h"

// What native.py passes: the fields of a Quantizer; `top` is 6 / headroom. `known` is set to whether these kernels know
// them. `seed` is null unless something is rounded by random bits. `signs` (of +-1) and `sign_seed` are null unless signs
// are random, when one of them is given. `tensor_scale` is null unless scales are E4M3, `mask` if it is not wanted.
struct AnyRequest {
    int64_t known;
    Elements elements;
    ScaleFormat scale_format;
    Scale scale;
    ScaleRounding scale_rounding;
    Rounding rounding;
    int64_t group, group_rows, rotation, noise_bits, stream;
    double shrink, top, largest_scale;
    const int64_t* seed;
    const float* signs;
    const int64_t* sign_seed;
    uint8_t *codes, *scales;
    float* tensor_scale;
    uint8_t* mask;

    bool is_known() const {
        const int64_t block = std::max(group, rotation);
        return is_entry(elements) && is_entry(scale_format, scale) && is_entry(scale_rounding) && is_entry(rounding) &&
               (group == 16 || group == 32) && (group_rows == 1 || group_rows == group) && rotation >= 0 &&
               block <= kMaxBlock && (block & (block - 1)) == 0 && (noise_bits == 8 || noise_bits == 16);
    }
};

struct Destination {
    AnyRequest request;
    int64_t rows;
    int group, block, groups_of_block, tiles;  // tiles: of a panel
    int64_t blocks, groups;                    // of a row
    bool square, two_level, absmax;            // absmax: the scale, if it is a power of two
    int32_t zero_below;                        // the bits of it: smaller inputs count as +0, of either sign
    int32_t sign[kMaxBlock];                   // 0, or the sign bit
    float root, factor;  // of the rotation; and times the shrink: what brings sums to values, and to the grid
    float top, largest_scale;
    PhiloxKey key;
    uint32_t stream;

    Destination(const AnyRequest& of, int64_t rows, int64_t columns)
        : request(of),
          rows(rows),
          group((int)of.group),
          block((int)std::max(of.group, of.rotation)),
          groups_of_block(block / group),
          tiles(of.group_rows > 1 ? (int)of.group_rows / kLanes : 1),
          blocks((columns + block - 1) / block),
          groups(blocks * groups_of_block),
          square(of.group_rows > 1),
          two_level(of.scale_format == ScaleFormat::kE4m3),
          absmax(of.scale == Scale::kAbsmax && !two_level),
          zero_below(!two_level ? 0 : of.rotation > 64 ? (127 - 99) << 23 : (127 - 100) << 23),
          root((float)root_of(of.rotation)),
          factor((float)(root_of(of.rotation) * of.shrink)),
          top((float)of.top),
          largest_scale((float)of.largest_scale),
          key(of.seed ? *of.seed : 0),
          stream((uint32_t)of.stream) {
        SignBits drawn = of.sign_seed ? philox_signs(*of.sign_seed, of.stream) : SignBits{};
        for (int i = 0; i < kMaxBlock; ++i) {
            bool given = of.signs && i < of.rotation && of.signs[i] < 0;
            sign[i] = given || drawn.negative(i) ? INT32_MIN : 0;
        }
    }

    int64_t panel_rows() const { return (int64_t)tiles * kLanes; }
};

// Writes the codes of `group` columns of one tile: `count` dwords of each row.
QUARTET_INLINE void write_codes(const Destination& to, int64_t row, int64_t group, u32* dword, int count) {
    const int64_t bytes = 4 * count, stride = to.groups * bytes;
    const int lanes = (int)std::min<int64_t>(kLanes, to.rows - row);
    for (int k = 0; k < count; k += 4) {
        transpose_4x4(dword + k);
        uint8_t* first = to.request.codes + row * stride + group * bytes + 4 * k;
        const char* from = (const char*)(dword + k);
        if (count < 4)
            for (int lane = 0; lane < lanes; ++lane)
                std::memcpy(first + lane * stride, from + lane % 4 * sizeof(u32) + lane / 4 * 16, 8);
        else
            for (int lane = 0; lane < lanes; ++lane)
                std::memcpy(first + lane * stride, from + lane % 4 * sizeof(u32) + lane / 4 * 16, 16);
    }
}

QUARTET_INLINE void write_scales(const Destination& to, int64_t row, int64_t group, i32 byte) {
    const int lanes = (int)std::min<int64_t>(kLanes, to.rows - row);
    uint8_t* first = to.request.scales + row * to.groups + group;
    for (int lane = 0; lane < lanes; ++lane) first[lane * to.groups] = (uint8_t)((const int32_t*)&byte)[lane];
}

QUARTET_INLINE void write_mask(const Destination& to, int64_t row, int64_t group, u32 keep) {
    const int lanes = (int)std::min<int64_t>(kLanes, to.rows - row), bytes = to.group / 8;
    uint8_t* first = to.request.mask + (row * to.groups + group) * bytes;
    for (int lane = 0; lane < lanes; ++lane)
        std::memcpy(first + lane * to.groups * bytes, (const char*)&keep + 4 * lane, bytes);
}
