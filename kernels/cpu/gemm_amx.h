// The FP4 GEMM on AMX: the sums of gemm_layout.h, by the tile instructions.
//
// A row whose scales span few binades is twice its values over 2^(its least scale), as int8. Sums of these are exact in
// int32 and rounded once; a step multiplies twice as many as one of bf16. Other rows, and NVFP4, are decoded to bf16,
// which is exact too, and summed in float32. The tiles of an output have one kind: integers where all rows of both panels
// can be: of a 640-wide Llama after 60 steps (512 tokens) all panels of W, 60 to 100 % of X's, and of dY's from none to 99 %.
//
// Range: bf16 and float32 lose subnormal numbers here. Values are 2^(scale - largest scale + lift) times E2M1, and the two
// lifts are kLift + 2 together. Each is large enough for its own operand's span, so with both spans at most kSpan no value,
// no term and no sum is subnormal, and sums have the scale of gemm_layout.h's.
#pragma once

#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define QUARTET_AMX

#include "gemm_amx_tile.h"
#include "gemm_parts.h"
#include "gemm_tile.h"

namespace gemm {

// For panels, from 16 cycles a tile instruction and the instructions that pack; not measured, for want of such a machine.
constexpr Cycles kAmxCycles{48, 150, 300};

// Some panels of one operand, packed.
template <class ScalesOf>
class AmxPanels {
public:
    // `panels`: of which there is memory for `count` at a time; packing is of a `lift`, and `turned` for the right operand.
    AmxPanels(const Blocks& x, const ScalesOf& scales, float factor, int lift, bool turned, Range panels, int64_t limit)
        : x_(x), scales_(scales), factor_(factor), lift_(lift), turned_(turned), panels_(panels),
          integer_steps_(ceil_div(x.groups, kIntegerGroups)),
          step_(even_part(panels.size(), limit / int64_t((integer_steps_ + x.groups) * sizeof(AmxStep) + 1))),
          integers_(allocate<AmxStep>(step_ * integer_steps_)), bf16_(allocate<AmxStep>(step_ * x.groups)),
          factors_(allocate<float>(step_ * kPanelRows)), units_(allocate<float>(step_ * kPanelRows)),
          surveys_(allocate<PanelScales>(panels.size())) {
        for (int64_t p = 0; ok() && p < panels.size(); ++p) {
            surveys_[p] = survey_panel(x, scales, panels.begin + p);
            (surveys_[p].integers ? any_integers : any_bf16) = true;
        }
    }

    bool ok() const { return integers_ && bf16_ && factors_ && units_ && surveys_; }
    int64_t step() const { return step_; }

    // Packs those from `begin`, as step() of them at most, in the forms that meet the other operand's.
    void pack(Range range, const AmxPanels& other) {
        first_ = range.begin;
        for (int64_t p = range.begin; p < range.end; ++p) {
            const PanelScales& survey = surveys_[p - panels_.begin];
            const int64_t at = p - first_;
            if (survey.integers && other.any_integers) {
                if constexpr (std::is_same_v<ScalesOf, Scales>) {
                    pack_integers(x_, survey, p, turned_, &integers_[at * integer_steps_]);
                    fill_units(survey, &units_[at * kPanelRows]);
                }
            }
            if (!survey.integers || other.any_bf16)
                pack_bf16(x_, scales_, lift_, p, turned_, &bf16_[at * x_.groups]);
        }
        fill_factors(x_, scales_, range.begin * kPanelRows, range.size() * kPanelRows, factor_, factors_.get());
    }

    bool are_integers(int64_t panel) const { return surveys_[panel - panels_.begin].integers; }
    int64_t integer_steps() const { return integer_steps_; }
    const AmxStep* integers(int64_t panel) const { return &integers_[(panel - first_) * integer_steps_]; }
    const AmxStep* bf16(int64_t panel) const { return &bf16_[(panel - first_) * x_.groups]; }
    const float* units(int64_t panel) const { return &units_[(panel - first_) * kPanelRows]; }
    const float* factors(int64_t panel) const { return &factors_[(panel - first_) * kPanelRows]; }

    bool any_integers = false, any_bf16 = false;

private:
    // What a row's integers are to be multiplied by: they are twice the values, so half of what lifts those.
    void fill_units(const PanelScales& survey, float* units) const {
        for (int i = 0; i < kPanelRows; ++i) {
            const uint32_t bits = scales_.exponent[survey.least[i]] + (uint32_t(127 + lift_ - 1) << kMantissaBits);
            std::memcpy(units + i, &bits, sizeof bits);
        }
    }

    const Blocks& x_;
    const ScalesOf& scales_;
    float factor_;
    int lift_;
    bool turned_;
    Range panels_;
    int64_t integer_steps_, step_, first_ = 0;
    std::unique_ptr<AmxStep[], Free> integers_, bf16_;
    std::unique_ptr<float[], Free> factors_, units_;
    std::unique_ptr<PanelScales[], Free> surveys_;
};

// Outputs are sums * scale * column_factor * row_factor, as of gemm.cpp's Product.
template <class ScalesOf>
struct AmxProduct {
    Blocks a, b;
    const ScalesOf &a_scales, &b_scales;
    float scale, column_factor, row_factor;
    int a_lift, b_lift;

    template <class Element>
    bool run(Element* out, int64_t threads) const {
        const Range rows{0, ceil_div(a.rows, kPanelRows)}, columns{0, ceil_div(b.rows, kPanelRows)};
        return in_parts(rows, columns, a.rows * b.rows * a.groups * kGroup, kAmxCycles, threads,
                        [&](Range r, Range c) { return run_part(out, r, c); });
    }

private:
    template <class Element>
    bool run_part(Element* out, Range rows, Range columns) const {
        AmxPanels<ScalesOf> left(a, a_scales, row_factor, a_lift, false, rows, kRowBytes);
        AmxPanels<ScalesOf> right(b, b_scales, column_factor, b_lift, true, columns, kColumnBytes);
        if (!left.ok() || !right.ok()) return false;
        const AmxState state;
        through_caches(
            rows, columns, left.step(), right.step(), [&](Range r) { left.pack(r, right); },
            [&](Range c) { right.pack(c, left); },
            [&](int64_t r, int64_t c, int64_t, int64_t) { write_panel(left, right, r, c, out); });
        return true;
    }

    template <class Element>
    void write_panel(const AmxPanels<ScalesOf>& left, const AmxPanels<ScalesOf>& right, int64_t r, int64_t c,
                     Element* out) const {
        const int64_t m = r * kPanelRows, n = c * kPanelRows;
        const Place<Element> to{out + m * b.rows + n, b.rows, int(std::min<int64_t>(kPanelRows, a.rows - m)),
                                int(std::min<int64_t>(kPanelRows, b.rows - n))};
        alignas(64) float sums[kPanelRows * kPanelRows];
        prefetch_tile(to);
        if (left.are_integers(r) && right.are_integers(c))
            integer_sums(left.integers(r), right.integers(c), left.integer_steps(), left.units(r), right.units(c), sums);
        else
            bf16_sums(left.bf16(r), right.bf16(c), a.groups, sums);
        store_tile<kPanelRows>(sums, scale, left.factors(r), right.factors(c), to);
    }
};

}  // namespace gemm

#endif
