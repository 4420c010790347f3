#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/convert.h"
#include "emulator/cublaslt_api.h"
#include "../../check.h"

// The stand-in of cuBLASLt's grouped matmul against plain loops, and what it refuses.
using namespace st_moe;

namespace {

// An array on the device; the host writes it between two runs of what is queued.
template <class T>
class Array {
 public:
  explicit Array(const std::vector<T>& values) : size_(values.size()) {
    cudaMalloc(&memory_, (size_ + 1) * sizeof(T));
    write(values);
  }
  ~Array() { cudaFree(memory_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  void write(const std::vector<T>& values) { copy(memory_, values.data(), cudaMemcpyHostToDevice); }
  std::vector<T> back() const {
    std::vector<T> values(size_);
    copy(values.data(), memory_, cudaMemcpyDeviceToHost);
    return values;
  }
  T* get() const { return memory_; }

 private:
  void copy(void* to, const void* from, cudaMemcpyKind kind) const {
    cudaMemcpyAsync(to, from, size_ * sizeof(T), kind);
    cudaStreamSynchronize(nullptr);
  }
  size_t size_;
  T* memory_ = nullptr;
};

uint16_t rounded(cudaDataType type, float value) {
  return type == CUDA_R_16BF ? float_to_bf16(value) : float_to_f16(value);
}

constexpr int kGroups = 4;
constexpr int kRoom = 16 * 24;  // of a matrix, whose strides are 16

struct Sizes {
  std::vector<int> m, n, k;
};
const Sizes kSizes{{3, 0, 8, 5}, {6, 6, 1, 7}, {4, 9, 0, 16}}, kOthers{{1, 16, 2, 0}, {5, 2, 24, 3}, {8, 3, 7, 2}};

struct Options {
  cudaDataType type = CUDA_R_16BF, result = CUDA_R_16BF;
  bool transa = false, transb = false, wide = false;
  cublasLtPointerMode_t mode = CUBLASLT_POINTER_MODE_DEVICE;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  uint32_t alignment = 16;
  size_t workspace = 1 << 20;
  size_t average_bytes = sizeof(int64_t);
  int further = 0;         // elements by which the first matrix of A is moved
  int stride = 16;         // of A's columns
  bool on_host = false;    // the sizes
  bool capturing = false;  // while an algorithm is asked for
  bool keeps_its_workspace = true;
};

// A grouped matmul with all of its memory.
class Matmul {
 public:
  explicit Matmul(const Options& options, const Sizes& sizes = kSizes)
      : options_(options),
        a_(std::vector<uint16_t>(kGroups * kRoom)),
        b_(std::vector<uint16_t>(kGroups * kRoom)),
        c_(std::vector<float>(kGroups * kRoom)),
        d_(std::vector<float>(kGroups * kRoom)),
        alpha_({2, 1, 3, 1}),
        beta_({0, 1, 1, -1}),
        workspace_(std::vector<char>(1 << 20)),
        a_sizes_(std::vector<int64_t>(3 * kGroups)),
        b_sizes_(std::vector<int64_t>(3 * kGroups)),
        d_sizes_(std::vector<int64_t>(3 * kGroups)),
        pointers_(std::vector<char*>(4 * kGroups)) {
    fill();
    set_sizes(sizes);
    cublasLtCreate(&handle_);
    cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
  }
  ~Matmul() {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
    cublasLtDestroy(handle_);
  }

  // Asks for an algorithm and queues the matmul; everything that describes it ends at once.
  cublasStatus_t queue() {
    cublasLtMatmulAlgo_t algo;
    const cublasStatus_t status = find(&algo);
    return status == CUBLAS_STATUS_SUCCESS ? call(algo) : status;
  }

  cublasStatus_t find(cublasLtMatmulAlgo_t* algo) {
    const Described described(*this);
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulPreferenceCreate(&preference);
    const auto prefer = [&](int attribute, const auto& value, size_t bytes) {
      return cublasLtMatmulPreferenceSetAttribute(preference, cublasLtMatmulPreferenceAttributes_t(attribute), &value,
                                                  bytes);
    };
    cublasStatus_t status = prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, options_.workspace, sizeof(size_t));
    for (int i = 0; i < 4; ++i) prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i, options_.alignment, 4);
    for (int i = 0; i < 3 && status == CUBLAS_STATUS_SUCCESS; ++i)
      status = prefer(CUBLASLT_MATMUL_PREF_GROUPED_AVERAGE_REDUCTION_DIM + i, int64_t{8}, options_.average_bytes);
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    if (options_.capturing) cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed);
    if (status == CUBLAS_STATUS_SUCCESS)
      status = cublasLtMatmulAlgoGetHeuristic(handle_, described.desc, described.a, described.b, described.d,
                                              described.d, preference, 1, &result, &count);
    if (options_.capturing) {
      cudaGraph_t graph = nullptr;
      cudaStreamEndCapture(stream_, &graph);
      if (graph) cudaGraphDestroy(graph);
    }
    check((status == CUBLAS_STATUS_SUCCESS) == (count == 1), "an algorithm is found, or an error says why not");
    cublasLtMatmulPreferenceDestroy(preference);
    *algo = result.algo;
    return status;
  }

  cublasStatus_t call(const cublasLtMatmulAlgo_t& algo) {
    const Described described(*this);
    char** pointers = pointers_.get();
    return cublasLtMatmul(handle_, described.desc, alpha_.get(), pointers, described.a, pointers + kGroups, described.b,
                          beta_.get(), pointers + 2 * kGroups, described.d, pointers + 3 * kGroups, described.d, &algo,
                          workspace_.get() + (options_.keeps_its_workspace ? 0 : 8), 1 << 19, stream_);
  }

  void set_sizes(const Sizes& sizes) {
    sizes_ = sizes;
    const auto stored = [&](const std::vector<int>& rows, const std::vector<int>& columns, bool transposed, int ld) {
      std::vector<int64_t> entries(3 * kGroups);
      const auto put = [&](int which, int g, int64_t value) {
        if (options_.wide)
          entries[static_cast<size_t>(which * kGroups + g)] = value;
        else
          reinterpret_cast<int32_t*>(entries.data())[which * kGroups + g] = static_cast<int32_t>(value);
      };
      for (int g = 0; g < kGroups; ++g) {
        const auto i = static_cast<size_t>(g);
        put(0, g, transposed ? columns[i] : rows[i]);
        put(1, g, transposed ? rows[i] : columns[i]);
        put(2, g, ld);
      }
      return entries;
    };
    host_ = stored(sizes.m, sizes.k, options_.transa, options_.stride);
    a_sizes_.write(host_);
    b_sizes_.write(stored(sizes.k, sizes.n, options_.transb, 16));
    d_sizes_.write(stored(sizes.m, sizes.n, false, 16));
  }

  // Every element of D: products where there are some, and nothing else written.
  bool is_right() {
    if (cudaStreamSynchronize(stream_) != cudaSuccess) return false;
    const std::vector<float> found = d_.back();
    for (size_t g = 0; g < kGroups; ++g)
      for (size_t column = 0; column < 24; ++column)
        for (size_t row = 0; row < 16; ++row) {
          const bool inside = row < size_t(sizes_.m[g]) && column < size_t(sizes_.n[g]);
          const float wanted = inside ? result(g, row, column) : -9.0f;
          if (read(found, g, row + 16 * column) != wanted) return false;
        }
    return true;
  }

  cudaStream_t stream() const { return stream_; }

 private:
  // The descriptors of a call.
  struct Described {
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulDesc_t desc;

    explicit Described(const Matmul& of) {
      const Options& options = of.options_;
      const auto layout = [&](cublasLtMatrixLayout_t* out, cudaDataType type, const void* sizes) {
        const auto* entries = static_cast<const char*>(sizes);
        const size_t array = kGroups * (options.wide ? sizeof(int64_t) : sizeof(int32_t));
        cublasLtGroupedMatrixLayoutCreate(out, type, kGroups, entries, entries + array, entries + 2 * array);
        const int32_t width = options.wide ? CUBLASLT_INTEGER_WIDTH_64 : CUBLASLT_INTEGER_WIDTH_32;
        cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_GROUPED_MATRIX_LAYOUT_ROWS_COLS_ARRAY_INTEGER_WIDTH, &width, 4);
        cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_GROUPED_MATRIX_LAYOUT_LD_ARRAY_INTEGER_WIDTH, &width, 4);
      };
      layout(&a, options.type, options.on_host ? static_cast<const void*>(of.host_.data()) : of.a_sizes_.get());
      layout(&b, options.type, of.b_sizes_.get());
      layout(&d, options.result, of.d_sizes_.get());
      cublasLtMatmulDescCreate(&desc, options.compute, CUDA_R_32F);
      const int32_t mode = options.mode, transa = options.transa, transb = options.transb;
      const int64_t one = 1;
      cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode, 4);
      cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transa, 4);
      cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSB, &transb, 4);
      cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_ALPHA_BATCH_STRIDE, &one, 8);
      cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BETA_BATCH_STRIDE, &one, 8);
    }
    ~Described() {
      for (cublasLtMatrixLayout_t each : {a, b, d}) cublasLtMatrixLayoutDestroy(each);
      cublasLtMatmulDescDestroy(desc);
    }
  };

  static float small(size_t g, size_t i, int seed) { return static_cast<float>(int((i * 7 + g * 3 + seed) % 11) - 5); }

  void fill() {
    std::vector<uint16_t> a(kGroups * kRoom), b(a.size());
    std::vector<float> c(a.size()), d(a.size(), -9.0f);
    for (size_t g = 0; g < kGroups; ++g)
      for (size_t i = 0; i < kRoom; ++i) {
        const size_t moved = g * kRoom + i + (g == 0 ? static_cast<size_t>(options_.further) : 0);
        if (moved < a.size()) a[moved] = rounded(options_.type, small(g, i, 1));
        b[g * kRoom + i] = rounded(options_.type, small(g, i, 2));
        write(c, g, i, small(g, i, 4));
        write(d, g, i, -9.0f);
      }
    a_.write(a), b_.write(b), c_.write(c), d_.write(d);
    std::vector<char*> pointers;
    const auto all = [&](void* memory, size_t bytes, int further) {
      for (size_t g = 0; g < kGroups; ++g)
        pointers.push_back(static_cast<char*>(memory) + (g * kRoom + (g == 0 ? size_t(further) : 0)) * bytes);
    };
    all(a_.get(), 2, options_.further), all(b_.get(), 2, 0);
    const size_t bytes = options_.result == CUDA_R_32F ? 4 : 2;
    all(c_.get(), bytes, 0), all(d_.get(), bytes, 0);
    pointers_.write(pointers);
  }

  // Results are of either size, in memory for the larger.
  void write(std::vector<float>& memory, size_t g, size_t i, float value) const {
    if (options_.result == CUDA_R_32F)
      memory[g * kRoom + i] = value;
    else
      reinterpret_cast<uint16_t*>(memory.data())[g * kRoom + i] = rounded(options_.result, value);
  }
  float read(const std::vector<float>& memory, size_t g, size_t i) const {
    if (options_.result == CUDA_R_32F) return memory[g * kRoom + i];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(memory.data())[g * kRoom + i];
    return options_.result == CUDA_R_16BF ? bf16_to_float(bits) : f16_to_float(bits);
  }

  float result(size_t g, size_t row, size_t column) const {
    float sum = 0;
    for (size_t k = 0; k < size_t(sizes_.k[g]); ++k)
      sum += small(g, options_.transa ? k + 16 * row : row + 16 * k, 1) *
             small(g, options_.transb ? column + 16 * k : k + 16 * column, 2);
    const float alpha[] = {2, 1, 3, 1}, beta[] = {0, 1, 1, -1};
    const float value = alpha[g] * sum + beta[g] * small(g, row + 16 * column, 4);
    if (options_.result == CUDA_R_32F) return value;
    return options_.result == CUDA_R_16BF ? bf16_to_float(float_to_bf16(value)) : f16_to_float(float_to_f16(value));
  }

  Options options_;
  Sizes sizes_;
  Array<uint16_t> a_, b_;
  Array<float> c_, d_, alpha_, beta_;
  Array<char> workspace_;
  Array<int64_t> a_sizes_, b_sizes_, d_sizes_;
  std::vector<int64_t> host_;
  Array<char*> pointers_;
  cublasLtHandle_t handle_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

void test_results() {
  for (const cudaDataType type : {CUDA_R_16BF, CUDA_R_16F})
    for (int bits = 0; bits < 16; ++bits) {
      Options options;
      options.type = type;
      options.result = bits & 1 ? CUDA_R_32F : type;
      options.transa = bits & 2, options.transb = bits & 4, options.wide = bits & 8;
      Matmul matmul(options);
      check(matmul.queue() == CUBLAS_STATUS_SUCCESS, "a grouped matmul");
      check(matmul.is_right(), "its results");
    }
}

// A graph replayed with sizes that the host did not know when it was captured.
void test_replay() {
  Options options;
  options.result = CUDA_R_32F;
  Matmul matmul(options);
  cublasLtMatmulAlgo_t algo;
  matmul.find(&algo);
  cudaStreamBeginCapture(matmul.stream(), cudaStreamCaptureModeRelaxed);
  check(matmul.call(algo) == CUBLAS_STATUS_SUCCESS, "captured");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaStreamEndCapture(matmul.stream(), &graph);
  cudaGraphInstantiate(&exec, graph);
  matmul.set_sizes(kOthers);
  cudaGraphLaunch(exec, matmul.stream());
  check(matmul.is_right(), "a replay has the sizes of its own time");
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

void expect(const char* what, cublasStatus_t wanted, const Options& options) {
  Matmul matmul(options);
  const cublasStatus_t status = matmul.queue();
  check(status == wanted, "%s: %d", what, static_cast<int>(status));
}

void test_refusals() {
  Options options;
  options.type = CUDA_R_32F, options.result = CUDA_R_32F;
  expect("operands of f32", CUBLAS_STATUS_NOT_SUPPORTED, options);
  options = {}, options.result = CUDA_R_16F;
  expect("f16 results of bf16", CUBLAS_STATUS_NOT_SUPPORTED, options);
  options = {}, options.mode = CUBLASLT_POINTER_MODE_HOST;
  expect("scalars on the host", CUBLAS_STATUS_NOT_SUPPORTED, options);
  options = {}, options.compute = CUBLAS_COMPUTE_32F_FAST_TF32;
  expect("TF32", CUBLAS_STATUS_NOT_SUPPORTED, options);
  options = {}, options.alignment = 8;
  expect("pointers at 8 bytes", CUBLAS_STATUS_NOT_SUPPORTED, options);
  options = {}, options.workspace = 0;
  expect("no workspace", CUBLAS_STATUS_NOT_SUPPORTED, options);
  options = {}, options.average_bytes = 4;
  expect("an average of 4 bytes", CUBLAS_STATUS_INVALID_VALUE, options);
  options = {}, options.on_host = true;
  expect("sizes on the host", CUBLAS_STATUS_NOT_SUPPORTED, options);
  options = {}, options.capturing = true;
  expect("asked for while a stream is captured", CUBLAS_STATUS_INTERNAL_ERROR, options);
  options = {}, options.keeps_its_workspace = false;
  expect("a workspace at 8 bytes", CUBLAS_STATUS_INVALID_VALUE, options);
  for (const char* capability : {"75", "80", "89", "120"}) {
    setenv("SIMT_CAPABILITY", capability, 1);
    expect(capability, CUBLAS_STATUS_NOT_SUPPORTED, {});
  }
  unsetenv("SIMT_CAPABILITY");
}

// What the host cannot see ends the device; each in a process of its own.
int fault(const char* what) {
  Options options;
  Sizes sizes = kSizes;
  if (!std::strcmp(what, "unaligned")) options.further = 1;
  if (!std::strcmp(what, "stride")) options.stride = 13;
  if (!std::strcmp(what, "short_stride")) options.stride = 2;
  if (!std::strcmp(what, "negative")) sizes.k[0] = -1;
  if (!std::strcmp(what, "promise")) options.alignment = 512;
  Matmul matmul(options, sizes);
  check(matmul.queue() == CUBLAS_STATUS_SUCCESS, "the host sees nothing wrong");
  check(cudaStreamSynchronize(matmul.stream()) != cudaSuccess, "%s faults", what);
  return check_result();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return fault(argv[1]);
  test_results();
  test_replay();
  test_refusals();
  return check_result();
}
