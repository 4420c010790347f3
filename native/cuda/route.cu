#include "cuda/ops.h"

#include "core/formulas.h"
#include "core/philox.h"
#include "core/router.h"
#include "cuda/per_step.cuh"
#include "cuda/plan.cuh"
#include "cuda/router.cuh"
#include "cuda/selection.cuh"
#include "cuda/soft_topk.cuh"

// Four kernels after the GEMM x · wᵀ: choose (a warp per token, a block per tile of tokens), count what comes before a
// tile, find the slots within a tile, add up the losses. Sums go over tiles, whose size depends on the shapes alone.
namespace st_moe::cuda {

constexpr int kMaxTile = 1024;
constexpr int kScanGrid = 4096;

// Counters take tiles · K · E numbers: if K · E is large, a tile has more tokens.
static int64_t tile_tokens(int64_t K, int64_t E) {
  int64_t tile = kWarp;
  while (tile < kMaxTile && K * E > kWarp * tile) tile *= 2;
  return tile;
}

template <class T>
struct Router {
  const T *uniforms, *gumbel_uniforms, *expert_bias;
  const float* threshold;
  const int32_t* mask;
  int32_t *expert_index, *kept, *position;
  T *gate, *weight, *probs, *lse, *density;
  const T* logits;
  int64_t B, N, E, K, C, groups, top_groups, tile, tiles;  // tiles of `tile` tokens in each sequence
  Sample sample, gumbel_sample;
  RouterNumbers<T> numbers;
  bool noisy, soft, density_assigned;
  // Scratch
  T* keys;            // [B, N, E] what experts are chosen by; null unless there are groups
  int32_t* count;     // [B, tiles, K, E] routed assignments of a tile, later those of the sequence that come before
  int32_t* counted;   // [B, tiles] tokens that are not masked
  double* prob_sum;   // [B, tiles, E] Σ s over them
  double* z_sum;      // [B, tiles] Σ lse² over them
  double* balance;    // [blocks of the scan] Σ f · P
  double* z;          // [B] Σ lse²
  int64_t* unmasked;  // [B]

  __device__ bool masked(int64_t token) const { return mask && mask[token] == 0; }

  // Tokens [begin, end) of tile `work`, counted over all sequences.
  __device__ int64_t begin(int64_t work) const { return work / tiles * N + work % tiles * tile; }
  __device__ int64_t end(int64_t work) const { return min_of(begin(work) + tile, (work / tiles + 1) * N); }

  __device__ void probabilities(int64_t t, int lane) const;
  __device__ T key(int64_t t, int64_t e) const;
  __device__ void keep_top_groups(int64_t t, int lane) const;
  __device__ void choose(int64_t t, int lane) const;
  __device__ bool is_routed(int64_t t, int64_t k, T g) const;
  __device__ void add_up(int64_t work) const;
  __device__ double scan(int64_t b, int64_t e, int lane) const;
  __device__ void find_slots(int64_t work, int64_t k, int lane) const;
};

template <class T>
__device__ void Router<T>::probabilities(int64_t t, int lane) const {
  const T* l = logits + t * E;
  T* s = probs + t * E;
  const T clean = softmax_row(l, noisy ? nullptr : s, E, lane);
  if (lane == 0) lse[t] = clean;
  if (!noisy) return;
  for (int64_t e = lane; e < E; e += kWarp) {
    const int64_t i = t * E + e;
    const T u =
        gumbel_uniforms ? gumbel_uniforms[i] : static_cast<T>(uniform24(gumbel_sample.word(static_cast<uint64_t>(i))));
    s[e] = numbers.noisy(l[e], u);
  }
  softmax_row(s, s, E, lane);
}

// What expert e is chosen by.
template <class T>
__device__ T Router<T>::key(int64_t t, int64_t e) const {
  const T own = numbers.key(logits[t * E + e], probs[t * E + e]);
  return expert_bias ? own + expert_bias[e] : own;
}

// The keys of a token, −inf outside its top groups. Lane l writes the entries of the groups l, l + 32, … only.
template <class T>
__device__ void Router<T>::keep_top_groups(int64_t t, int lane) const {
  T* row = keys + t * E;
  const int64_t size = E / groups;
  for (int64_t g = lane; g < groups; g += kWarp)
    for (int64_t e = g * size; e < (g + 1) * size; ++e) row[e] = key(t, e);
  const auto score = [&](int64_t g) { return group_score(row + g * size, size); };
  Entry<T> last = before_all<T>();
  for (int64_t i = 0; i < top_groups; ++i) last = warp_first(first_after(last, groups, lane, kWarp, score));
  for (int64_t g = lane; g < groups; g += kWarp) {
    if (!before(last, Entry<T>{score(g), static_cast<int32_t>(g)})) continue;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) row[e] = -static_cast<T>(INFINITY);
  }
}

template <class T>
__device__ bool Router<T>::is_routed(int64_t t, int64_t k, T g) const {
  if (masked(t)) return false;
  if (k == 0) return true;
  const int64_t i = k * B * N + t;
  const T u = uniforms ? uniforms[i] : static_cast<T>(uniform24(sample.word(static_cast<uint64_t>(i))));
  return numbers.is_routed(u, g, threshold[k]);
}

// Probabilities, experts and gates of a token, by a warp; `kept` says for now which assignments are routed. Lane l has
// the assignments l, l + 32, … The experts of a NaN row are 0 … K−1.
template <class T>
__device__ void Router<T>::choose(int64_t t, int lane) const {
  probabilities(t, lane);
  const T *l = logits + t * E, *s = probs + t * E;
  T a = 0, total = 0;
  __syncwarp();  // the keys of a group come from entries of other lanes
  if (keys) keep_top_groups(t, lane);
  if (soft) a = SoftTopk<T>(E, K, lane).descend(s, nullptr);
  __syncwarp();  // the gates come from entries of other lanes
  Entry<T> entry = before_all<T>();
  for (int64_t k = 0; k < K; ++k) {
    entry = warp_first(first_after(entry, E, lane, kWarp, [&](int64_t e) {
      if (!soft) return keys ? keys[t * E + e] : key(t, e);
      const T c = SoftTopk<T>::score(s[e], a);
      return s[e] * (c + (T(1) - c));
    }));
    const T score = soft ? SoftTopk<T>::score(s[entry.index], a) : numbers.score(l[entry.index], s[entry.index]);
    total += score;
    if (k % kWarp != lane) continue;
    expert_index[t * K + k] = entry.index;
    gate[t * K + k] = score;
  }
  for (int64_t k = lane; k < K; k += kWarp) {
    const T score = gate[t * K + k], g = masked(t) ? T(0) : numbers.gate(score, total);
    gate[t * K + k] = g;
    weight[t * K + k] = numbers.weight(score, g);
    kept[t * K + k] = is_routed(t, k, g);
  }
}

// What the losses and the slots need of a tile, by a block. The counters are integers: their order does not matter.
template <class T>
__device__ void Router<T>::add_up(int64_t work) const {
  const int64_t first = begin(work), last = end(work);
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    double total = 0;
    for (int64_t t = first; t < last; ++t)
      if (!masked(t)) total += static_cast<double>(probs[t * E + e]);
    prob_sum[work * E + e] = total;
  }
  for (int64_t i = first * K + threadIdx.x; i < last * K; i += blockDim.x)
    if (kept[i]) atomicAdd(count + (work * K + i % K) * E + expert_index[i], 1);
  if (threadIdx.x >= kWarp) return;
  double squares = 0;
  int32_t tokens = 0;
  for (int64_t t = first + threadIdx.x; t < last; t += kWarp) {
    if (masked(t)) continue;
    squares += static_cast<double>(lse[t]) * static_cast<double>(lse[t]);
    ++tokens;
  }
  squares = warp_reduce(squares, Sum{});
  tokens = warp_reduce(tokens, Sum{});
  if (threadIdx.x != 0) return;
  z_sum[work] = squares;
  counted[work] = tokens;
}

template <class T>
__global__ void __launch_bounds__(kWarpBlock) choose_kernel(Router<T> r) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int64_t work = blockIdx.x; work < r.B * r.tiles; work += gridDim.x) {
    int32_t* count = r.count + work * r.K * r.E;
    for (int64_t i = threadIdx.x; i < r.K * r.E; i += blockDim.x) count[i] = 0;
    for (int64_t t = r.begin(work) + warp; t < r.end(work); t += warps) r.choose(t, lane);
    __syncthreads();
    r.add_up(work);
  }
}

// For one expert and sequence, by a warp: turns the counters, in the order (k, tile), into how many come before,
// and writes f. Returns f · P.
template <class T>
__device__ double Router<T>::scan(int64_t b, int64_t e, int lane) const {
  int32_t carry = 0, first = 0, tokens = 0;
  double prob = 0, squares = 0;
  for (int64_t i0 = 0; i0 < K * tiles; i0 += kWarp) {
    const int64_t i = i0 + lane, k = i / tiles, tile_index = i - k * tiles;
    int32_t* at = count + ((b * tiles + tile_index) * K + k) * E + e;
    const int32_t mine = i < K * tiles ? *at : 0, sum = warp_scan(mine);
    if (i < K * tiles) *at = carry + sum - mine;
    if (i < tiles) first += mine;
    carry += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  for (int64_t i = b * tiles + lane; i < (b + 1) * tiles; i += kWarp) {
    prob += prob_sum[i * E + e];
    squares += z_sum[i];
    tokens += counted[i];
  }
  prob = warp_reduce(prob, Sum{});
  first = warp_reduce(first, Sum{});
  tokens = warp_reduce(tokens, Sum{});
  squares = warp_reduce(squares, Sum{});
  if (!density_assigned && first > C) first = static_cast<int32_t>(C);
  const double count_of = tokens > 0 ? tokens : 1, f = first / count_of;
  if (lane == 0) density[b * E + e] = static_cast<T>(f);
  if (lane == 0 && e == 0) {
    z[b] = squares;
    unmasked[b] = tokens;
  }
  return f * (prob / count_of);
}

template <class T>
__global__ void __launch_bounds__(kBlock) scan_kernel(Router<T> r) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  double balance = 0;
  for (int64_t work = blockIdx.x * int64_t{warps} + warp; work < r.B * r.E; work += int64_t{gridDim.x} * warps)
    balance += r.scan(work / r.E, work % r.E, lane);
  balance = block_reduce(lane == 0 ? balance : 0.0, Sum{}, 0.0);
  if (threadIdx.x == 0) r.balance[blockIdx.x] = balance;
}

// Slots of the assignments k of a tile, by a warp, 32 tokens at a time: a routed token takes the slot whose number is
// how many of its sequence came before it to the same expert, if there is such a slot.
template <class T>
__device__ void Router<T>::find_slots(int64_t work, int64_t k, int lane) const {
  int32_t* taken = count + (work * K + k) * E;
  const int64_t last = end(work);
  for (int64_t t0 = begin(work); t0 < last; t0 += kWarp) {
    const int64_t t = t0 + lane, i = t * K + k;
    const int32_t e = t < last && kept[i] ? expert_index[i] : -1;
    const unsigned same = __match_any_sync(kAllLanes, e), below = (1u << lane) - 1;
    const int32_t slot = e < 0 ? 0 : taken[e] + __popc(same & below);
    __syncwarp();
    if (e >= 0 && (same & below) == 0) taken[e] += __popc(same);
    __syncwarp();
    if (t >= last) continue;
    const bool has_slot = e >= 0 && slot < C;
    kept[i] = has_slot;
    position[i] = has_slot ? slot : -1;
    if (!has_slot) weight[i] = 0;
  }
}

template <class T>
struct FindSlots {
  Router<T> r;
  __device__ void operator()(int64_t i, int lane) const { r.find_slots(i / r.K, i % r.K, lane); }
};

// GateNormalization::kept, of a token.
template <class T>
struct NormalizeKept {
  Router<T> r;
  __device__ void operator()(int64_t t) const {
    T* weight = r.weight + t * r.K;
    T total = 0;
    for (int64_t k = 0; k < r.K; ++k) total += weight[k];
    for (int64_t k = 0; k < r.K; ++k) weight[k] = r.numbers.gate(weight[k], total);
  }
};

template <class T>
__global__ void __launch_bounds__(kBlock) losses_kernel(Router<T> r, int64_t parts, Losses<T> out) {
  double balance = 0, z = 0;
  int64_t tokens = 0, sequences = 0;
  for (int64_t i = threadIdx.x; i < parts; i += blockDim.x) balance += r.balance[i];
  for (int64_t b = threadIdx.x; b < r.B; b += blockDim.x) {
    z += r.z[b];
    tokens += r.unmasked[b];
    sequences += r.unmasked[b] > 0;
  }
  balance = block_reduce(balance, Sum{}, 0.0);
  z = block_reduce(z, Sum{}, 0.0);
  tokens = block_reduce(tokens, Sum{}, int64_t{0});
  sequences = block_reduce(sequences, Sum{}, int64_t{0});
  if (threadIdx.x != 0) return;
  balance = sequences > 0 ? balance * static_cast<double>(r.E) / static_cast<double>(sequences) : 0;
  z = tokens > 0 ? z / static_cast<double>(tokens) : 0;
  out.write(balance, z);
}

template <class T>
static Router<T> router_of(const Context& ctx, const RouteArgs& args) {
  Router<T> r{};
  r.uniforms = static_cast<const T*>(args.uniforms);
  r.gumbel_uniforms = static_cast<const T*>(args.gumbel_uniforms);
  r.expert_bias = static_cast<const T*>(args.expert_bias);
  r.threshold = args.threshold, r.mask = args.mask;
  r.expert_index = args.expert_index, r.kept = args.kept, r.position = args.position;
  r.gate = static_cast<T*>(args.gate), r.weight = static_cast<T*>(args.weight);
  r.probs = static_cast<T*>(args.probs), r.lse = static_cast<T*>(args.lse);
  r.density = static_cast<T*>(args.density), r.logits = static_cast<const T*>(args.logits);
  r.B = args.B, r.N = args.N, r.E = args.E, r.K = args.K, r.C = args.C;
  r.groups = args.groups, r.top_groups = args.top_groups;
  r.tile = tile_tokens(args.K, args.E), r.tiles = ceil_div(args.N, r.tile);
  r.sample = sample_of(ctx, args.seed, args.step), r.gumbel_sample = sample_of(ctx, args.seed, args.gumbel_step);
  r.numbers = RouterNumbers<T>::of(args);
  r.noisy = args.noisy, r.soft = args.differentiable_topk, r.density_assigned = args.density_assigned;
  return r;
}

template <class T>
static void route_as(const Context& ctx, const RouteArgs& args) {
  Router<T> r = router_of<T>(ctx, args);
  const int64_t work = args.B * r.tiles;
  const int64_t parts = min_of(ceil_div(args.B * args.E, kBlock / kWarp), kScanGrid);
  router_logits(ctx, args);
  Scratch<int32_t> count(ctx, work * args.K * args.E), counted(ctx, work);
  Scratch<double> prob_sum(ctx, work * args.E), z_sum(ctx, work), balance(ctx, parts), z(ctx, args.B);
  Scratch<int64_t> unmasked(ctx, args.B);
  Scratch<T> keys(ctx, args.groups > 1 ? args.B * args.N * args.E : 0);
  r.keys = args.groups > 1 ? keys.get() : nullptr;
  r.count = count.get(), r.counted = counted.get(), r.prob_sum = prob_sum.get(), r.z_sum = z_sum.get();
  r.balance = balance.get(), r.z = z.get(), r.unmasked = unmasked.get();
  if (work > 0) launch(ctx, choose_kernel<T>, grid_for(work, 1), kWarpBlock, 0, r);
  if (parts > 0) launch(ctx, scan_kernel<T>, static_cast<unsigned>(parts), kBlock, 0, r);
  by_warp(ctx, work * args.K, FindSlots<T>{r});
  if (args.gate_normalization == GateNormalization::kept) elementwise(ctx, args.B * args.N, NormalizeKept<T>{r});
  launch(ctx, losses_kernel<T>, 1, kBlock, 0, r, parts, Losses<T>::of(args));
}

void route(const Context& ctx, const RouteArgs& args) {
  check_assignment_count(args.B * args.N, args.K);
  dispatch_float(args.dtype, [&](auto zero) { route_as<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cuda
