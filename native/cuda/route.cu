#include "core/ops/moe.h"
#include "cuda/route_choice.cuh"
#include "cuda/route_logits.cuh"

// Three kernels: choose (a warp per token, a block per tile of tokens), count what comes before a tile, find the slots
// within a tile, beside which a block adds up the losses. The logits x · wᵀ of few experts are computed by the first,
// those of more by a GEMM before it. Sums go over tiles, whose size depends on the shapes alone. If slots are not in
// token order, tiles are counted again in the order of the slots; with no token left behind, for each choice k, since
// it depends on the slots of those before it.
namespace st_moe::cuda {

constexpr int kMaxTile = 1024;
constexpr int kScanGrid = 4096;

// Counters take tiles · K · E numbers: if K · E is large, a tile has more tokens.
static int64_t tile_tokens(int64_t K, int64_t E) {
  int64_t tile = kWarp;
  while (tile < kMaxTile && K * E > kWarp * tile) tile *= 2;
  return tile;
}

// How many of a tile, in the order of the slots, ask for each expert as their choices first_k … last_k − 1, by a block.
// The counters are integers: their order does not matter.
template <class T>
__device__ void Router<T>::count_choices(int64_t work, int64_t first_k, int64_t last_k) const {
  const int64_t choices = last_k - first_k;
  int32_t* counts = count + (work * K + first_k) * E;
  for (int64_t i = threadIdx.x; i < choices * E; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  for (int64_t i = begin(work) * choices + threadIdx.x; i < end(work) * choices; i += blockDim.x) {
    const int64_t t = token(i / choices), k = i % choices;
    if (asks(t, first_k + k)) atomicAdd(counts + k * E + expert_index[t * K + first_k + k], 1);
  }
}

// What the losses need of a tile, by a block.
template <class T>
__device__ void Router<T>::add_up(int64_t work) const {
  const int64_t first = begin(work), last = end(work);
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
    double total = 0;
    for (int64_t t = first; t < last; ++t)
      if (is_whole(mask, t)) total += static_cast<double>(probs[t * E + e]);
    prob_sum[work * E + e] = total;
  }
  if (threadIdx.x >= kWarp) return;
  double squares = 0;
  int32_t tokens = 0;
  for (int64_t t = first + threadIdx.x; t < last; t += kWarp) {
    if (!is_whole(mask, t)) continue;
    squares += static_cast<double>(lse[t]) * static_cast<double>(lse[t]);
    ++tokens;
  }
  squares = warp_reduce(squares, Sum{});
  tokens = warp_reduce(tokens, Sum{});
  if (threadIdx.x != 0) return;
  z_sum[work] = squares;
  counted[work] = tokens;
}

// Reading x takes more warps than choosing, and more registers.
template <int N>
constexpr int kChooseThreads = N > 0 ? kBlock : kWarpBlock;
template <int N>
constexpr int kChooseBlocks = N > 0 ? 2 : 6;  // of a multiprocessor, at least

// N values of x at a time; 0: the logits are there.
template <class T, int N>
__global__ void __launch_bounds__(kChooseThreads<N>, kChooseBlocks<N>)
    choose_kernel(Router<T> r, LogitInputs<T> inputs) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  __shared__ __align__(16) T weights[N > 0 ? kFewWeights / sizeof(T) : 1];
  if constexpr (N > 0) {
    load_weights<N>(inputs, weights);
    __syncthreads();
  }
  for (int64_t work = blockIdx.x; work < r.B * r.tiles; work += gridDim.x) {
    const int64_t end = r.end(work);
    if constexpr (N > 0) {
      for (int64_t t = r.begin(work) + warp; t < end; t += warps * kLogitTokens<T>)
        write_logits<N>(inputs, weights, t, warps, end, lane);
      __syncwarp();  // the logits come from other lanes
    }
    for (int64_t t = r.begin(work) + warp; t < end; t += warps) r.choose(t, lane);
    __syncthreads();
    r.add_up(work);
    if (!r.order) r.count_choices(work, 0, r.K);
  }
}

template <class T>
struct Priorities {
  Router<T> r;
  T* priority;  // [B, N]
  __device__ void operator()(int64_t t) const {
    priority[t] = r.numbers.priority(r.logits + t * r.E, r.probs + t * r.E, r.expert_index + t * r.K, r.K);
  }
};

// The tokens of a sequence by falling priority: each by a warp, that counts those before it.
template <class T>
struct OrderByPriority {
  Router<T> r;
  const T* priority;  // [B, N]
  __device__ void operator()(int64_t t, int lane) const {
    const int64_t first = t / r.N * r.N;
    const auto entry = [&](int64_t other) { return Entry<T>{priority[other], static_cast<int32_t>(other)}; };
    int32_t rank = 0;
    for (int64_t other = first + lane; other < first + r.N; other += kWarp) rank += before(entry(other), entry(t));
    rank = warp_reduce(rank, Sum{});
    if (lane == 0) r.order[first + rank] = static_cast<int32_t>(t);
  }
};

template <class T>
__global__ void __launch_bounds__(kBlock) count_kernel(Router<T> r, int64_t first_k, int64_t last_k) {
  for (int64_t work = blockIdx.x; work < r.B * r.tiles; work += gridDim.x) {
    r.count_choices(work, first_k, last_k);
    __syncthreads();
  }
}

// For one expert and sequence, by a warp: turns the counters of the choices first_k … last_k − 1, in the order (k,
// tile), into how many come before, `carry` before all of them. Returns how many there are in all; *first: of choice 0.
template <class T>
__device__ int32_t Router<T>::scan_tiles(int64_t b, int64_t e, int64_t first_k, int64_t last_k, int32_t carry, int lane,
                                         int32_t* first) const {
  for (int64_t i0 = first_k * tiles; i0 < last_k * tiles; i0 += kWarp) {
    const int64_t i = i0 + lane, k = i / tiles, tile_index = i - k * tiles;
    int32_t* at = count + ((b * tiles + tile_index) * K + k) * E + e;
    const int32_t mine = i < last_k * tiles ? *at : 0, sum = warp_scan(mine);
    if (i < last_k * tiles) *at = carry + sum - mine;
    if (i < tiles) *first += mine;
    carry += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  return carry;
}

// The part of expert e in the loss of second places, by a warp; writes its f2.
template <class T>
__device__ double Router<T>::second_places(int64_t b, int64_t e, double tokens, int lane) const {
  int32_t second = 0;
  double prob = 0;
  for (int64_t t = b * N + lane; t < (b + 1) * N; t += kWarp) {
    if (masked(t)) continue;
    second += expert_index[t * K + 1] == e;
    if (e != first_choice(t)) prob += static_cast<double>(probs[t * E + e]) / static_cast<double>(others[t]);
  }
  second = warp_reduce(second, Sum{});
  prob = warp_reduce(prob, Sum{});
  const double f = second / tokens;
  if (lane == 0) second_density[b * E + e] = static_cast<T>(f);
  return 0.5 * f * (prob / tokens);
}

// The slots of one expert and sequence that no assignment gets, by a warp.
template <class T>
__device__ void Router<T>::clear_slots(int64_t b, int64_t e, int64_t used, int lane) const {
  if (!assignment) return;
  for (int64_t slot = used + lane; slot < C; slot += kWarp) assignment[row(b, e, slot)] = -1;
}

// For one expert and sequence, by a warp: scans the counters and writes f. Returns f · P.
template <class T>
__device__ double Router<T>::scan(int64_t b, int64_t e, int lane) const {
  int32_t first = 0, tokens = 0;
  double prob = 0, squares = 0;
  const int32_t all = scan_tiles(b, e, 0, K, 0, lane, &first);
  if (!ntlb) clear_slots(b, e, all, lane);
  for (int64_t i = b * tiles + lane; i < (b + 1) * tiles; i += kWarp) {
    prob += prob_sum[i * E + e];
    squares += z_sum[i];
    tokens += counted[i];
  }
  prob = warp_reduce(prob, Sum{});
  first = ntlb ? all : warp_reduce(first, Sum{});
  tokens = warp_reduce(tokens, Sum{});
  squares = warp_reduce(squares, Sum{});
  if (balance_density == BalanceDensity::kept && !ntlb && first > C) first = static_cast<int32_t>(C);
  if (lane == 0 && e == 0) {
    z[b] = squares;
    whole[b] = tokens;
  }
  if (importance) tokens = static_cast<int32_t>(N);
  const double count_of = tokens > 0 ? tokens : 1, f = first / (ntlb ? static_cast<double>(K) : 1.0) / count_of;
  if (lane == 0) density[b * E + e] = static_cast<T>(f);
  return f * (prob / count_of) + (second_density ? second_places(b, e, count_of, lane) : 0);
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
  for (int64_t i0 = begin(work); i0 < last; i0 += kWarp) {
    const bool is_token = i0 + lane < last;
    const int64_t t = is_token ? token(i0 + lane) : 0, i = t * K + k;
    const int32_t e = is_token && asks(t, k) ? expert_index[i] : -1;
    const unsigned same = __match_any_sync(kAllLanes, e), below = (1u << lane) - 1;
    const int32_t slot = e < 0 ? 0 : taken[e] + __popc(same & below);
    __syncwarp();
    if (e >= 0 && (same & below) == 0) taken[e] += __popc(same);
    __syncwarp();
    if (!is_token) continue;
    const bool has_slot = e >= 0 && slot < C;
    kept[i] = has_slot;
    position[i] = has_slot ? slot : -1;
    if (!has_slot) weight[i] = 0;
    if (!assignment) continue;
    const int64_t to = has_slot ? row(work / tiles, e, slot) : -1;
    row_of[i] = static_cast<int32_t>(to);
    if (has_slot) assignment[to] = static_cast<int32_t>(i);
  }
}

// Of choice k, after those before it.
template <class T>
struct ScanChoice {
  Router<T> r;
  int64_t k;
  __device__ void operator()(int64_t i, int lane) const {
    int32_t first = 0;
    const int32_t before = k > 0 ? r.taken[i] : 0, all = r.scan_tiles(i / r.E, i % r.E, k, k + 1, before, lane, &first);
    __syncwarp();  // a lane may still read
    if (lane == 0) r.taken[i] = all;
    if (k == r.K - 1) r.clear_slots(i / r.E, i % r.E, all, lane);
  }
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

// By a block.
template <class T>
__device__ static void add_losses(const Router<T>& r, int64_t parts, const Losses<T>& out) {
  double balance = 0, z = 0;
  int64_t tokens = 0, sequences = 0;
  for (int64_t i = threadIdx.x; i < parts; i += blockDim.x) balance += r.balance[i];
  for (int64_t b = threadIdx.x; b < r.B; b += blockDim.x) {
    z += r.z[b];
    tokens += r.whole[b];
    sequences += r.importance || r.whole[b] > 0;
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

// Slots of the choices first_k … first_k + choices − 1, by warps; the first block adds up the losses.
template <class T>
__global__ void __launch_bounds__(kBlock)
    find_slots_kernel(Router<T> r, int64_t first_k, int64_t choices, int64_t parts, Losses<T> out) {
  if (blockIdx.x == 0) return add_losses(r, parts, out);
  constexpr int kWarps = kBlock / kWarp;
  const int64_t items = r.B * r.tiles * choices, first = (blockIdx.x - 1) * int64_t{kWarps} + threadIdx.x / kWarp;
  for (int64_t i = first; i < items; i += (gridDim.x - 1) * int64_t{kWarps})
    r.find_slots(i / choices, first_k + i % choices, static_cast<int>(threadIdx.x % kWarp));
}

template <class T>
static Router<T> router_of(const Context& ctx, const RouteArgs& args) {
  Router<T> r{};
  r.uniforms = static_cast<const T*>(args.uniforms);
  r.gumbel_uniforms = static_cast<const T*>(args.gumbel_uniforms);
  r.second_place_uniforms = static_cast<const T*>(args.second_place_uniforms);
  r.expert_bias = static_cast<const T*>(args.expert_bias);
  r.threshold = args.threshold, r.mask = args.mask;
  r.expert_index = args.expert_index, r.kept = args.kept, r.position = args.position;
  r.assignment = args.assignment, r.row_of = args.row_of;
  r.gate = static_cast<T*>(args.gate), r.weight = static_cast<T*>(args.weight);
  r.probs = static_cast<T*>(args.probs), r.lse = static_cast<T*>(args.lse);
  r.density = static_cast<T*>(args.density), r.logits = static_cast<T*>(args.logits);
  r.second_density = static_cast<T*>(args.second_density);
  r.B = args.B, r.N = args.N, r.E = args.E, r.K = args.K, r.C = args.C;
  r.routing_groups = args.routing_groups, r.top_groups = args.top_groups;
  r.tile = tile_tokens(args.K, args.E), r.tiles = ceil_div(args.N, r.tile);
  r.sample = sample_of(ctx, args.seed, args.step), r.gumbel_sample = sample_of(ctx, args.seed, args.gumbel_step);
  r.second_place_sample = sample_of(ctx, args.seed, args.second_place_step);
  r.numbers = RouterNumbers<T>::of(args);
  r.noise_gates = args.noise_gates, r.differentiable_topk = args.differentiable_topk;
  r.balance_density = args.balance_density, r.sample_experts = args.sample_experts;
  r.ntlb = args.ntlb, r.importance = args.importance;
  return r;
}

template <class T>
static void assign_slots(const Context& ctx, const Router<T>& r, int64_t parts, const Losses<T>& losses) {
  const int64_t work = r.B * r.tiles;
  const auto find_slots = [&](int64_t first_k, int64_t choices) {
    const unsigned grid = 1 + (work > 0 ? grid_for(work * choices, kBlock / kWarp) : 0);
    launch(ctx, find_slots_kernel<T>, grid, kBlock, 0, r, first_k, choices, parts, losses);
  };
  if (!r.ntlb) return find_slots(0, r.K);
  for (int64_t k = 0; k < r.K; ++k) {
    if (work > 0) launch(ctx, count_kernel<T>, grid_for(work, 1), kBlock, 0, r, k, k + 1);
    by_warp(ctx, r.B * r.E, ScanChoice<T>{r, k});
    find_slots(k, 1);
  }
}

// Logits, probabilities, experts and gates of all tokens, and what comes from tiles of them.
template <class T>
static void choose(const Context& ctx, const RouteArgs& args, const Router<T>& r) {
  const LogitInputs<T> inputs{static_cast<const T*>(args.x), static_cast<const T*>(args.w), args.E, args.D, r.logits};
  const int64_t work = args.B * r.tiles;
  if (work == 0) return;
  const auto run = [&](auto n) {
    launch(ctx, choose_kernel<T, decltype(n)::value>, grid_for(work, 1), kChooseThreads<decltype(n)::value>, 0, r,
           inputs);
  };
  if (inputs.few()) return dispatch_width<vector_width<T>>(args.D, aligned(inputs.x, inputs.w), run);
  router_logits(ctx, args);
  run(Width<0>{});
}

template <class T>
static void route_as(const Context& ctx, const RouteArgs& args) {
  Router<T> r = router_of<T>(ctx, args);
  const int64_t work = args.B * r.tiles, tokens = args.B * args.N;
  const int64_t parts = min_of(ceil_div(args.B * args.E, kBlock / kWarp), kScanGrid);
  Scratch<int32_t> count(ctx, work * args.K * args.E), counted(ctx, work);
  Scratch<int32_t> order(ctx, args.batch_prioritized ? tokens : 0), taken(ctx, args.ntlb ? args.B * args.E : 0);
  Scratch<double> prob_sum(ctx, work * args.E), z_sum(ctx, work), balance(ctx, parts), z(ctx, args.B);
  Scratch<int64_t> whole(ctx, args.B);
  Scratch<T> keys(ctx, args.routing_groups > 1 ? tokens * args.E : 0), others(ctx, args.second_density ? tokens : 0);
  Scratch<T> priority(ctx, args.batch_prioritized ? tokens : 0);
  r.keys = args.routing_groups > 1 ? keys.get() : nullptr;
  r.others = args.second_density ? others.get() : nullptr;
  r.order = args.batch_prioritized ? order.get() : nullptr, r.taken = taken.get();
  r.count = count.get(), r.counted = counted.get(), r.prob_sum = prob_sum.get(), r.z_sum = z_sum.get();
  r.balance = balance.get(), r.z = z.get(), r.whole = whole.get();
  choose(ctx, args, r);
  if (r.order) {
    elementwise(ctx, tokens, Priorities<T>{r, priority.get()});
    by_warp(ctx, tokens, OrderByPriority<T>{r, priority.get()});
  }
  if (r.order && work > 0) launch(ctx, count_kernel<T>, grid_for(work, 1), kBlock, 0, r, int64_t{0}, r.K);
  if (parts > 0) launch(ctx, scan_kernel<T>, static_cast<unsigned>(parts), kBlock, 0, r);
  assign_slots(ctx, r, parts, Losses<T>::of(args));
  if (args.gate_normalization == GateNormalization::kept) elementwise(ctx, tokens, NormalizeKept<T>{r});
}

void route(const Context& ctx, const RouteArgs& args) {
  check_assignment_count(args.B * args.N, args.K);
  dispatch_float(args.dtype, [&](auto zero) { route_as<decltype(zero)>(ctx, args); });
}

}  // namespace st_moe::cuda
