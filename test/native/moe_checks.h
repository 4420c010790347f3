#pragma once
#include <utility>

#include "moe_layer.h"

// What every device has to pass: the layers that are tried, what may be left out, and indices that point outside.
namespace st_moe::test {

inline const Shape kSmall{"small", 2, 9, 6, 4, 2, 4, 5, {0, 0.3f}};

inline std::vector<Shape> common_shapes() {
  return {
      kSmall,
      {"one choice", 2, 11, 7, 5, 1, 4, 6, {0}},
      {"all experts", 2, 8, 5, 3, 3, 8, 7, {0, 0.2f, 0.2f}},
      {"two tokens", 3, 2, 8, 4, 2, 4, 5, {0, 0.2f}},
      {"one token", 1, 1, 8, 4, 2, 4, 5, {0, 0.2f}},
      {"one expert", 1, 6, 4, 1, 1, 4, 3, {0}},
      {"130 experts", 1, 20, 6, 130, 2, 4, 2, {0, 0.2f}, 0, 4},
      {"thresholds", 2, 10, 6, 5, 3, 5, 4, {0, 0, 1e6f}},
      {"tuple", 2, 10, 6, 5, 3, 5, 4, {0, 0.5f, 0.1f}, kNoStraightThrough},
      {"capacity beyond tokens", 2, 5, 6, 4, 2, 9, 5, {0, 0.2f}},
      {"masked", 3, 9, 6, 4, 2, 3, 5, {0, 0.2f}, kMasked},
      {"masked, assigned, noisy", 3, 9, 6, 4, 2, 3, 5, {0, 0.2f}, kMasked | kNoisy | kAssigned},
      {"noisy", 2, 9, 6, 4, 2, 4, 5, {0, 0.2f}, kNoisy},
      {"noisy, drawn", 2, 131, 4, 3, 2, 60, 2, {0, 0.2f}, kNoisy | kDrawn},
      {"differentiable top-k", 2, 9, 6, 8, 2, 4, 5, {0, 0.2f}, kSoft},
      {"differentiable top-k, noisy", 1, 12, 6, 12, 3, 4, 5, {0, 0.2f, 0.2f}, kSoft | kNoisy, 1},
      {"differentiable top-k, 40 experts", 1, 9, 6, 40, 3, 4, 5, {0, 0.2f, 0.2f}, kSoft, 3},
      {"saturated top-k", 1, 9, 6, 2, 2, 4, 5, {0, 0.2f}, kSoft},
      {"evaluation", 2, 9, 6, 4, 2, 4, 5, {0, 0.2f}, kEvaluation},
      {"collapse", 2, 12, 6, 4, 2, 4, 5, {0, 0.2f}, kCollapse},
      {"collapse, assigned", 2, 12, 6, 4, 2, 4, 5, {0, 0.2f}, kCollapse | kAssigned},
  };
}

// Draws a problem whose routing does not depend on rounding.
inline Problem clear_problem(const Shape& shape, double margin = 5e-5) {
  for (uint32_t seed = 1;; ++seed) {
    Problem p = make_problem(shape, seed);
    if (seed == 500) expect(false, std::string(shape.name) + ": no clear routing found");
    if (seed == 500 || reference(p).margin > margin) return p;
  }
}

// All that may be left out: no saved A, no dx, no parameter gradients.
inline void check_optional(const Device& device) {
  const Problem p = make_problem(kSmall, 1);
  Layer<float> full(p, device), part(p, device);
  full.run("full");
  part.index = full.index, part.position = full.position, part.weight = full.weight, part.a = full.a;
  part.optional = false;
  expect_ok(part.expert_ffn(), "expert_ffn without saving");
  expect(part.y == full.y, "expert_ffn without saving");
  expect_ok(part.expert_ffn_backward(true, false), "expert_ffn_backward without parameters");
  expect(part.dx == full.dx && part.dweight == full.dweight, "expert_ffn_backward without parameters");
  expect_ok(part.expert_ffn_backward(false, true), "expert_ffn_backward without dx");
  expect(part.dw1 == full.dw1 && part.db1 == full.db1 && part.dw2 == full.dw2, "expert_ffn_backward without dx");
}

// Indices that point outside are complaints, whatever the op, and touch nothing.
// `is_complaint` says whether a status is the error that the device reports.
inline void check_hostile(const Device& device, bool (*is_complaint)(const Status&)) {
  const Problem p = make_problem(kSmall, 1);
  Layer<float> layer(p, device);
  layer.run("small");
  const auto expect_error = [&](const Status& status, const std::string& what) {
    expect(is_complaint(status), "no error for " + what);
  };
  const auto all_complain = [&](const std::string& what, bool fused) {
    std::vector<float> slots(4 * 2 * 4 * 6), tokens(layer.x), dweight(layer.weight);
    for (int op = 0; op < 4; ++op) {
      Call c(device);
      const int32_t *index = c.in(layer.index), *position = c.in(layer.position);
      const float *x = c.in(layer.x), *in = c.in(slots), *weight = c.in(layer.weight);
      float *out = c.out(slots), *dx = c.out(tokens), *dw = c.out(dweight);
      const DType f32 = DType::f32;
      const Status status =
          op == 0   ? c.run(&OpTable::dispatch, DispatchArgs{x, index, position, out, f32, 2, 9, 6, 4, 2, 4})
          : op == 1 ? c.run(&OpTable::dispatch_backward,
                            DispatchBackwardArgs{in, x, index, position, dx, dw, f32, 2, 9, 6, 4, 2, 4})
          : op == 2 ? c.run(&OpTable::combine, CombineArgs{in, weight, index, position, dx, f32, 2, 9, 6, 4, 2, 4})
                    : c.run(&OpTable::combine_backward,
                            CombineBackwardArgs{x, in, weight, index, position, out, dw, f32, 2, 9, 6, 4, 2, 4});
      expect_error(status, what + ", unfused op " + std::to_string(op));
    }
    if (!fused) return;
    expect_error(layer.expert_ffn(), what + ", expert_ffn");
    expect_error(layer.expert_ffn_backward(), what + ", expert_ffn_backward");
  };
  const size_t kept = std::find(layer.kept.begin(), layer.kept.end(), 1) - layer.kept.begin();
  for (int32_t wrong : {-1, 4, INT32_MAX, INT32_MIN}) {
    const int32_t right = std::exchange(layer.index[kept], wrong);
    all_complain("expert_index " + std::to_string(wrong), true);
    layer.index[kept] = right;
  }
  for (int32_t wrong : {4, INT32_MAX}) {
    const int32_t right = std::exchange(layer.position[kept], wrong);
    // without fixed slots the fused ops only ask whether there is a position
    all_complain("position " + std::to_string(wrong), device.backend->fixed_slots);
    layer.position[kept] = right;
  }
  expect_ok(layer.expert_ffn(), "after errors");

  // Two tokens in one slot: the last one has it.
  std::fill(layer.position.begin(), layer.position.end(), 0);
  std::fill(layer.index.begin(), layer.index.end(), 2);
  std::vector<float> slots(4 * 2 * 4 * 6, -1);
  Call c(device);
  expect_ok(c.run(&OpTable::dispatch, DispatchArgs{c.in(layer.x), c.in(layer.index), c.in(layer.position), c.out(slots),
                                                   DType::f32, 2, 9, 6, 4, 2, 4}),
            "a shared slot");
  for (int64_t b = 0; b < 2; ++b)
    expect(std::equal(&layer.x[(b * 9 + 8) * 6], &layer.x[(b * 9 + 8) * 6] + 6, &slots[((2 * 2 + b) * 4) * 6]),
           "the last token has a shared slot");
  expect_ok(layer.expert_ffn(), "a shared slot");
  expect_ok(layer.expert_ffn_backward(), "a shared slot");
}

}  // namespace st_moe::test
