#include "core/ops/moe.h"
#include "core/activation.h"
#include "cpu/dropout.h"
#include "cpu/expert_rows.h"
#include "cpu/packed_weights.h"

namespace st_moe::cpu::ST_MOE_ISA {

// One chunk of whole experts. The buffers start at row `all.begin`.
template <class T>
struct Chunk {
  using Rows = ActivationRows<T>;
  const ExpertFfnBackwardArgs& args;
  const Assignments& assignments;
  const Span all;
  const Pieces& blocks;
  const PackedWeights<T>&w1_packed, &w2_packed;
  const ExpertBias<T>&b1, &mult_bias, &b2;
  Rows a;               // [rows, P] pre-activations
  Rows g;               // [rows, O] gradient of the token's output
  Rows q;               // [rows, H] g · W2, then w · h
  Rows da;              // [rows, P] gradient of A
  const Rows* dx_rows;  // [all rows, D] or null
  T* dots;              // [rows, column blocks + 1] parts of dweight, or null
  T* sums;              // [blocks, sum_width] parts of db1, dmult_bias, db2; null if none is asked for

  int64_t columns() const { return ceil_div(args.H, kColumnBlock); }
  int64_t pre() const { return w1_rows(args.activation, args.H); }  // P
  int64_t bias_sums() const { return hidden_biases(args.activation, args.H); }
  int64_t sum_width() const { return bias_sums() + args.O; }
  int64_t assignment(int64_t row) const { return assignments.assignment() ? assignments.assignment()[row] : row; }
  T weight(int64_t row) const { return args.weight ? static_cast<const T*>(args.weight)[assignment(row)] : T(1); }
};

// Gathers g, and takes from it what needs no hidden values: db2 = Σ w g, and <b2, g> of dweight.
template <class T>
static void load_gradient(const Context& ctx, const Chunk<T>& chunk, int64_t first, int64_t last) {
  const int64_t O = chunk.args.O, columns = chunk.columns();
  const int32_t* token = chunk.assignments.token();
  const T* dy = static_cast<const T*>(chunk.args.dy);
  parallel_for(ctx, last - first, [&](int64_t index) {
    const int64_t i = first + index;
    const Piece& block = chunk.blocks[i];
    const T* b2 = chunk.b2.of(block.expert);
    T* __restrict db2 = chunk.sums ? chunk.sums + i * chunk.sum_width() + chunk.bias_sums() : nullptr;
    if (db2)
      for (int64_t j = 0; j < O; ++j) db2[j] = 0;
    for (int64_t r = block.begin; r < block.end; ++r) {
      const T* from = dy + (token ? token[r] : r) * O;
      if (token) chunk.g.store(r - chunk.all.begin, 0, O, from);
      if (db2) axpy(chunk.weight(r), from, db2, O);
      if (chunk.dots) chunk.dots[(r - chunk.all.begin) * (columns + 1) + columns] = dot(b2, from, O);
    }
  });
}

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// x under a mask of ones, 0 under one of zeros, also of a NaN: one loop serves both cases.
template <class T>
static inline T masked(T x, BitsOf<T> mask) {
  BitsOf<T> bits;
  memcpy(&bits, &x, sizeof x);
  bits &= mask;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Columns of one row. q enters as g · W2 and leaves as w · h. product = h ⊙ q; under the mask of a gradient that goes
// straight through the dispatch also what <x, dx> adds, Σ_j x_j dx_j = Σ_j (a_j − b1_j) da_j. Plain activations have a
// value only. A separate function, so that the compiler knows that the pointers do not alias.
template <Activation activation, class T, class S>
[[gnu::noinline]] static void row_gradient(ActivationNumbers<T> numbers, const S* __restrict value,
                                           const S* __restrict gate, const T* __restrict value_bias,
                                           const T* __restrict gate_bias, BitsOf<T> straight_through,
                                           const T* __restrict mu, T w, T* __restrict q, T* __restrict dvalue,
                                           T* __restrict dgate, T* __restrict product, T* __restrict value_sum,
                                           T* __restrict gate_sum, T* __restrict mu_sum, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    const T a = number(value[j]);
    if constexpr (is_gated(activation)) {
      const T g = number(gate[j]);
      const ValueAndSlope<T> f = activate<activation, precision_of<S>>(g, numbers);
      const ValueAndSlope<T> v = gated_value<activation>(a, numbers);
      const T plain = f.value * v.value, h = plain * mu[j];
      const T dh = w * q[j], scaled = dh * mu[j];
      const T dv = scaled * f.value * v.slope, dg = scaled * v.value * f.slope;
      product[j] = h * q[j] + masked((a - value_bias[j]) * dv + (g - gate_bias[j]) * dg, straight_through);
      q[j] = w * h;
      dvalue[j] = dv;
      dgate[j] = dg;
      value_sum[j] += dv;
      gate_sum[j] += dg;
      mu_sum[j] += dh * plain;
    } else {
      const ValueAndSlope<T> f = activate<activation, precision_of<S>>(a, numbers);
      const T dv = w * q[j] * f.slope;
      product[j] = f.value * q[j] + masked((a - value_bias[j]) * dv, straight_through);
      q[j] = w * f.value;
      dvalue[j] = dv;
      value_sum[j] += dv;
    }
  }
}

template <class T, class S>
using RowGradient = void (*)(ActivationNumbers<T>, const S*, const S*, const T*, const T*, BitsOf<T>, const T*, T, T*,
                             T*, T*, T*, T*, T*, T*, int64_t);

// A block of rows by a block of hidden columns [from, to).
template <class T, class S>
static void hidden_block(const Chunk<T>& chunk, RowGradient<T, S> row_gradient, int64_t index, int64_t column) {
  const ExpertFfnBackwardArgs& args = chunk.args;
  const bool gated = is_gated(args.activation);
  const int64_t H = args.H, P = chunk.pre(), from = column * kColumnBlock, n = min_of(H - from, kColumnBlock);
  const Piece& block = chunk.blocks[index];
  const auto numbers = ActivationNumbers<T>::of(args);
  const auto dropout = HiddenDropout<T>::of(args, chunk.assignments.assignment());
  const T* mu = chunk.mult_bias.of(block.expert) + from;
  const T* value_bias = chunk.b1.of(block.expert) + from;
  const T* gate_bias = value_bias + (P - H);
  const BitsOf<T> straight_through = args.straight_through ? ~BitsOf<T>(0) : 0;
  T sums[3 * kColumnBlock] = {}, product[kColumnBlock], values[kColumnBlock], gates[kColumnBlock];
  T hidden[kColumnBlock], value_gradients[kColumnBlock], gate_gradients[kColumnBlock];
  for (int64_t r = block.begin; r < block.end; ++r) {
    const int64_t row = r - chunk.all.begin;
    const auto prefetch = [&](const auto& rows, int64_t at) {
      rows.prefetch(row + 2, block.end - chunk.all.begin, at, n);
    };
    prefetch(chunk.a, from);
    if (gated) prefetch(chunk.a, H + from);
    prefetch(chunk.q, from);
    const S* __restrict value = chunk.a.template read<S>(row, from, n, values);
    const S* __restrict gate = gated ? chunk.a.template read<S>(row, H + from, n, gates) : value;
    chunk.q.load(row, from, n, hidden);
    T *q = chunk.q.place(row, from, hidden), *dvalue = chunk.da.place(row, from, value_gradients);
    T* dgate = gated ? chunk.da.place(row, H + from, gate_gradients) : dvalue;
    dropout.apply(q, r, from, n);
    row_gradient(numbers, value, gate, value_bias, gate_bias, straight_through, mu, chunk.weight(r), q, dvalue, dgate,
                 product, sums, sums + kColumnBlock, sums + 2 * kColumnBlock, n);
    dropout.apply(q, r, from, n);
    chunk.q.store(row, from, n, q);
    chunk.da.store(row, from, n, dvalue);
    if (gated) chunk.da.store(row, H + from, n, dgate);
    if (chunk.dots) chunk.dots[(r - chunk.all.begin) * (chunk.columns() + 1) + column] = sum(product, n);
  }
  if (!chunk.sums) return;
  for (int part = 0; part < (gated ? 3 : 1); ++part) {
    T* to = chunk.sums + index * chunk.sum_width() + part * H + from;
    for (int64_t j = 0; j < n; ++j) to[j] = sums[part * kColumnBlock + j];
  }
}

// Combines the partial sums, in the order of blocks and columns.
template <class T>
static void finish_sums(const Context& ctx, const Chunk<T>& chunk) {
  const ExpertFfnBackwardArgs& args = chunk.args;
  const int64_t P = chunk.pre(), O = args.O, columns = chunk.columns();
  const int64_t mult_biases = chunk.bias_sums() - P;  // H, or 0
  if (chunk.dots)
    for (int64_t r = chunk.all.begin; r < chunk.all.end; ++r)
      static_cast<T*>(args.dweight)[chunk.assignment(r)] =
          sum(chunk.dots + (r - chunk.all.begin) * (columns + 1), columns + 1);
  if (!chunk.sums) return;
  parallel_for(ctx, chunk.all.experts(), [&](int64_t i) {
    const int64_t e = chunk.all.first_expert + i;
    const auto add_up = [&](void* gradient, int64_t from, int64_t width) {
      if (!gradient) return;
      T* to = static_cast<T*>(gradient) + e * width;
      for (int64_t j = 0; j < width; ++j) to[j] = 0;
      for (int64_t b = 0; b < chunk.blocks.count(); ++b)
        if (chunk.blocks[b].expert == e) axpy(T(1), chunk.sums + b * chunk.sum_width() + from, to, width);
    };
    add_up(args.db1, 0, P);
    add_up(args.dmult_bias, P, mult_biases);
    add_up(args.db2, chunk.bias_sums(), O);
  });
}

// One GEMM for each expert of a span. problem(e, row, rows): of `rows` rows from `row` of the chunk on
template <class T, class Problem>
static void expert_gemms(const Context& ctx, const Chunk<T>& chunk, const Span& span, bool stream, Problem&& problem) {
  const Scratch<GemmProblem<T>> problems(span.experts());
  int64_t count = 0;
  for (int64_t e = span.first_expert; e < span.last_expert; ++e) {
    const int64_t begin = max_of(span.begin, chunk.assignments.begin(e)),
                  end = min_of(span.end, chunk.assignments.end(e));
    problems[count] = problem(e, begin - chunk.all.begin, end - begin);
    problems[count++].stream = stream;
  }
  gemm(ctx, problems.get(), count, chunk.args.compute);
}

// What each row has of its own, of blocks [first, last): q, da and dx, and parts of the sums.
template <class T>
static void rows_backward(const Context& ctx, const Chunk<T>& chunk, int64_t first, int64_t last) {
  using Problem = GemmProblem<T>;
  const ExpertFfnBackwardArgs& args = chunk.args;
  const int64_t D = args.D, O = args.O, E = args.E, H = args.H, P = chunk.pre(), columns = chunk.columns();
  if (first == last) return;
  const Piece &head = chunk.blocks[first], &tail = chunk.blocks[last - 1];
  const Span span{head.expert, tail.expert + 1, head.begin, tail.end};

  load_gradient(ctx, chunk, first, last);
  expert_gemms(ctx, chunk, span, false, [&](int64_t e, int64_t r, int64_t rows) {
    Problem p{rows,    H, O, chunk.g.rows(r), weights_of<T>(args.w2, args.w2_stored, H, 1, E * O * H, e * O * H),
              nullptr, H};
    chunk.q.take_result(p, r);
    p.packed_b = chunk.w2_packed.at(e);
    return p;
  });
  // If there are enough blocks of rows, one thread takes all columns of one: rows need not start at a cache line, and
  // two threads that write to one line wait for each other.
  const int64_t together = last - first >= 4 * ctx.threads ? columns : 1;
  chunk.a.with_read_type([&](auto zero) {
    using S = decltype(zero);
    RowGradient<T, S> gradient = nullptr;
    dispatch_activation(args.activation, [&](auto tag) { gradient = row_gradient<decltype(tag)::value, T, S>; });
    parallel_blocks(ctx, (last - first) * columns, together, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) hidden_block(chunk, gradient, first + i / columns, i % columns);
    });
  });
  if (chunk.dx_rows)
    expert_gemms(ctx, chunk, span, false, [&](int64_t e, int64_t r, int64_t rows) {
      Problem p{rows,    D, P, chunk.da.rows(r), weights_of<T>(args.w1, args.w1_stored, D, 1, E * P * D, e * P * D),
                nullptr, D};
      chunk.dx_rows->take_result(p, chunk.all.begin + r);
      p.packed_b = chunk.w1_packed.at(e);
      return p;
    });
}

template <class T>
static void weights_backward(const Context& ctx, const Chunk<T>& chunk) {
  using Problem = GemmProblem<T>;
  const ExpertFfnBackwardArgs& args = chunk.args;
  const int64_t D = args.D, O = args.O, H = args.H, P = chunk.pre();
  const T* x = static_cast<const T*>(args.x);
  const int32_t* token = chunk.assignments.token();
  T *dw1 = static_cast<T*>(args.dw1), *dw2 = static_cast<T*>(args.dw2);
  // The optimizer reads the gradients much later.
  const bool stream = args.E * O * H * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
  expert_gemms(ctx, chunk, chunk.all, stream, [&](int64_t e, int64_t r, int64_t rows) {
    return Problem{O, H, rows, chunk.g.transposed(r), chunk.q.rows(r), dw2 + e * O * H, H};
  });
  expert_gemms(ctx, chunk, chunk.all, stream, [&](int64_t e, int64_t r, int64_t rows) {
    const int64_t row = chunk.all.begin + r;
    const MatrixView<T> in{token ? x : x + row * D, D, 1, token ? token + row : nullptr};
    return Problem{P, D, rows, chunk.da.transposed(r), in, dw1 + e * P * D, D};
  });
}

template <class T>
static void chunk_backward(const Context& ctx, const Chunk<T>& chunk) {
  const ExpertFfnBackwardArgs& args = chunk.args;
  const int64_t weight_bytes = (chunk.pre() * args.D + args.O * args.H) * static_cast<int64_t>(sizeof(T));
  if (in_pieces(ctx, chunk.all, weight_bytes))
    parallel_for(ctx, chunk.blocks.count(), [&](int64_t i) { rows_backward(Context{1, ctx.stream}, chunk, i, i + 1); });
  else
    rows_backward(ctx, chunk, 0, chunk.blocks.count());
  finish_sums(ctx, chunk);
  if (args.dw1) weights_backward(ctx, chunk);
}

// The last expert of a chunk, plus one: as many as fit, at least one.
static int64_t chunk_experts(const Assignments& assignments, int64_t E, int64_t first, int64_t limit) {
  int64_t last = first + 1;
  while (last < E && assignments.end(last) - assignments.begin(first) <= limit) ++last;
  return last;
}

template <class T>
static void backward(const Context& ctx, const ExpertFfnBackwardArgs& args, const Assignments& assignments,
                     const ActivationRows<T>* dx_rows) {
  using Rows = ActivationRows<T>;
  const int64_t D = args.D, O = args.O, H = args.H, E = args.E, P = w1_rows(args.activation, H);
  const DType compute = args.compute;
  const int64_t limit = rows_per_chunk<T>(ctx, P + H, compute);
  int64_t chunk_rows = 0, chunk_blocks = 0;
  for (int64_t first = 0, last; first < E; first = last) {
    last = chunk_experts(assignments, E, first, limit);
    const int64_t rows = assignments.end(last - 1) - assignments.begin(first);
    chunk_rows = max_of(chunk_rows, rows);
    chunk_blocks = max_of(chunk_blocks, Pieces::most(rows, last - first));
  }
  const bool gather = !assignments.dense(), dots = args.dweight, biases = args.db1 || args.dmult_bias || args.db2;
  const Scratch<T> gathered(gather ? chunk_rows * Rows::stride_of(O, compute) : 0);
  const Scratch<T> q(chunk_rows * Rows::stride_of(H, compute)), da(chunk_rows * Rows::stride_of(P, compute));
  Scratch<T> dot_parts(dots ? chunk_rows * (ceil_div(H, kColumnBlock) + 1) : 0);
  Scratch<T> sum_parts(biases ? chunk_blocks * (hidden_biases(args.activation, H) + O) : 0);
  const auto w1 = weights_of<T>(args.w1, args.w1_stored, D, 1, E * P * D);
  const auto w2 = weights_of<T>(args.w2, args.w2_stored, H, 1, E * O * H);
  const PackedWeights<T> w1_packed(ctx, dx_rows ? args.w1_packed : nullptr, w1, E, P * D, P, D, compute);
  const PackedWeights<T> w2_packed(ctx, args.w2_packed, w2, E, O * H, O, H, compute);
  const ExpertBias<T> b1(args.b1, P, T(0)), mult_bias(args.mult_bias, H, T(1)), b2(args.b2, O, T(0));
  const Rows a(ctx, const_cast<void*>(args.a), P, args.saved, compute), dy(ctx, const_cast<void*>(args.dy), O, O);

  for (int64_t first = 0, last; first < E; first = last) {
    last = chunk_experts(assignments, E, first, limit);
    const Span all{first, last, assignments.begin(first), assignments.end(last - 1)};
    const Pieces blocks(assignments, first, last);
    const Chunk<T> chunk{args,
                         assignments,
                         all,
                         blocks,
                         w1_packed,
                         w2_packed,
                         b1,
                         mult_bias,
                         b2,
                         a.from(all.begin),
                         gather ? Rows(ctx, gathered, O, compute) : dy.from(all.begin),
                         Rows(ctx, q, H, compute),
                         Rows(ctx, da, P, compute),
                         dx_rows,
                         dots ? dot_parts.get() : nullptr,
                         biases ? sum_parts.get() : nullptr};
    chunk_backward(ctx, chunk);
  }
}

void expert_ffn_backward(const Context& ctx, const ExpertFfnBackwardArgs& args) {
  dispatch_float(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Assignments assignments(args);
    T *dx = static_cast<T*>(args.dx), *dweight = static_cast<T*>(args.dweight);
    const bool in_place = assignments.dense();
    using Rows = ActivationRows<T>;
    const DType summed = summed_rows(args.dtype, args.compute);
    const Scratch<T> memory(dx && !in_place ? assignments.rows() * Rows::stride_of(args.D, summed) : 0);
    const Rows dx_rows = in_place ? Rows(ctx, dx, args.D, args.D) : Rows(ctx, memory, args.D, summed);
    if (dweight)
      for (int64_t i = 0; i < args.T * args.K; ++i) dweight[i] = 0;
    backward(ctx, args, assignments, dx ? &dx_rows : nullptr);
    if (dx && !in_place) combine_rows<T>(ctx, assignments.row_of(), dx_rows, nullptr, dx, args.T, args.K, args.D);
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
