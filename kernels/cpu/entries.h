// What these kernels know of the tables of kernels/quantizer.py, and the types of elements. The numbers are here and nowhere
// else: entries.py reads them, and refuses what is not here. Every `switch` over them is complete (-Werror=switch).
#pragma once

#include <cstdint>

enum class Elements : int64_t { kE2m1, kE4m3 };
enum class ScaleFormat : int64_t { kE8m0, kE4m3 };
enum class Scale : int64_t { kAbsmax, kQuest, kFourOverSix };
enum class ScaleRounding : int64_t { kDown, kNearest, kUp, kError, kEven };
enum class Rounding : int64_t { kNearest, kStochastic, kEden };
enum class Type : int64_t { kFloat32, kBfloat16, kFloat16 };

// Whether a number that came from outside is one of them.
inline bool is_entry(Elements x) {
    switch (x) {
        case Elements::kE2m1:
        case Elements::kE4m3: return true;
    }
    return false;
}

inline bool is_entry(ScaleRounding x) {
    switch (x) {
        case ScaleRounding::kDown:
        case ScaleRounding::kNearest:
        case ScaleRounding::kUp:
        case ScaleRounding::kError:
        case ScaleRounding::kEven: return true;
    }
    return false;
}

inline bool is_entry(Rounding x) {
    switch (x) {
        case Rounding::kNearest:
        case Rounding::kStochastic:
        case Rounding::kEden: return true;
    }
    return false;
}

// Whether scales of this format can be chosen so.
inline bool is_entry(ScaleFormat format, Scale x) {
    const bool e8m0 = format == ScaleFormat::kE8m0, e4m3 = format == ScaleFormat::kE4m3;
    switch (x) {
        case Scale::kAbsmax: return e8m0 || e4m3;
        case Scale::kQuest: return e8m0;
        case Scale::kFourOverSix: return e4m3;
    }
    return false;
}
