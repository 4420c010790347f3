#include <list>
#include <vector>

#include "core/optimizers.h"

#include "cuda/batch.cuh"
#include "cuda/columns.cuh"
#include "cuda/per_step.cuh"

// A warp takes a row of a matrix; other tensors are taken element by element. Sums are in double, in an order that
// depends on shapes alone.
namespace st_moe::cuda {

using Update = AdafactorUpdate;

constexpr int64_t kRowsPerBlock = kBlock / kWarp;

// A tensor, and its part of the memory of this call.
template <class T>
struct AdafactorTensor {
  T *p, *row, *col, *v, *m;  // row and col, or v
  const T* g;
  int64_t matrices, rows, columns;  // of no matrix: 1, 1, all elements
  T* inverse_columns;               // [matrices, columns]: sums of squares of gradients, then 1 / √col
  double* row_means;                // [matrices]
  double *p_squares, *u_squares;    // [chunks], the sums of a block
  int64_t chunks;
  T* rates;  // [2]: AdafactorUpdate::rates
  Factors<T> factors;
  int64_t size;  // of this launch

  __host__ __device__ int64_t elements() const { return matrices * rows * columns; }

  __device__ void read(T* f) const {
    for (int i = 0; i < kFactors; ++i) f[i] = factors[i];
  }
  __device__ T inverse_row(int64_t i) const {
    return static_cast<T>(1 / std::sqrt(static_cast<double>(row[i]) / row_means[i / rows]));
  }
};

template <class T>
using Rows = Items<AdafactorTensor<T>, kRowsPerBlock>;
template <class T>
using Elements = Items<AdafactorTensor<T>>;
template <class T>
using Matrices = Items<AdafactorTensor<T>, 1>;

// Σ over the block, which one thread writes.
__device__ static inline void write_sum(double sum, double* to) {
  const double total = block_reduce(sum, Sum{}, 0.0);
  if (threadIdx.x == 0) *to = total;
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    adafactor_rows_kernel(const __grid_constant__ Rows<T> items, const double* norm) {
  if (skips(norm)) return;
  items.for_chunks([&](const AdafactorTensor<T>& t, int64_t, int64_t begin, int64_t end) {
    const int64_t i = begin + threadIdx.x / kWarp, D = t.columns;
    T f[kFactors];
    t.read(f);
    LaneSum<T> g_squares, p_squares;
    if (i < end) {
      for (int64_t j = threadIdx.x % kWarp; j < D; j += kWarp) {
        const T g = t.g[i * D + j], p = t.p[i * D + j];
        g_squares.add(g * g);
        p_squares.add(p * p);
      }
      const double squares = warp_reduce(g_squares.total(), Sum{});
      if (threadIdx.x % kWarp == 0)
        t.row[i] = Update::moment(f, t.row[i], static_cast<T>(squares / static_cast<double>(D)));
    }
    write_sum(p_squares.total(), t.p_squares + begin / kRowsPerBlock);
  });
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    adafactor_columns_kernel(const __grid_constant__ Elements<T> items, const double* norm) {
  if (skips(norm)) return;
  items.for_chunks([&](const AdafactorTensor<T>& t, int64_t, int64_t begin, int64_t end) {
    T f[kFactors];
    t.read(f);
    for (int64_t j = begin + threadIdx.x; j < end; j += kBlock) {
      t.col[j] = Update::moment(f, t.col[j], t.inverse_columns[j] / static_cast<T>(t.rows));
      t.inverse_columns[j] = T(1) / std::sqrt(t.col[j]);
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    adafactor_means_kernel(const __grid_constant__ Matrices<T> items, const double* norm) {
  if (skips(norm)) return;
  items.for_chunks([&](const AdafactorTensor<T>& t, int64_t, int64_t matrix, int64_t) {
    LaneSum<T> sum;
    for (int64_t i = threadIdx.x; i < t.rows; i += kBlock) sum.add(t.row[matrix * t.rows + i]);
    const double total = block_reduce(sum.total(), Sum{}, 0.0);
    if (threadIdx.x == 0) t.row_means[matrix] = total / static_cast<double>(t.rows);
  });
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    adafactor_squares_kernel(const __grid_constant__ Rows<T> items, const double* norm) {
  if (skips(norm)) return;
  items.for_chunks([&](const AdafactorTensor<T>& t, int64_t, int64_t begin, int64_t end) {
    const int64_t i = begin + threadIdx.x / kWarp, D = t.columns;
    LaneSum<T> squares;
    if (i < end) {
      const T factor = t.inverse_row(i);
      const T* const inverse = t.inverse_columns + i / t.rows * D;
      for (int64_t j = threadIdx.x % kWarp; j < D; j += kWarp) {
        const T u = t.g[i * D + j] * factor * inverse[j];
        squares.add(u * u);
      }
    }
    write_sum(squares.total(), t.u_squares + begin / kRowsPerBlock);
  });
}

// Of tensors that are no matrices.
template <class T>
__global__ void __launch_bounds__(kBlock)
    adafactor_elements_kernel(const __grid_constant__ Elements<T> items, const double* norm) {
  if (skips(norm)) return;
  items.for_chunks([&](const AdafactorTensor<T>& t, int64_t, int64_t begin, int64_t end) {
    T f[kFactors];
    t.read(f);
    LaneSum<T> p_squares, u_squares;
    for (int64_t i = begin + threadIdx.x; i < end; i += kBlock) {
      const T g = t.g[i], p = t.p[i], v = Update::moment(f, t.v[i], g * g), u = g / std::sqrt(v);
      t.v[i] = v;
      p_squares.add(p * p);
      u_squares.add(u * u);
    }
    write_sum(p_squares.total(), t.p_squares + begin / kChunk);
    write_sum(u_squares.total(), t.u_squares + begin / kChunk);
  });
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    adafactor_rates_kernel(const __grid_constant__ Matrices<T> items, const double* norm) {
  if (skips(norm)) return;
  items.for_chunks([&](const AdafactorTensor<T>& t, int64_t, int64_t, int64_t) {
    T f[kFactors];
    t.read(f);
    double p = 0, u = 0;
    for (int64_t i = threadIdx.x; i < t.chunks; i += kBlock) {
      p += t.p_squares[i];
      u += t.u_squares[i];
    }
    p = block_reduce(p, Sum{}, 0.0);
    u = block_reduce(u, Sum{}, 0.0);
    if (threadIdx.x == 0) Update::rates(f, p, u, t.elements(), t.rates, t.rates + 1);
  });
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    adafactor_apply_rows_kernel(const __grid_constant__ Rows<T> items, const double* norm) {
  if (skips(norm)) return;
  items.for_chunks([&](const AdafactorTensor<T>& t, int64_t, int64_t begin, int64_t end) {
    const int64_t i = begin + threadIdx.x / kWarp, D = t.columns;
    if (i >= end) return;
    T f[kFactors];
    t.read(f);
    const T factor = t.inverse_row(i), rate = t.rates[0], clipped = t.rates[1];
    const T* const inverse = t.inverse_columns + i / t.rows * D;
    for (int64_t j = threadIdx.x % kWarp; j < D; j += kWarp) {
      const int64_t at = i * D + j;
      Update::apply(f, rate, clipped, t.p[at], t.g[at] * factor * inverse[j], t.m ? t.m + at : nullptr);
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    adafactor_apply_kernel(const __grid_constant__ Elements<T> items, const double* norm) {
  if (skips(norm)) return;
  items.for_chunks([&](const AdafactorTensor<T>& t, int64_t, int64_t begin, int64_t end) {
    T f[kFactors];
    t.read(f);
    const T rate = t.rates[0], clipped = t.rates[1];
    for (int64_t i = begin + threadIdx.x; i < end; i += kBlock)
      Update::apply(f, rate, clipped, t.p[i], t.g[i] / std::sqrt(t.v[i]), t.m ? t.m + i : nullptr);
  });
}

// The square of each element of g.
template <class T>
struct SquareOf {
  const T* g;
  int64_t columns;

  __device__ ColumnTerms<T, 1> operator()(int64_t row, int64_t column) const {
    const T value = g[row * columns + column];
    return {{value * value}};
  }
};

// Launches the kernel for the tensors, `size(tensor)` of each, in as few parts as possible.
template <int64_t kPer, class T, class Size>
static void launch_for(const Context& ctx, void (*kernel)(Items<AdafactorTensor<T>, kPer>, const double*),
                       const std::vector<AdafactorTensor<T>>& tensors, const double* norm, Size size) {
  Items<AdafactorTensor<T>, kPer> items;
  const auto run = [&] {
    if (items.count) launch(ctx, kernel, grid_for(items.chunks(), 1), kBlock, 0, items, norm);
    items.count = 0;
  };
  for (const AdafactorTensor<T>& tensor : tensors) {
    const int64_t own = size(tensor);
    if (own == 0) continue;
    if (items.count == items.kMost) run();
    items.ends[items.count] = items.chunks() + ceil_div(own, kPer);
    items.item[items.count] = tensor;
    items.item[items.count++].size = own;
  }
  run();
}

template <class T>
static AdafactorTensor<T> tensor_of(const Context& ctx, const AdafactorArgs& args) {
  AdafactorTensor<T> t{};
  t.p = static_cast<T*>(args.p), t.g = static_cast<const T*>(args.g);
  t.row = static_cast<T*>(args.row), t.col = static_cast<T*>(args.col);
  t.v = static_cast<T*>(args.v), t.m = static_cast<T*>(args.m);
  t.matrices = args.row ? args.T : 1, t.rows = args.row ? args.R : 1;
  t.columns = args.row ? args.D : args.T * args.R * args.D;
  t.chunks = args.row ? ceil_div(t.matrices * t.rows, kRowsPerBlock) : ceil_div(t.columns, kChunk);
  t.factors = Factors<T>(ctx, args.step, factors_of(args));
  return t;
}

// The tensors of one type. The constructor allocates all memory, and changes nothing.
template <class T>
class AdafactorBatch {
 public:
  AdafactorBatch(const Context& ctx, const Batch<AdafactorArgs>& batch, const double* norm)
      : ctx_(ctx), norm_(norm), tensors_(tensors_of(ctx, batch)), typed_(ctx, typed_size()), sums_(ctx, sums_size()) {
    T* next = typed_.get();
    double* next_sum = sums_.get();
    for (AdafactorTensor<T>& t : tensors_) {
      t.rates = next, next += 2;
      t.p_squares = next_sum, next_sum += t.chunks;
      t.u_squares = next_sum, next_sum += t.chunks;
      if (!t.row) continue;
      t.inverse_columns = next, next += t.matrices * t.columns;
      t.row_means = next_sum, next_sum += t.matrices;
      sum_columns(ctx, t.matrices, t.rows, t.columns, SquareOf<T>{t.g, t.columns},
                  ColumnSums<T, 1>{{t.inverse_columns}});
    }
  }

  void update() const {
    const auto run = [&](auto kernel, auto size) { launch_for(ctx_, kernel, tensors_, norm_, size); };
    const auto rows = [](Tensor t) { return t.row ? t.matrices * t.rows : 0; };
    const auto elements = [](Tensor t) { return t.row ? 0 : t.columns; };
    run(adafactor_rows_kernel<T>, rows);
    run(adafactor_columns_kernel<T>, [](Tensor t) { return t.row ? t.matrices * t.columns : 0; });
    run(adafactor_means_kernel<T>, [](Tensor t) { return t.row ? t.matrices : 0; });
    run(adafactor_squares_kernel<T>, rows);
    run(adafactor_elements_kernel<T>, elements);
    run(adafactor_rates_kernel<T>, [](Tensor) { return int64_t{1}; });
    run(adafactor_apply_rows_kernel<T>, rows);
    run(adafactor_apply_kernel<T>, elements);
  }

 private:
  using Tensor = const AdafactorTensor<T>&;

  static std::vector<AdafactorTensor<T>> tensors_of(const Context& ctx, const Batch<AdafactorArgs>& batch) {
    std::vector<AdafactorTensor<T>> tensors;
    for (int64_t i = 0; i < batch.count; ++i) {
      if (dtype_size(batch.items[i].dtype) != sizeof(T)) continue;
      const AdafactorTensor<T> t = tensor_of<T>(ctx, batch.items[i]);
      if (t.elements() > 0) tensors.push_back(t);
    }
    return tensors;
  }
  int64_t typed_size() const {
    int64_t size = 0;
    for (Tensor t : tensors_) size += 2 + (t.row ? t.matrices * t.columns : 0);
    return size;
  }
  int64_t sums_size() const {
    int64_t size = 0;
    for (Tensor t : tensors_) size += 2 * t.chunks + (t.row ? t.matrices : 0);
    return size;
  }

  const Context& ctx_;
  const double* norm_;
  std::vector<AdafactorTensor<T>> tensors_;
  Scratch<T> typed_;
  Scratch<double> sums_;
};

void adafactor(const Context& ctx, const Batch<AdafactorArgs>& batch) {
  std::list<AdafactorBatch<float>> singles;
  std::list<AdafactorBatch<double>> doubles;
  by_norm(batch, [&](const Batch<AdafactorArgs>& part, const double* norm) {
    singles.emplace_back(ctx, part, norm);
    doubles.emplace_back(ctx, part, norm);
  });
  for (const auto& part : singles) part.update();
  for (const auto& part : doubles) part.update();
}

}  // namespace st_moe::cuda
