#pragma once
#include <utility>

#include "moe_layer.h"

// What every device has to pass: the layers that are tried, what may be left out, and indices that point outside.
namespace st_moe::test {

inline const Shape kSmall{"small", 2, 9, 6, 4, 2, 4, 5, {0, 0.3f}};

inline std::vector<Shape> common_shapes() {
  std::vector<Shape> shapes = {
      kSmall,
      {"top-1", 2, 11, 7, 5, 1, 4, 6, {0}},
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
      {"gates not normalised", 2, 10, 6, 5, 3, 4, 4, {0, 0.3f, 0.2f}, kUnnormalized},
      {"gates not normalised, masked, soft", 3, 9, 6, 6, 2, 4, 4, {0, 0.2f}, kUnnormalized | kMasked | kSoft},
      {"kept gates normalised", 2, 12, 6, 4, 3, 4, 4, {0, 0.3f, 0.2f}, kKeptNormalized},
      {"kept gates normalised, masked, soft", 3, 9, 6, 6, 2, 4, 4, {0, 0.2f}, kKeptNormalized | kMasked | kSoft},
      {"second expert always", 2, 9, 6, 4, 2, 4, 5, {0, 1e6f}, kSecondAll},
      {"second expert never", 2, 9, 6, 4, 2, 4, 5, {0, 0}, kSecondNone},
      {"second expert by threshold", 2, 9, 6, 4, 3, 4, 5, {0, 0.3f, 0.1f}, kSecondThreshold | kKeptNormalized},
      {"dropout", 2, 9, 6, 4, 2, 4, 37, {0, 0.3f}, kDropout},
      {"dropout, masked, three choices",
       3,
       9,
       6,
       4,
       3,
       4,
       300,
       {0, 0.3f, 0.2f},
       kDropout | kMasked | kNoStraightThrough},
      {"prioritized", 2, 12, 6, 4, 2, 4, 5, {0, 0.3f}, kPrioritized},
      {"prioritized, masked, kept gates normalised",
       3,
       70,
       6,
       4,
       2,
       9,
       5,
       {0, 0.2f},
       kPrioritized | kMasked | kKeptNormalized},
      {"prioritized top-1, not normalised", 2, 40, 6, 4, 1, 4, 5, {0}, kPrioritized | kUnnormalized},
      {"no token left behind", 2, 40, 6, 5, 3, 4, 5, {0, 0, 0}, kNtlb | kSecondAll | kUnnormalized},
      {"no token left behind, masked, prioritized",
       3,
       40,
       6,
       5,
       4,
       4,
       5,
       {0, 0, 0, 0},
       kNtlb | kSecondAll | kUnnormalized | kMasked | kPrioritized},
      {"importance", 3, 20, 6, 4, 2, 4, 5, {0, 0.3f}, kMasked | kImportance | kAssigned},
      {"importance, three choices, soft", 3, 20, 6, 5, 3, 4, 5, {0, 0.3f, 0.2f}, kMasked | kImportance | kSoft},
      {"importance, kept gates normalised, prioritized",
       3,
       20,
       6,
       5,
       3,
       4,
       5,
       {0, 0.3f, 0.2f},
       kMasked | kImportance | kKeptNormalized | kPrioritized},
      {"importance, top-1", 3, 20, 6, 5, 1, 4, 5, {0}, kMasked | kImportance | kUnnormalized},
      {"importance, no token left behind",
       3,
       20,
       6,
       5,
       3,
       4,
       5,
       {0, 0, 0},
       kMasked | kImportance | kNtlb | kSecondAll | kUnnormalized},
      {"loss of second places", 2, 20, 6, 4, 2, 4, 5, {0, 0.3f}, kSecondLoss},
      {"loss of second places, importance",
       3,
       20,
       6,
       70,
       3,
       4,
       5,
       {0, 0.3f, 0.3f},
       kSecondLoss | kMasked | kImportance | kAssigned,
       4},
      {"sampled", 2, 20, 6, 40, 2, 4, 5, {0, 0.3f}, kSamples, 4},
      {"sampled top-1, drawn", 2, 20, 6, 4, 1, 4, 5, {0}, kSamples | kDrawn | kUnnormalized},
      {"second place", 2, 20, 6, 40, 2, 4, 5, {0, 0.3f}, kSecondPlace, 4},
      {"second place, sampled, drawn", 2, 20, 6, 5, 2, 4, 5, {0, 0.3f}, kSecondPlace | kSecondPlaceSampled | kDrawn},
      {"second place, top-1, masked", 3, 20, 6, 5, 1, 4, 5, {0}, kSecondPlace | kMasked | kUnnormalized},
      {"sigmoid", 2, 9, 6, 5, 3, 4, 4, {0, 0.3f, 0.2f}},
      {"sigmoid, biased choice, masked", 3, 9, 6, 5, 3, 4, 4, {0, 0.3f, 0.2f}, kMasked | kUnnormalized},
      {"sigmoid, top groups, biased choice", 2, 9, 6, 12, 4, 4, 4, {0, 0.1f, 0.1f, 0.1f}, kSecondAll},
      {"sigmoid after top-k", 2, 9, 6, 5, 2, 4, 4, {0, 0.2f}, kUnnormalized},
      {"softmax after top-k, biased choice", 2, 9, 6, 5, 2, 4, 4, {0, 0.2f}, kKeptNormalized},
      {"top groups of one expert, noisy", 2, 9, 6, 6, 2, 4, 4, {0, 0.2f}, kNoisy},
      {"top groups of 40 experts", 1, 9, 6, 80, 3, 4, 4, {0, 0.2f, 0.1f}, 0, 3},
      {"narrow outputs", 2, 9, 9, 4, 2, 4, 5, {0, 0.3f}},
      {"wide outputs without biases", 2, 9, 4, 4, 2, 4, 5, {0, 0.3f}},
      {"no multiplicative bias", 2, 9, 6, 4, 2, 4, 5, {0, 0.3f}},
      {"no biases of plain experts", 2, 9, 6, 4, 2, 4, 5, {0, 0.3f}},
  };
  Shape* last = &shapes.back();
  last[-10].score = last[-9].score = last[-8].score = ScoreFunction::sigmoid;
  last[-9].biased_choice = last[-8].biased_choice = last[-6].biased_choice = true;
  last[-8].groups = 4, last[-8].top_groups = 2;
  last[-7].score = ScoreFunction::sigmoid_after_topk, last[-6].score = ScoreFunction::softmax_after_topk;
  last[-5].groups = 6, last[-5].top_groups = 3;
  last[-4].groups = 2;
  last[-3].output = 2;
  last[-2].output = 19, last[-2].biases = last[-2].multiplicative = false;
  last[-1].multiplicative = false;
  last[0].biases = false, last[0].activation = Activation::silu;
  return shapes;
}

// Samples a problem whose routing does not depend on rounding.
inline Problem clear_problem(const Shape& shape, double margin = 5e-5) {
  for (uint32_t seed = 1;; ++seed) {
    Problem p = make_problem(shape, seed);
    if (seed == 500) expect(false, std::string(shape.name) + ": no clear routing found");
    if (seed == 500 || reference(p).margin > margin) return p;
  }
}

// Relative error of a layer in low precision, if so many roundings add up.
inline double low_precision_limit(DType compute, double roundings) {
  return roundings * (compute == DType::bf16 ? 0x1p-9 : compute == DType::f16 ? 0x1p-12 : 0x1p-17);
}

// Whether f' jumps: then rounding that changes the sign of one pre-activation changes gradients by any amount.
inline bool slope_jumps(Activation activation) {
  return activation == Activation::relu || activation == Activation::reglu || activation == Activation::swiglu_clamped;
}

// All that may be left out: no saved A, no dx, no parameter gradients.
inline void check_optional(const Device& device) {
  const Problem p = make_problem(kSmall, 1);
  Layer<float> full(p, device), part(p, device);
  full.run("full");
  part.assignment = full.assignment, part.ends = full.ends, part.row_of = full.row_of;
  part.weight = full.weight, part.a = full.a;
  part.optional = false;
  expect_ok(part.expert_ffn(), "expert_ffn without saving");
  expect(part.y == full.y, "expert_ffn without saving");
  expect_ok(part.expert_ffn_backward(true, false), "expert_ffn_backward without parameters");
  expect(part.dx == full.dx && part.dweight == full.dweight, "expert_ffn_backward without parameters");
  expect_ok(part.expert_ffn_backward(false, true), "expert_ffn_backward without dx");
  expect(part.dw1 == full.dw1 && part.db1 == full.db1 && part.dw2 == full.dw2, "expert_ffn_backward without dx");
}

// Indices of a plan that point outside are errors of the experts, and touch nothing. `is_complaint` says whether a
// status is the error that the device reports.
inline void check_hostile(const Device& device, bool (*is_complaint)(const Status&), bool slots = false) {
  const Problem p = make_problem(kSmall, 1);
  Layer<float> layer(p, device, DType::f32, slots);
  layer.run("small");
  const auto expect_complaints = [&](Indices& indices, size_t i, int32_t wrong, const std::string& what) {
    const int32_t right = std::exchange(indices[i], wrong);
    expect(is_complaint(layer.expert_ffn()), "no error for " + what + ", expert_ffn");
    expect(is_complaint(layer.expert_ffn_backward()), "no error for " + what + ", expert_ffn_backward");
    indices[i] = right;
  };
  const size_t row = std::find_if(layer.assignment.begin(), layer.assignment.end(), [](int32_t i) { return i >= 0; }) -
                     layer.assignment.begin();
  const int32_t assignments = static_cast<int32_t>(layer.row_of.size()), rows = static_cast<int32_t>(layer.rows());
  for (int32_t wrong : {assignments, INT32_MAX})
    expect_complaints(layer.assignment, row, wrong, "assignment " + std::to_string(wrong));
  for (int32_t wrong : {rows, INT32_MAX}) expect_complaints(layer.row_of, 3, wrong, "row_of " + std::to_string(wrong));
  for (int32_t wrong : {-1, rows + 1, INT32_MAX, INT32_MIN})
    if (!layer.slots) expect_complaints(layer.ends, 1, wrong, "ends " + std::to_string(wrong));
  expect_ok(layer.expert_ffn(), "after errors");

  // Rows that two assignments read, that one assignment has twice, or that nothing reads.
  layer.row_of[3] = layer.row_of[4] = static_cast<int32_t>(row);
  layer.assignment[row + 1] = layer.assignment[row];
  expect_ok(layer.expert_ffn(), "a shared row");
  expect_ok(layer.expert_ffn_backward(), "a shared row");
}

}  // namespace st_moe::test
