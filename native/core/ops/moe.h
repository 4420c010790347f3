#pragma once
#include "core/ops/args.h"

namespace st_moe {

// What the scores of a token's experts are divided by: the sum over its K experts, nothing, or the sum over those kept.
ST_MOE_ENUM(GateNormalization, topk, none, kept);

// Which top-1 assignments the load-balancing loss counts: those dispatched, or all.
ST_MOE_ENUM(BalanceDensity, kept, assigned);

// By what a token chooses its experts, and what becomes their gates. softmax, sigmoid: the scores, of which the gates
// are made. The others: the logits, and their softmax (a gate is then divided by the sum over the K) or sigmoid.
ST_MOE_ENUM(ScoreFunction, softmax, sigmoid, softmax_after_topk, sigmoid_after_topk);

// Whether the second and later experts of a token are used: by chance, always, never, or if the gate exceeds a
// threshold.
ST_MOE_ENUM(SecondPolicy, random, all, none, threshold);

enum class Activation : int32_t;  // activation.h

#define ST_MOE_OPS "core/ops/moe.inc"
#include "core/ops/declare.inc"

}  // namespace st_moe
