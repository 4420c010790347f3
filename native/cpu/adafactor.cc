#include "core/optimizers.h"

#include "cpu/kernel.h"
#include "cpu/wide.h"

namespace st_moe::cpu::ST_MOE_ISA {

using Update = AdafactorUpdate;

// A tensor and its memory of this call. Matrices are taken in blocks of rows, other tensors in blocks of elements, as
// one matrix with a column; the blocks depend on shapes alone.
struct Adafactor {
  const AdafactorArgs* args;
  FactorList factors;
  int64_t rows, columns, matrices, block_rows, blocks;  // blocks of one matrix
  int64_t first_block, first_matrix, first_column;      // in the memory of all tensors
  int64_t first_partial;
  double rate, clipped;

  int64_t size() const { return matrices * rows * columns; }
};

constexpr int64_t kLeastRows = 64;  // of a block: it has a sum per column

static Adafactor tensor_of(const AdafactorArgs& args) {
  Adafactor t{};
  t.args = &args;
  t.factors = Update::factors(args);
  const bool factored = args.row;
  t.matrices = factored ? args.T : 1;
  t.rows = factored ? args.R : args.T * args.R * args.D;
  t.columns = factored ? args.D : 1;
  if (t.size() == 0 || skips(args.norm)) return t;
  t.block_rows = factored ? max_of(kLeastRows, kElementBlock / t.columns) : kElementBlock;
  t.blocks = ceil_div(t.rows, t.block_rows);
  return t;
}

// What the blocks and matrices of a call share, all tensors one after another.
struct AdafactorMemory {
  Scratch<double> p_squares, u_squares;  // [blocks]
  Scratch<double> column_sums;           // of squares of gradients, [blocks, columns]
  Scratch<double> row_means;             // [matrices]
  Scratch<double> inverse_columns;       // 1 / √col, [matrices, columns] of the tensor's type
};

template <class T>
struct Typed {
  T f[kFactors];
  T *p, *row, *col, *v, *m;
  const T* g;

  explicit Typed(const Adafactor& t)
      : p(static_cast<T*>(t.args->p)),
        row(static_cast<T*>(t.args->row)),
        col(static_cast<T*>(t.args->col)),
        v(static_cast<T*>(t.args->v)),
        m(static_cast<T*>(t.args->m)),
        g(static_cast<const T*>(t.args->g)) {
    for (int i = 0; i < kFactors; ++i) f[i] = static_cast<T>(t.factors.value[i]);
  }
};

template <class T>
static double squares(const T* x, int64_t n) {
  return wide_dot(x, x, n);
}

// Rows [begin, end) of one matrix: moments of rows, sums of columns.
template <class T>
static void add_rows(const Adafactor& t, int64_t begin, int64_t end, double* sums) {
  const Typed<T> of(t);
  const int64_t D = t.columns;
  for (int64_t j = 0; j < D; ++j) sums[j] = 0;
  for (int64_t i = begin; i < end; ++i) {
    const T* const g = of.g + i * D;
    for (int64_t j = 0; j < D; ++j) {
      const double value = g[j];
      sums[j] += value * value;
    }
    of.row[i] = Update::moment(of.f, of.row[i], static_cast<T>(squares(g, D) / static_cast<double>(D)));
  }
}

// Elements [begin, end) of a tensor that is no matrix; returns the sum of squares of the update.
template <class T>
static double add_elements(const Adafactor& t, int64_t begin, int64_t end) {
  const Typed<T> of(t);
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) of.v[i] = Update::moment(of.f, of.v[i], of.g[i] * of.g[i]);
  return wide_reduce<T>(end - begin, [&](auto at) {
    const auto g = at(of.g + begin);
    return g * g / at(of.v + begin);
  });
}

// Moments of columns of one matrix, the mean of those of its rows, and 1 / √col.
template <class T>
static void finish_matrix(const Adafactor& t, int64_t matrix, double* sums, double* mean, T* inverse) {
  const Typed<T> of(t);
  const int64_t D = t.columns;
  T* const col = of.col + matrix * D;
  for (int64_t b = 1; b < t.blocks; ++b)
    for (int64_t j = 0; j < D; ++j) sums[j] += sums[b * D + j];
  for (int64_t j = 0; j < D; ++j) {
    col[j] = Update::moment(of.f, col[j], static_cast<T>(sums[j] / static_cast<double>(t.rows)));
    inverse[j] = T(1) / std::sqrt(col[j]);
  }
  *mean = wide_sum(of.row + matrix * t.rows, t.rows) / static_cast<double>(t.rows);
}

template <class T>
static T inverse_row(T row, double mean) {
  return static_cast<T>(1 / std::sqrt(static_cast<double>(row) / mean));
}

template <class T>
static double update_squares(const Adafactor& t, int64_t begin, int64_t end, double mean, const T* inverse) {
  const Typed<T> of(t);
  double total = 0;
  for (int64_t i = begin; i < end; ++i) {
    const double factor = static_cast<double>(inverse_row(of.row[i], mean));
    total += factor * factor * wide_reduce<T>(t.columns, [&](auto at) {
               const auto u = at(of.g + i * t.columns) * at(inverse);
               return u * u;
             });
  }
  return total;
}

template <class T, bool has_m, class U>
static void apply_row(const Adafactor& t, int64_t begin, int64_t end, U update) {
  const Typed<T> of(t);
  const T rate = static_cast<T>(t.rate), clipped = static_cast<T>(t.clipped);
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) {
    T value = of.p[i], m = has_m ? of.m[i] : T(0);
    Update::apply(of.f, rate, clipped, value, update(of, i), has_m ? &m : nullptr);
    of.p[i] = value;
    if (has_m) of.m[i] = m;
  }
}

template <class T, class U>
static void apply_row(const Adafactor& t, int64_t begin, int64_t end, U update) {
  if (t.args->m)
    apply_row<T, true>(t, begin, end, update);
  else
    apply_row<T, false>(t, begin, end, update);
}

template <class T>
static void apply_rows(const Adafactor& t, int64_t begin, int64_t end, double mean, const T* inverse) {
  for (int64_t i = begin; i < end; ++i) {
    const T factor = inverse_row(static_cast<const T*>(t.args->row)[i], mean);
    const int64_t first = i * t.columns;
    apply_row<T>(t, first, first + t.columns,
                 [=](const Typed<T>& of, int64_t at) { return of.g[at] * factor * inverse[at - first]; });
  }
}

void adafactor(const Context& ctx, const Batch<AdafactorArgs>& batch) {
  Scratch<Adafactor> tensors(batch.count);
  int64_t blocks = 0, matrices = 0, columns = 0, partials = 0;
  for (int64_t i = 0; i < batch.count; ++i) {
    Adafactor& t = tensors[i] = tensor_of(batch.items[i]);
    t.first_block = blocks, t.first_matrix = matrices, t.first_column = columns, t.first_partial = partials;
    blocks += t.matrices * t.blocks;
    if (!t.args->row || t.blocks == 0) continue;
    matrices += t.matrices;
    columns += t.matrices * t.columns;
    partials += t.matrices * t.blocks * t.columns;
  }
  const AdafactorMemory memory{Scratch<double>(blocks), Scratch<double>(blocks), Scratch<double>(partials),
                               Scratch<double>(matrices), Scratch<double>(columns)};
  const auto last_before = [&](int64_t Adafactor::* first, int64_t index) -> const Adafactor& {
    int64_t low = 0, high = batch.count - 1;  // the last tensor that begins at or before the index
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (tensors[middle].*first <= index)
        low = middle;
      else
        high = middle - 1;
    }
    return tensors[low];
  };
  const auto inverse_of = [&](const Adafactor& t, int64_t matrix) {
    return memory.inverse_columns.get() + t.first_column + matrix * t.columns;
  };
  // f(tensor, block of all, matrix, first and last row in the tensor, zero of its type)
  const auto for_blocks = [&](auto f) {
    parallel_for(ctx, blocks, [&](int64_t block) {
      const Adafactor& t = last_before(&Adafactor::first_block, block);
      const int64_t matrix = (block - t.first_block) / t.blocks, own = (block - t.first_block) % t.blocks;
      const int64_t begin = own * t.block_rows, end = min_of(t.rows, begin + t.block_rows), base = matrix * t.rows;
      dispatch_float(t.args->dtype, [&](auto zero) { f(t, block, matrix, base + begin, base + end, zero); });
    });
  };
  for_blocks([&](const Adafactor& t, int64_t block, int64_t, int64_t begin, int64_t end, auto zero) {
    using T = decltype(zero);
    memory.p_squares[block] = squares(static_cast<const T*>(t.args->p) + begin * t.columns, (end - begin) * t.columns);
    if (t.args->row)
      add_rows<T>(t, begin, end, memory.column_sums.get() + t.first_partial + (block - t.first_block) * t.columns);
    else
      memory.u_squares[block] = add_elements<T>(t, begin, end);
  });
  parallel_for(ctx, matrices, [&](int64_t index) {
    const Adafactor& t = last_before(&Adafactor::first_matrix, index);
    const int64_t matrix = index - t.first_matrix;
    double* const sums = memory.column_sums.get() + t.first_partial + matrix * t.blocks * t.columns;
    dispatch_float(t.args->dtype, [&](auto zero) {
      using T = decltype(zero);
      finish_matrix<T>(t, matrix, sums, &memory.row_means[index], reinterpret_cast<T*>(inverse_of(t, matrix)));
    });
  });
  for_blocks([&](const Adafactor& t, int64_t block, int64_t matrix, int64_t begin, int64_t end, auto zero) {
    using T = decltype(zero);
    if (t.args->row)
      memory.u_squares[block] = update_squares<T>(t, begin, end, memory.row_means[t.first_matrix + matrix],
                                                  reinterpret_cast<const T*>(inverse_of(t, matrix)));
  });
  for (int64_t i = 0; i < batch.count; ++i) {
    Adafactor& t = tensors[i];
    const int64_t count = t.matrices * t.blocks;
    if (count == 0) continue;
    const double p = wide_sum(memory.p_squares.get() + t.first_block, count);
    const double u = wide_sum(memory.u_squares.get() + t.first_block, count);
    Update::rates(t.factors.value, p, u, t.size(), &t.rate, &t.clipped);
  }
  for_blocks([&](const Adafactor& t, int64_t, int64_t matrix, int64_t begin, int64_t end, auto zero) {
    using T = decltype(zero);
    if (t.args->row)
      apply_rows<T>(t, begin, end, memory.row_means[t.first_matrix + matrix],
                    reinterpret_cast<const T*>(inverse_of(t, matrix)));
    else
      apply_row<T>(t, begin, end, [](const Typed<T>& of, int64_t at) { return of.g[at] / std::sqrt(of.v[at]); });
  });
}

}  // namespace st_moe::cpu::ST_MOE_ISA
