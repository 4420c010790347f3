#include "cpu/ops.h"

#include "core/formulas.h"
#include "cpu/assignments.h"
#include "cpu/packed_weights.h"
#include "cpu/simd.h"

// Rows are processed in chunks, so that what one step writes is still in the cache for the next and scratch memory
// stays small. The chunks depend on the number of threads, the values do not: the forward computes each row alone, and
// the backward, which adds rows up, never splits an expert.
namespace st_moe::cpu::ST_MOE_ISA {

constexpr int64_t kChunkBytes = 16 << 20;  // activations of a chunk, for each thread
constexpr int64_t kColumnBlock = 256;      // hidden columns of an element-wise task: its sums stay in the L1 cache
constexpr int64_t kRowBlock = 128;         // rows added up before partial sums are combined

template <class T>
static int64_t rows_per_chunk(const Context& ctx, int64_t H) {
  const int64_t row_bytes = max_of<int64_t>(1, 3 * H * static_cast<int64_t>(sizeof(T)));
  return max_of(kRowBlock, max_of(1, ctx.threads) * kChunkBytes / row_bytes);
}

// Rows [begin, end) of the sorted order, all of one expert.
struct Piece {
  int64_t expert, begin, end;
  int64_t rows() const { return end - begin; }
};

// ---- forward ----------------------------------------------------------------------------------------------

// A chunk ends where an expert ends, unless the expert alone is larger than a chunk. Then it leaves more than a few
// rows of it, which would be added up in another order.
static int64_t chunk_end(const Assignments& assignments, int64_t E, int64_t begin, int64_t limit) {
  const int64_t end = begin + limit;
  if (end >= assignments.rows()) return assignments.rows();
  int64_t expert = 0;
  while (expert < E && assignments.end(expert) <= end) ++expert;
  if (assignments.begin(expert) > begin) return assignments.begin(expert);
  return min_of(end, assignments.end(expert) - kFewRows - 1);
}

// h = gelu(γ) ⊙ a ⊙ μ, pre [rows, 2H] = [a ; γ], h [rows, H]
template <class T>
static void activate(const T* pre, const T* mult_bias, T* h, int64_t rows, int64_t H) {
  const T* __restrict mu = mult_bias;
  for (int64_t r = 0; r < rows; ++r) {
    const T* __restrict value = pre + r * 2 * H;
    const T* __restrict gate = value + H;
    T* __restrict out = h + r * H;
    for (int64_t j = 0; j < H; ++j) out[j] = gelu(gate[j]) * value[j] * mu[j];
  }
}

// y_rows [rows, D] = the experts' outputs in sorted order.
template <class T>
static void expert_rows(const Context& ctx, const ExpertFfnArgs& args, const Assignments& assignments, T* y_rows) {
  const int64_t D = args.D, E = args.E, H = args.H, rows = assignments.rows(), limit = rows_per_chunk<T>(ctx, H);
  const T *x = static_cast<const T*>(args.x), *mult_bias = static_cast<const T*>(args.mult_bias);
  const T *w1 = static_cast<const T*>(args.w1), *b1 = static_cast<const T*>(args.b1);
  const T *w2 = static_cast<const T*>(args.w2), *b2 = static_cast<const T*>(args.b2);
  T* saved = static_cast<T*>(args.a);
  const int64_t chunk_rows = min_of(rows, limit);
  Scratch<T> h(chunk_rows * H), unsaved(saved ? 0 : chunk_rows * 2 * H);
  Scratch<Piece> pieces(E);
  Scratch<GemmProblem<T>> problems(E);
  const MatrixView<T> w1_view{w1, 1, D}, w2_view{w2, 1, H};
  const PackedWeights<T> w1_packed(ctx, args.w1_packed, w1_view, E, 2 * H * D, D, 2 * H, args.compute);
  const PackedWeights<T> w2_packed(ctx, args.w2_packed, w2_view, E, D * H, H, D, args.compute);

  for (int64_t begin = 0, end; begin < rows; begin = end) {
    end = chunk_end(assignments, E, begin, limit);
    T* pre = saved ? saved + begin * 2 * H : unsaved.get();
    int64_t count = 0;
    for (int64_t e = 0; e < E; ++e) {
      const Piece piece{e, max_of(begin, assignments.begin(e)), min_of(end, assignments.end(e))};
      if (piece.begin >= piece.end) continue;
      const int32_t* token = assignments.token();
      const MatrixView<T> in{token ? x : x + piece.begin * D, D, 1, token ? token + piece.begin : nullptr};
      const MatrixView<T> weights{w1 + e * 2 * H * D, 1, D};
      T* out = pre + (piece.begin - begin) * 2 * H;
      problems[count] = {piece.rows(), 2 * H, D, in, weights, out, 2 * H, b1 + e * 2 * H};
      problems[count].packed_b = w1_packed.at(e);
      pieces[count++] = piece;
    }
    gemm(ctx, problems.get(), count, args.compute);
    parallel_blocks(ctx, end - begin, rows_per_task(3 * H * sizeof(T)), [&](int64_t from, int64_t to) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t first = max_of(from, pieces[i].begin - begin), last = min_of(to, pieces[i].end - begin);
        if (first < last)
          activate(pre + first * 2 * H, mult_bias + pieces[i].expert * H, h.get() + first * H, last - first, H);
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      const Piece& piece = pieces[i];
      const MatrixView<T> hidden{h.get() + (piece.begin - begin) * H, H, 1};
      const MatrixView<T> weights{w2 + piece.expert * D * H, 1, H};
      T* out = y_rows + piece.begin * D;
      problems[i] = {piece.rows(), D, H, hidden, weights, out, D, b2 + piece.expert * D};
      problems[i].packed_b = w2_packed.at(piece.expert);
    }
    gemm(ctx, problems.get(), count, args.compute);
  }
}

// y [T, D] = Σ_k weight_k · (the row of choice k), weight [T, K] or null
template <class T>
static void combine_rows(const Context& ctx, const Assignments& assignments, const T* rows, const T* weight, T* y,
                         int64_t tokens, int64_t K, int64_t D) {
  const int32_t* row_of = assignments.row_of();
  parallel_blocks(ctx, tokens, rows_per_task(D * (K + 1) * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      weighted_sum(y + t * D, D, K, weight ? weight + t * K : nullptr, [&](int64_t k) {
        const int64_t row = row_of ? row_of[t * K + k] : t;
        return row < 0 ? nullptr : rows + row * D;
      });
  });
}

void expert_ffn(const Context& ctx, const ExpertFfnArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Assignments assignments(args);
    const T* weight = static_cast<const T*>(args.weight);
    T* y = static_cast<T*>(args.y);
    const bool in_place = assignments.dense() && !weight;
    Scratch<T> y_rows(in_place ? 0 : assignments.rows() * args.D);
    expert_rows(ctx, args, assignments, in_place ? y : y_rows.get());
    if (!in_place) combine_rows(ctx, assignments, y_rows.get(), weight, y, args.T, args.K, args.D);
  });
}

// ---- backward ---------------------------------------------------------------------------------------------

// One chunk of whole experts. Row indices below are of the sorted order; the buffers start at row `begin`.
template <class T>
struct Chunk {
  const ExpertFfnBackwardArgs& args;
  const Assignments& assignments;
  int64_t first_expert, last_expert, begin, end;  // experts [first, last), rows [begin, end)
  const Piece* blocks;
  int64_t block_count;
  const PackedWeights<T>&w1_packed, &w2_packed;
  const T* g = nullptr;   // [rows, D] gradient of the token's output
  T* gathered = nullptr;  // the buffer g points at, or null where g is dy itself
  T* q = nullptr;         // [rows, H] g · W2, then w · h
  T* da = nullptr;        // [rows, 2H] gradient of A
  T* dx_rows = nullptr;   // [all rows, D] or null
  T* dots = nullptr;      // [rows, column blocks + 1] parts of dweight, or null
  T* sums = nullptr;      // [block_count, 3H + D] parts of db1, dmult_bias, db2; or null

  int64_t columns() const { return ceil_div(args.H, kColumnBlock); }
  int64_t assignment(int64_t row) const { return assignments.assignment() ? assignments.assignment()[row] : row; }
  T weight(int64_t row) const { return args.weight ? static_cast<const T*>(args.weight)[assignment(row)] : T(1); }
};

// Gathers g, and takes from it what needs no hidden values: db2 = Σ w g, and <b2, g> of dweight.
template <class T>
static void load_gradient(const Context& ctx, const Chunk<T>& chunk) {
  const int64_t D = chunk.args.D, H = chunk.args.H, columns = chunk.columns();
  const int32_t* token = chunk.assignments.token();
  parallel_for(ctx, chunk.block_count, [&](int64_t i) {
    const Piece& block = chunk.blocks[i];
    const T* b2 = static_cast<const T*>(chunk.args.b2) + block.expert * D;
    T* __restrict db2 = chunk.sums ? chunk.sums + i * (3 * H + D) + 3 * H : nullptr;
    if (db2)
      for (int64_t j = 0; j < D; ++j) db2[j] = 0;
    for (int64_t r = block.begin; r < block.end; ++r) {
      const T* __restrict from = chunk.g + (r - chunk.begin) * D;
      if (chunk.gathered) {
        from = static_cast<const T*>(chunk.args.dy) + token[r] * D;
        T* __restrict to = chunk.gathered + (r - chunk.begin) * D;
        for (int64_t j = 0; j < D; ++j) to[j] = from[j];
      }
      if (db2) axpy(chunk.weight(r), from, db2, D);
      if (chunk.dots) chunk.dots[(r - chunk.begin) * (columns + 1) + columns] = dot(b2, from, D);
    }
  });
}

// Columns of one row. q enters as g · W2 and leaves as w · h. product = h ⊙ q.
template <class T>
static inline void row_gradient(const T* __restrict value, const T* __restrict gate, const T* __restrict mu, T w,
                                T* __restrict q, T* __restrict dvalue, T* __restrict dgate, T* __restrict product,
                                T* __restrict value_sum, T* __restrict gate_sum, T* __restrict mu_sum, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    const GeluPair<T> g = gelu_with_grad(gate[j]);
    const T plain = g.value * value[j], h = plain * mu[j];
    const T dh = w * q[j], scaled = dh * mu[j];
    const T dv = scaled * g.value, dg = scaled * value[j] * g.grad;
    product[j] = h * q[j];
    q[j] = w * h;
    dvalue[j] = dv;
    dgate[j] = dg;
    value_sum[j] += dv;
    gate_sum[j] += dg;
    mu_sum[j] += dh * plain;
  }
}

// A block of rows by a block of hidden columns [from, to).
template <class T>
static void hidden_block(const Chunk<T>& chunk, int64_t index, int64_t column) {
  const ExpertFfnBackwardArgs& args = chunk.args;
  const int64_t H = args.H, from = column * kColumnBlock, n = min_of(H - from, kColumnBlock);
  const Piece& block = chunk.blocks[index];
  const T* mu = static_cast<const T*>(args.mult_bias) + block.expert * H + from;
  const T* __restrict value_bias = static_cast<const T*>(args.b1) + block.expert * 2 * H + from;
  const T* __restrict gate_bias = value_bias + H;
  T sums[3 * kColumnBlock] = {}, product[kColumnBlock];
  for (int64_t r = block.begin; r < block.end; ++r) {
    const T* __restrict value = static_cast<const T*>(args.a) + r * 2 * H + from;
    const T* __restrict gate = value + H;
    T *q = chunk.q + (r - chunk.begin) * H + from, *dvalue = chunk.da + (r - chunk.begin) * 2 * H + from;
    T* dgate = dvalue + H;
    row_gradient(value, gate, mu, chunk.weight(r), q, dvalue, dgate, product, sums, sums + kColumnBlock,
                 sums + 2 * kColumnBlock, n);
    if (!chunk.dots) continue;
    if (args.straight_through)
      for (int64_t j = 0; j < n; ++j)
        product[j] += (value[j] - value_bias[j]) * dvalue[j] + (gate[j] - gate_bias[j]) * dgate[j];
    chunk.dots[(r - chunk.begin) * (chunk.columns() + 1) + column] = sum(product, n);
  }
  if (!chunk.sums) return;
  for (int64_t part = 0; part < 3; ++part) {
    T* to = chunk.sums + index * (3 * H + args.D) + part * H + from;
    for (int64_t j = 0; j < n; ++j) to[j] = sums[part * kColumnBlock + j];
  }
}

// Combines the partial sums, in the order of blocks and columns.
template <class T>
static void finish_sums(const Context& ctx, const Chunk<T>& chunk) {
  const ExpertFfnBackwardArgs& args = chunk.args;
  const int64_t H = args.H, D = args.D, columns = chunk.columns();
  if (chunk.dots)
    for (int64_t r = chunk.begin; r < chunk.end; ++r)
      static_cast<T*>(args.dweight)[chunk.assignment(r)] =
          sum(chunk.dots + (r - chunk.begin) * (columns + 1), columns + 1);
  if (!chunk.sums) return;
  parallel_for(ctx, chunk.last_expert - chunk.first_expert, [&](int64_t i) {
    const int64_t e = chunk.first_expert + i;
    T *db1 = static_cast<T*>(args.db1) + e * 2 * H, *dmult_bias = static_cast<T*>(args.dmult_bias) + e * H;
    T* db2 = static_cast<T*>(args.db2) + e * D;
    for (int64_t j = 0; j < 2 * H; ++j) db1[j] = 0;
    for (int64_t j = 0; j < H; ++j) dmult_bias[j] = 0;
    for (int64_t j = 0; j < D; ++j) db2[j] = 0;
    for (int64_t b = 0; b < chunk.block_count; ++b) {
      if (chunk.blocks[b].expert != e) continue;
      const T* part = chunk.sums + b * (3 * H + D);
      axpy(T(1), part, db1, 2 * H);
      axpy(T(1), part + 2 * H, dmult_bias, H);
      axpy(T(1), part + 3 * H, db2, D);
    }
  });
}

template <class T, class Problem>
static void expert_gemms(const Context& ctx, const Chunk<T>& chunk, GemmProblem<T>* problems, bool stream,
                         Problem&& problem) {
  int64_t count = 0;
  for (int64_t e = chunk.first_expert; e < chunk.last_expert; ++e) {
    const int64_t begin = chunk.assignments.begin(e);
    problems[count] = problem(e, begin - chunk.begin, chunk.assignments.end(e) - begin);
    problems[count++].stream = stream;
  }
  gemm(ctx, problems, count, chunk.args.compute);
}

template <class T>
static void chunk_backward(const Context& ctx, const Chunk<T>& chunk, GemmProblem<T>* problems) {
  using Problem = GemmProblem<T>;
  const ExpertFfnBackwardArgs& args = chunk.args;
  const int64_t D = args.D, H = args.H, columns = chunk.columns();
  const T *x = static_cast<const T*>(args.x), *w1 = static_cast<const T*>(args.w1);
  const T* w2 = static_cast<const T*>(args.w2);
  const int32_t* token = chunk.assignments.token();

  load_gradient(ctx, chunk);
  expert_gemms(ctx, chunk, problems, false, [&](int64_t e, int64_t r, int64_t rows) {
    Problem p{rows, H, D, {chunk.g + r * D, D, 1}, {w2 + e * D * H, H, 1}, chunk.q + r * H, H};
    p.packed_b = chunk.w2_packed.at(e);
    return p;
  });
  // Where there are enough blocks of rows one thread takes all columns of one: rows need not start at a cache line, and
  // two threads that write to one line wait for each other.
  const int64_t together = chunk.block_count >= 4 * ctx.threads ? columns : 1;
  parallel_blocks(ctx, chunk.block_count * columns, together, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) hidden_block(chunk, i / columns, i % columns);
  });
  finish_sums(ctx, chunk);
  if (args.dw1) {
    T *dw1 = static_cast<T*>(args.dw1), *dw2 = static_cast<T*>(args.dw2);
    // The optimizer reads the gradients much later.
    const bool stream = args.E * D * H * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
    expert_gemms(ctx, chunk, problems, stream, [&](int64_t e, int64_t r, int64_t rows) {
      return Problem{D, H, rows, {chunk.g + r * D, 1, D}, {chunk.q + r * H, H, 1}, dw2 + e * D * H, H};
    });
    expert_gemms(ctx, chunk, problems, stream, [&](int64_t e, int64_t r, int64_t rows) {
      const int64_t row = chunk.begin + r;
      const MatrixView<T> in{token ? x : x + row * D, D, 1, token ? token + row : nullptr};
      return Problem{2 * H, D, rows, {chunk.da + r * 2 * H, 1, 2 * H}, in, dw1 + e * 2 * H * D, D};
    });
  }
  if (chunk.dx_rows)
    expert_gemms(ctx, chunk, problems, false, [&](int64_t e, int64_t r, int64_t rows) {
      T* to = chunk.dx_rows + (chunk.begin + r) * D;
      Problem p{rows, D, 2 * H, {chunk.da + r * 2 * H, 2 * H, 1}, {w1 + e * 2 * H * D, D, 1}, to, D};
      p.packed_b = chunk.w1_packed.at(e);
      return p;
    });
}

// The last expert of a chunk, plus one: as many as fit, at least one.
static int64_t chunk_experts(const Assignments& assignments, int64_t E, int64_t first, int64_t limit) {
  int64_t last = first + 1;
  while (last < E && assignments.end(last) - assignments.begin(first) <= limit) ++last;
  return last;
}

template <class T>
static void backward(const Context& ctx, const ExpertFfnBackwardArgs& args, const Assignments& assignments,
                     T* dx_rows) {
  const int64_t D = args.D, H = args.H, E = args.E, limit = rows_per_chunk<T>(ctx, H);
  int64_t chunk_rows = 0, chunk_blocks = 0;
  for (int64_t first = 0, last; first < E; first = last) {
    last = chunk_experts(assignments, E, first, limit);
    const int64_t rows = assignments.end(last - 1) - assignments.begin(first);
    chunk_rows = max_of(chunk_rows, rows);
    chunk_blocks = max_of(chunk_blocks, rows / kRowBlock + last - first);
  }
  const bool gather = !assignments.dense(), parameters = args.dw1, dots = args.dweight;
  Scratch<T> gathered(gather ? chunk_rows * D : 0), q(chunk_rows * H), da(chunk_rows * 2 * H);
  Scratch<T> dot_parts(dots ? chunk_rows * (ceil_div(H, kColumnBlock) + 1) : 0);
  Scratch<T> sum_parts(parameters ? chunk_blocks * (3 * H + D) : 0);
  Scratch<Piece> blocks(chunk_blocks);
  Scratch<GemmProblem<T>> problems(E);
  const MatrixView<T> w1{static_cast<const T*>(args.w1), D, 1}, w2{static_cast<const T*>(args.w2), H, 1};
  const PackedWeights<T> w1_packed(ctx, dx_rows ? args.w1_packed : nullptr, w1, E, 2 * H * D, 2 * H, D, args.compute);
  const PackedWeights<T> w2_packed(ctx, args.w2_packed, w2, E, D * H, D, H, args.compute);

  for (int64_t first = 0, last; first < E; first = last) {
    last = chunk_experts(assignments, E, first, limit);
    const int64_t begin = assignments.begin(first), end = assignments.end(last - 1);
    int64_t count = 0;
    for (int64_t e = first; e < last; ++e)
      for (int64_t r = assignments.begin(e); r < assignments.end(e); r += kRowBlock)
        blocks[count++] = {e, r, min_of(assignments.end(e), r + kRowBlock)};
    Chunk<T> chunk{args, assignments, first, last, begin, end, blocks.get(), count, w1_packed, w2_packed};
    chunk.g = gather ? gathered.get() : static_cast<const T*>(args.dy) + begin * D;
    chunk.gathered = gather ? gathered.get() : nullptr;
    chunk.q = q.get();
    chunk.da = da.get();
    chunk.dx_rows = dx_rows;
    chunk.dots = dots ? dot_parts.get() : nullptr;
    chunk.sums = parameters ? sum_parts.get() : nullptr;
    chunk_backward(ctx, chunk, problems.get());
  }
}

void expert_ffn_backward(const Context& ctx, const ExpertFfnBackwardArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Assignments assignments(args);
    T *dx = static_cast<T*>(args.dx), *dweight = static_cast<T*>(args.dweight);
    const bool in_place = assignments.dense();
    Scratch<T> dx_rows(dx && !in_place ? assignments.rows() * args.D : 0);
    if (dweight)
      for (int64_t i = 0; i < args.T * args.K; ++i) dweight[i] = 0;
    backward(ctx, args, assignments, !dx ? nullptr : in_place ? dx : dx_rows.get());
    if (dx && !in_place) combine_rows<T>(ctx, assignments, dx_rows.get(), nullptr, dx, args.T, args.K, args.D);
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
