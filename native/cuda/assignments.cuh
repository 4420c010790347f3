#pragma once
#include "cuda/rows.cuh"

// Which slot of an expert's buffer [E, B, C] holds which token. The indices are the caller's and may be anything: what
// is out of range is reported and left out.
namespace st_moe::cuda {

static inline void check_assignment_count(int64_t T, int64_t K) {
  if (T > INT32_MAX / (K < 1 ? 1 : K))
    fail(ErrorCode::shape, "too many assignments: %lld tokens with %lld choices each", static_cast<long long>(T),
         static_cast<long long>(K));
}

struct Assignments {
  const int32_t *expert_index, *position;  // [B, N, K]; both null: row t is token t, of expert 0
  int64_t B, N, K, E, C;
  Stream::Fault* fault;

  __host__ __device__ int64_t slots() const { return E * B * C; }

  // Row of [E, B, C] that a choice of a token occupies, or −1.
  __device__ int64_t slot(int64_t token, int64_t choice) const {
    if (!position) return token;
    const int64_t i = token * K + choice;
    const int32_t at = position[i];
    if (at < 0) return -1;
    const int32_t expert = expert_index[i];
    const bool known = expert >= 0 && expert < E;
    if (!known || at >= C) {
      report_fault(fault, kExpertFault, known ? at : expert);
      return -1;
    }
    // Tokens fit in 31 bits: assignments are counted in int32.
    const int64_t b = static_cast<uint32_t>(token) / static_cast<uint32_t>(N);
    return (expert * B + b) * C + at;
  }
};

template <class Args>
Assignments assignments_of(const Context& ctx, const Args& args) {
  check_assignment_count(args.B * args.N, args.K);
  return {args.expert_index, args.position, args.B, args.N, args.K, args.E, args.C, stream_of(ctx).fault()};
}

// A block has the slots of `experts` experts for one sequence: it clears them and then looks for their tokens, so that
// no kernel has to run before.
template <int experts>
__global__ void __launch_bounds__(kBlock) holders_kernel(Assignments a, int32_t* holder) {
  const int64_t groups = ceil_div(a.E, experts);
  for (int64_t work = blockIdx.x; work < a.B * groups; work += gridDim.x) {
    const int64_t b = work / groups, first = work % groups * experts, last = min_of(a.E, first + experts);
    for (int64_t i = threadIdx.x; i < (last - first) * a.C; i += blockDim.x) {
      const Place place = place_of(i, a.C);
      holder[((first + place.row) * a.B + b) * a.C + place.column] = -1;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < a.N * a.K; i += blockDim.x) {
      const Place place = place_of(i, a.K);
      const int64_t token = b * a.N + place.row, slot = a.slot(token, place.column);
      if (slot >= first * a.B * a.C && slot < last * a.B * a.C)
        atomicMax(holder + slot, static_cast<int32_t>(token * a.K + place.column));
    }
  }
}

// holder [E, B, C] = the assignment (token · K + choice) in each slot, or −1. Where a caller puts two assignments
// into one slot the last one has it.
static inline void fill_holders(const Context& ctx, const Assignments& a, int32_t* holder) {
  constexpr int experts = 8;  // every block reads all choices of its sequence
  if (a.B * a.E > 0)          // without slots too: an assignment that wants one is reported
    launch(ctx, holders_kernel<experts>, grid_for(a.B * ceil_div(a.E, experts), 1), kBlock, 0, a, holder);
}

// Element of out [slots, D] = weight · x [tokens, D] of the assignment in the slot; zeros in empty slots.
template <class T>
struct GatherRows {
  const int32_t* holder;  // [slots]
  const T *x, *weight;    // weight [tokens, K]; null: all 1
  T* out;
  int64_t D, K;

  __device__ void operator()(int64_t i) const {
    const Place place = place_of(i, D);
    const int32_t assignment = holder[place.row];
    T value = 0;
    if (assignment >= 0) value = x[place_of(assignment, K).row * D + place.column];
    if (assignment >= 0 && weight) value *= weight[assignment];
    out[i] = value;
  }
};

// Element of y [tokens, D] = Σ_k weight_k · (rows [slots, D] + bias) in choice order over the choices that have a slot;
// zeros without any. y may be `rows`, where row t is token t.
template <class T>
struct CombineRows {
  Assignments a;
  const T *rows, *weight, *bias;  // weight [tokens, K]; null: all 1. bias [E, D]; null: 0
  T* y;
  int64_t D;

  __device__ void operator()(int64_t i) const {
    const Place place = place_of(i, D);
    T total = 0;
    bool empty = true;
    for (int64_t k = 0; k < a.K; ++k) {
      const int64_t slot = a.slot(place.row, k);
      if (slot < 0) continue;
      T value = rows[slot * D + place.column];
      if (bias) value += bias[(a.position ? a.expert_index[place.row * a.K + k] : 0) * D + place.column];
      if (weight) value *= weight[place.row * a.K + k];
      total = empty ? value : total + value;
      empty = false;
    }
    y[i] = total;
  }
};

// out [tokens, K] = <x [tokens, D] of the token, rows [slots, D] of the choice>, 0 without a slot. By warps.
template <class T>
struct SlotDots {
  Assignments a;
  const T *x, *rows;
  T* out;
  int64_t D;

  __device__ void operator()(int64_t i, int lane) const {
    const Place place = place_of(i, a.K);
    const int64_t slot = a.slot(place.row, place.column);
    T total = 0;
    for (int64_t j = lane; slot >= 0 && j < D; j += kWarp) total += x[place.row * D + j] * rows[slot * D + j];
    total = warp_reduce(total, Sum{});
    if (lane == 0) out[i] = total;
  }
};

}  // namespace st_moe::cuda
