#pragma once
#include <cstddef>
#include <cstdint>

#include "core/activation.h"
#include "core/dtype.h"
#include "core/error.h"
#include "core/pack.h"

// What each op is given: plain data, so that a backend may live in a plugin.
//
// Letters: B sequences, N tokens a sequence, T = B·N tokens, D model width, E experts, K choices a token,
// C capacity (slots of one expert for one sequence), H expert hidden width, V vocabulary, R rows.
// Tensors are contiguous and row-major. `dtype` is f32 or f64 unless said otherwise, and holds for every
// pointer declared `void*`; index tensors are i32. A pointer marked "or null" may be left out.
// `compute` is what the operands of matrix products are rounded to (nearest even) before they are multiplied: dtype
// itself, or bf16 or f16 where dtype is f32. Products are added in dtype.
// Ops never read what they are to write, and never write their inputs.
namespace st_moe {

constexpr int kMaxRank = 8;

struct Status {
  ErrorCode code;
  char text[kErrorText];
};

// What a call may use.
struct Context {
  int32_t threads;  // CPU threads; results never depend on it
  void* stream;  // a plugin's own: the stream, and what goes with it, of one environment on one device; null on the CPU
};

template <class Args>
using Op = Status (*)(const Context&, const Args&);

// ---- creation, copies -------------------------------------------------------------------------------------

struct FillArgs {  // any dtype
  void* out;
  DType dtype;
  int64_t size;
  double value;  // rounded to dtype
};

enum class Distribution : int32_t { uniform, normal };

struct RandomArgs {  // f32 or f64; element i depends on (seed, step, i) alone
  void* out;
  DType dtype;
  int64_t size;
  Distribution distribution;
  double a, b;  // uniform on [a, b); normal with mean a and standard deviation b
  uint64_t seed, step;
};

struct ConvertArgs {  // between any two dtypes; i32 from floating point truncates and saturates, NaN gives 0
  const void* in;
  void* out;
  DType in_dtype, out_dtype;
  int64_t size;
};

struct StridedCopyArgs {  // out[offset + Σ i·out_stride] = in[offset + Σ i·in_stride]; any dtype; strides in elements
  const void* in;
  void* out;
  DType dtype;
  int32_t rank;
  int64_t shape[kMaxRank], in_strides[kMaxRank], out_strides[kMaxRank];
  int64_t in_offset, out_offset;
};

// ---- element-wise, reductions -----------------------------------------------------------------------------

enum class UnaryKind : int32_t { neg, exp, log, sqrt, abs, square, relu, gelu, silu, sigmoid, tanh };
constexpr int32_t kUnaryKindCount = 11;

struct UnaryArgs {
  const void* x;
  void* y;
  DType dtype;
  int64_t size;
  UnaryKind kind;
};

struct UnaryBackwardArgs {  // dx = dy · f'(x)
  const void *x, *dy;
  void* dx;
  DType dtype;
  int64_t size;
  UnaryKind kind;
};

enum class BinaryKind : int32_t { add, sub, mul, div };
constexpr int32_t kBinaryKindCount = 4;

struct BinaryArgs {  // y [shape] = a ∘ b with broadcasting by strides of 0; f32, f64, i32 (div: not i32). y may be a.
  const void *a, *b;
  void* y;
  DType dtype;
  BinaryKind kind;
  int32_t rank;
  int64_t shape[kMaxRank], a_strides[kMaxRank], b_strides[kMaxRank];
};

struct ScaleArgs {  // x *= factor, in place
  void* x;
  DType dtype;
  int64_t size;
  double factor;
};

struct ReduceArgs {  // y [outer, inner] = Σ over axis of x [outer, axis, inner], times factor. Fixed order of addition.
  const void* x;
  void* y;
  DType dtype;
  int64_t outer, axis, inner;
  double factor;
};

struct SumSquaresArgs {  // *out (f64) = Σ (scale · x)², in f64, added in a fixed order
  const void* x;
  void* out;
  DType dtype;
  int64_t size;
  double scale;
};

// ---- layers of a transformer ------------------------------------------------------------------------------

struct MatmulArgs {  // y [batch, M, N] = op(a) [batch, M, K] · op(b) [batch, K, N]
  const void *a, *b;
  void* y;
  DType dtype;
  int64_t batch, M, N, K;
  int64_t a_batch_stride, b_batch_stride;  // in elements; 0 broadcasts
  int32_t transpose_a, transpose_b;        // a is stored [K, M], b is stored [N, K]
};

struct LinearArgs {  // y [T, O] = x [T, I] · wᵀ + bias, w [O, I], bias [O] or null
  const void *x, *w, *bias;
  void* y;
  DType dtype, compute;
  int64_t T, I, O;
  PackedCopies* w_packed = nullptr;
};

struct LinearBackwardArgs {  // each of dx, dw, dbias or null
  const void *dy, *x, *w;
  void *dx, *dw, *dbias;
  DType dtype, compute;
  int64_t T, I, O;
  PackedCopies* w_packed = nullptr;
};

struct EmbeddingArgs {  // y [T, D] = w[index], w [V, D]; an index outside [0, V) is an Error
  const void* w;
  const int32_t* index;  // [T]
  void* y;
  DType dtype;
  int64_t T, D, V;
};

struct EmbeddingBackwardArgs {  // dw [V, D] = Σ over tokens, in token order; zeros where no token points
  const void* dy;
  const int32_t* index;
  void* dw;
  DType dtype;
  int64_t T, D, V;
};

struct RmsnormArgs {  // y = x / max(‖x‖₂, 1e-12) · gamma · √D, rows [T, D]
  const void *x, *gamma;
  void* y;
  DType dtype;
  int64_t T, D;
};

struct RmsnormBackwardArgs {  // a row with ‖x‖ < 1e-12 gets dx = 0
  const void *dy, *x, *gamma;
  void *dx, *dgamma;  // each or null
  DType dtype;
  int64_t T, D;
};

struct LayernormArgs {  // y = (x − mean) / √(var + eps) · weight + bias, rows [T, D]
  const void *x, *weight, *bias;
  void* y;
  DType dtype;
  int64_t T, D;
  double eps;
};

struct LayernormBackwardArgs {
  const void *dy, *x, *weight;
  void *dx, *dweight, *dbias;  // each or null
  DType dtype;
  int64_t T, D;
  double eps;
};

struct SoftmaxArgs {  // rows [T, V]; log: y = x − logsumexp(x)
  const void* x;
  void* y;
  DType dtype;
  int64_t T, V;
  int32_t log;
};

struct SoftmaxBackwardArgs {
  const void *dy, *y;
  void* dx;
  DType dtype;
  int64_t T, V;
  int32_t log;
};

struct CrossEntropyArgs {  // loss [] = mean over counted rows of lse(logits) − logits[target]; an all-ignored batch
                           // gives 0
  const void* logits;      // [T, V]
  const int32_t* target;   // [T]; ignore_index or in [0, V), else an Error
  void *loss, *lse;        // [], [T]
  DType dtype;
  int64_t T, V;
  int32_t ignore_index;
};

struct CrossEntropyBackwardArgs {    // dlogits = dloss / counted rows · (softmax − onehot)
  const void *dloss, *logits, *lse;  // dloss []
  const int32_t* target;
  void* dlogits;
  DType dtype;
  int64_t T, V;
  int32_t ignore_index;
};

struct AttentionArgs {    // y = softmax(q kᵀ · scale [causal mask]) v for each sequence and head
  const void *q, *k, *v;  // q [B, Nq, heads·d], k and v [B, Nk, heads·d]
  void *y, *lse;          // y [B, Nq, heads·d], lse [B, heads, Nq]
  DType dtype;
  int64_t B, Nq, Nk, heads, d;
  double scale;
  int32_t causal;  // query i sees keys 0 … i + Nk − Nq; needs Nk ≥ Nq
};

struct AttentionBackwardArgs {
  const void *dy, *q, *k, *v, *y, *lse;
  void *dq, *dk, *dv;
  DType dtype;
  int64_t B, Nq, Nk, heads, d;
  double scale;
  int32_t causal;
};

struct DropoutArgs {  // y_i = x_i / (1 − p) where uniform24(word i) ≥ p, else 0; its backward is the same op on dy
  const void* x;
  void* y;
  DType dtype;
  int64_t size;
  double p;
  uint64_t seed, step;
};

// ---- mixture of experts -----------------------------------------------------------------------------------

struct TokenMaskArgs {  // mask = 1 where x ≠ 0 (a token), else 0 (padding); any dtype; a NaN is an Error
  const void* x;
  int32_t* mask;
  DType dtype;
  int64_t size;
};

struct RouteArgs {
  const void *x, *w;       // x [B, N, D], router weight w [E, D]
  const float* threshold;  // [K], first entry not used
  const void *uniforms,
      *gumbel_uniforms;  // [K, B, N] and [B, N, E], or null: drawn with (seed, step) and (seed, gumbel_step)
  const int32_t* mask;   // [B, N], 0 = padding; or null
  int32_t *expert_index, *kept, *position;   // [B, N, K]; position −1 where not kept
  void *gate, *weight;                       // [B, N, K]: g_k and w_k = g_k · kept_k
  void *balance_loss, *z_loss, *total_loss;  // []
  void *probs, *logits, *lse,
      *density;  // saved for the backward: s [B, N, E], clean l [B, N, E], lse of l [B, N], f [B, E]
  DType dtype;
  int64_t B, N, D, E, K, C;
  uint64_t seed, step, gumbel_step;
  double noise_mult, eps, balance_coef, z_coef;
  int32_t noisy, training, differentiable_topk, density_assigned;  // density_assigned: f counts before the capacity cut
};

struct RouteBackwardArgs {
  const void* dweight;                 // [B, N, K] or null
  const void *dbalance, *dz, *dtotal;  // [] or null
  const void *x, *w;
  const int32_t *mask, *expert_index, *kept;
  const void *gate, *probs, *logits, *lse, *density;
  void *dx, *dw;  // [B, N, D], [E, D]; each or null
  DType dtype;
  int64_t B, N, D, E, K;
  double eps, balance_coef, z_coef;
  int32_t noisy, training, differentiable_topk;
};

// Kept assignments are those with position ≥ 0. A backend with fixed_slots has a row for each slot [E, B, C]; one
// without has rows for kept assignments only, sorted by (expert, token, choice).
struct ExpertFfnArgs {
  const void* x;                           // [T, D]
  const int32_t *expert_index, *position;  // [T, K]; both null: one expert, every token, K = 1
  const void* weight;                      // [T, K]; null: all 1
  const void *w1, *b1, *mult_bias, *w2,
      *b2;  // [E, P, D], [E, P], [E, H], [E, D, H], [E, D]; P = w1_rows(activation, H)
  void* y;  // [T, D]; zeros for a token with nothing kept
  void* a;  // pre-activations A [rows, Backend::saved_columns(P)] for the backward, as the backend likes them; or null
  DType dtype, compute;
  int64_t T, K, D, E, H, B, C, rows;  // T = B·N. rows: E·B·C, or the most that can be kept; more is an Error
  Activation activation;              // mult_bias is null where it is not gated
  PackedCopies *w1_packed = nullptr, *w2_packed = nullptr;
};

struct ExpertFfnBackwardArgs {
  const void* dy;
  const void* x;
  const int32_t *expert_index, *position;
  const void* weight;
  const void *w1, *b1, *mult_bias, *w2, *b2, *a;
  void *dx, *dweight;                        // dweight null where weight is; dx or null
  void *dw1, *db1, *dmult_bias, *dw2, *db2;  // all or none null; zeros for experts without tokens
  DType dtype, compute;
  int64_t T, K, D, E, H, B, C, rows;
  Activation activation;
  int32_t straight_through;  // dweight += <A − b1, dA>
  PackedCopies *w1_packed = nullptr, *w2_packed = nullptr;
};

struct DispatchArgs {  // y [E, B, C, D]: row (e, b, position) = x[b, n]; empty slots are zero
  const void* x;       // [B, N, D]
  const int32_t *expert_index, *position;
  void* y;
  DType dtype;
  int64_t B, N, D, E, K, C;
};

struct DispatchBackwardArgs {
  const void *dy, *x;
  const int32_t *expert_index, *position;
  void *dx, *dweight;  // dx [B, N, D]; dweight [B, N, K] = <x, dy row> (straight-through) or null
  DType dtype;
  int64_t B, N, D, E, K, C;
};

struct CombineArgs {       // y [B, N, D] = Σ_k weight_k · x[e_k, b, position_k]
  const void *x, *weight;  // x [E, B, C, D], weight [B, N, K]
  const int32_t *expert_index, *position;
  void* y;
  DType dtype;
  int64_t B, N, D, E, K, C;
};

struct CombineBackwardArgs {
  const void *dy, *x, *weight;
  const int32_t *expert_index, *position;
  void *dx, *dweight;  // each or null
  DType dtype;
  int64_t B, N, D, E, K, C;
};

struct TopkArgs {  // the K largest of each row, descending; on ties the lowest index first
  const void* x;   // [T, E]
  void* value;     // [T, K]
  int32_t* index;  // [T, K]
  DType dtype;
  int64_t T, E, K;
};

struct TopkBackwardArgs {  // dx [T, E]: zeros, and dvalue at the chosen entries
  const void* dvalue;
  const int32_t* index;
  void* dx;
  DType dtype;
  int64_t T, E, K;
};

struct GroupedGemmArgs {       // y [R, O]: rows of group g are x rows · w[g]ᵀ. Groups follow each other.
  const void *x, *w;           // x [R, I], w [G, O, I]
  const int32_t* group_sizes;  // [G], ≥ 0, sum R, else an Error
  const int32_t* host_sizes;   // the same in memory of the host, or null where only the device knows them
  void* y;
  DType dtype, compute;
  int64_t R, G, I, O;
  PackedCopies* w_packed = nullptr;
};

struct GroupedGemmBackwardArgs {  // each of dx, dw or null
  const void *dy, *x, *w;
  const int32_t *group_sizes, *host_sizes;
  void *dx, *dw;
  DType dtype, compute;
  int64_t R, G, I, O;
  PackedCopies* w_packed = nullptr;
};

// ---- optimizers: in place -----------------------------------------------------------------------------------

struct AdamwArgs {  // torch.optim.AdamW: p *= 1 − lr·wd; m, v; p −= lr / (1 − β1^step) · m / (√(v / (1 − β2^step)) +
                    // eps)
  void* p;
  const void* g;
  void *m, *v;
  DType dtype;
  int64_t size, step;  // step counts from 1
  double lr, beta1, beta2, eps, weight_decay;
};

struct SgdArgs {  // torch.optim.SGD: g += wd·p; buffer = momentum·buffer + g (first step: g); p −= lr·buffer
  void* p;
  const void* g;
  void* buffer;  // null without momentum
  DType dtype;
  int64_t size, step;
  double lr, momentum, weight_decay;
};

}  // namespace st_moe
