#pragma once
#include "core/activation.h"
#include "core/dropout.h"
#include "cuda/operands.cuh"
#include "cuda/per_step.cuh"
#include "cuda/rows.cuh"

// The hidden layer of the experts: where its rows have their columns, and kernels that take a strip of columns of some
// rows of one expert, whose biases are then in shared memory.
namespace st_moe::cuda {

// Columns in memory of the rows of h and of the pre-activations A, which have values and, if the activation is gated,
// gates beside them. Rows start at multiples of 32 bytes. With rounded operands gates do, too, and the padding before
// them is zeros: it is also in the copy of W1.
struct HiddenColumns {
  int64_t H;        // hidden values
  int64_t width;    // of a row of h
  int64_t a_width;  // of a row of A
  int64_t gate;     // the first gate
  int64_t filled;   // of each that kernels write: H, or with the padding

  static HiddenColumns of(Activation activation, int64_t H, DType compute) {
    constexpr int64_t unrounded = 8;  // values of a multiple of 32 bytes
    const auto multiple = [](int64_t n, int64_t of) { return ceil_div(n, of) * of; };
    const int64_t parts = w1_rows(activation, 1), width = multiple(H, kOperandMultiple);
    if (dtype_size(compute) == 2) return {H, width, parts * width, width, width};
    return {H, multiple(H, unrounded), multiple(parts * H, unrounded), H, H};
  }
};

// A bias vector of each expert, or none.
template <class T>
struct ExpertBias {
  const T* values;
  int64_t width;
  __device__ const T* of(int64_t expert) const { return values ? values + expert * width : nullptr; }
};

// Dropout of the hidden values of experts, which have a row for each assignment.
template <class T>
struct HiddenDropout {
  Sample sample;
  DropoutNumbers<T> numbers;
  int64_t H;
  bool active;

  template <class Args>
  static HiddenDropout of(const Context& ctx, const Args& args) {
    return {sample_of(ctx, args.seed, args.step), DropoutNumbers<T>::of(args.dropout), args.H, args.dropout > 0};
  }
  // Of N values of an assignment from column j on: whether value c stays is bit c.
  template <int N>
  __device__ uint32_t kept(int64_t assignment, int64_t j) const {
    if (!active) return ~0u;
    uint32_t bits = 0;
    for (int c = 0; c < N; ++c)
      if (numbers.keeps(sample.word(static_cast<uint64_t>(assignment * H + j + c)))) bits |= 1u << c;
    return bits;
  }
  __device__ T operator()(T x, uint32_t kept, int c) const { return numbers.apply(x, kept >> c & 1); }
};

constexpr int kStripWarps = kWarpBlock / kWarp;

// A strip has `each` columns for every lane of a warp, which takes N side by side at a time.
template <int N, int each>
struct Strip {
  static constexpr int size = each * kWarp;

  // The column of value c of a lane.
  __device__ static int column(int lane, int c) { return c / N * N * kWarp + lane * N + c % N; }
};

constexpr int kSector = 32;  // bytes

// The gates of a row in a strip, of which the first is at `from` and `left` remain in the row, N at a time. Where they
// do not begin at a sector, unlike the values beside them, the warp accesses whole sectors and its lanes pass values
// on.
template <int N, int each>
struct StripGates {
  template <class T>
  __device__ static void load(const T* from, int left, int lane, T (&values)[each]) {
    if constexpr (in_place<T>) {
      for (int c = 0; c < each; c += N) {
        if (Columns::column(lane, c) >= left) continue;
        const Vector<T, N> part = cuda::load<N>(from + Columns::column(lane, c));
        for (int i = 0; i < N; ++i) values[c + i] = part[i];
      }
    } else {
      const int shift = after_sector(from);
      T sectors[each + 1];
      unrolled<each + 1>([&](auto at) {
        constexpr int c = decltype(at)::value;
        const int column = c * kWarp + lane - shift;
        sectors[c] = column >= 0 && column < min_of(left, Columns::size) ? from[column] : T(0);
      });
      for (int c = 0; c < each; ++c)
        values[c] = __shfl_sync(kAllLanes, lane < shift ? sectors[c + 1] : sectors[c], (lane + shift) % kWarp);
    }
  }

  template <class T>
  __device__ static void store(T* to, int left, int lane, const T (&values)[each]) {
    if constexpr (in_place<T>) {
      for (int c = 0; c < each; c += N) {
        Vector<T, N> part;
        for (int i = 0; i < N; ++i) part[i] = values[c + i];
        if (Columns::column(lane, c) < left) cuda::store(to + Columns::column(lane, c), part);
      }
    } else {
      const int shift = after_sector(to);
      unrolled<each + 1>([&](auto at) {
        constexpr int c = decltype(at)::value;
        T next{}, last{};
        if constexpr (c < each) next = values[c];
        if constexpr (c > 0) last = values[c - 1];
        const T value = __shfl_sync(kAllLanes, lane + shift < kWarp ? next : last, (lane + kWarp - shift) % kWarp);
        const int column = c * kWarp + lane - shift;
        if (column >= 0 && column < min_of(left, Columns::size)) to[column] = value;
      });
    }
  }

 private:
  using Columns = Strip<N, each>;
  // Rounded gates begin at sectors.
  template <class T>
  static constexpr bool in_place = N > 1 || sizeof(T) == 2;

  template <class T>
  __device__ static int after_sector(const T* gates) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(gates) % kSector / sizeof(T));
  }
};

// The biases of an expert in a strip, in shared memory. Lanes read accesses that are side by side, without bank
// conflicts.
template <class T, int N, int each>
class StripBiases {
 public:
  // By a block. Beyond H, and where there is no bias, they are neutral.
  template <bool gated>
  __device__ void fill(const ExpertBias<T>& b1, const ExpertBias<T>& mult_bias, int64_t expert, int64_t first,
                       int64_t H) {
    const T *b = b1.of(expert), *mu = mult_bias.of(expert);
#pragma unroll 1
    for (int i = threadIdx.x; i < Strip<N, each>::size; i += kWarpBlock) {
      const int at = place(i);
      const bool inside = first + i < H;
      value_[at] = b && inside ? b[first + i] : T(0);
      if (!gated) continue;
      gate_[at] = b && inside ? b[H + first + i] : T(0);
      mult_bias_[at] = mu && inside ? mu[first + i] : T(1);
    }
  }
  // Of a lane's N values from c on.
  __device__ Vector<T, N> value(int lane, int c) const { return read(value_, lane, c); }
  __device__ Vector<T, N> gate(int lane, int c) const { return read(gate_, lane, c); }
  __device__ Vector<T, N> mult_bias(int lane, int c) const { return read(mult_bias_, lane, c); }

 private:
  static constexpr int kTogether = N < vector_width<T> ? N : vector_width<T>;  // in an access

  __device__ static int place(int column) {
    const int in_lane = column % N;
    return column / (N * kWarp) * (N * kWarp) + in_lane / kTogether * (kTogether * kWarp) +
           column / N % kWarp * kTogether + in_lane % kTogether;
  }
  __device__ static Vector<T, N> read(const T* from, int lane, int c) {
    Vector<T, N> values;
    for (int i = 0; i < N; i += kTogether) {
      const auto part = load<kTogether>(from + place(Strip<N, each>::column(lane, c) + i));
      for (int k = 0; k < kTogether; ++k) values[i + k] = part[k];
    }
    return values;
  }

  alignas(kAccess) T value_[Strip<N, each>::size];
  alignas(kAccess) T gate_[Strip<N, each>::size];
  alignas(kAccess) T mult_bias_[Strip<N, each>::size];
};

}  // namespace st_moe::cuda
