#include "onednn.h"

#if defined(ST_MOE_ONEDNN)
#include <omp.h>

#include <dnnl.hpp>
#include <memory>
#include <vector>

#include "cpu/pool.h"

namespace st_moe::bench {
namespace {

using dnnl::memory;

dnnl::engine& engine() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

dnnl::stream& stream() {
  thread_local dnnl::stream own(engine());
  return own;
}

memory::desc described(int64_t rows, int64_t cols, memory::data_type type, bool transposed) {
  return {{rows, cols}, type, transposed ? memory::dims{1, rows} : memory::dims{cols, 1}};
}

// A copy of `from` in another type or layout.
memory reordered(memory from, const memory::desc& desc) {
  memory to(desc, engine());
  dnnl::reorder(from, to).execute(stream(), from, to);
  stream().wait();
  return to;
}

struct Expert {
  dnnl::matmul primitive;
  std::unordered_map<int, memory> arguments;
};

Expert expert_gemm(const GemmArgs& args, size_t e, int64_t row, bool packed) {
  const GemmShape shape = args.shape();
  const bool gradient = args.weight_gradient();
  const int64_t rows = args.rows[e], M = gradient ? shape.M : rows, K = gradient ? rows : shape.K, N = shape.N;
  const memory::data_type f32 = memory::data_type::f32;
  const memory::data_type type = args.compute == DType::bf16 ? memory::data_type::bf16 : f32;
  float* a = const_cast<float*>(args.a) + row * (gradient ? M : K);
  float* b = const_cast<float*>(args.b) + (gradient ? row * N : static_cast<int64_t>(e) * N * K);
  float* c = args.c + (gradient ? static_cast<int64_t>(e) * M : row) * N;

  memory source(described(M, K, f32, gradient), engine(), a),
      weights(described(K, N, f32, shape.transposed), engine(), b);
  memory result(described(M, N, f32, false), engine(), c);
  const memory::desc source_desc = described(M, K, type, gradient);
  const memory::desc weights_desc =
      packed ? memory::desc({K, N}, type, memory::format_tag::any) : described(K, N, type, shape.transposed);
  const dnnl::matmul::primitive_desc chosen(engine(), source_desc, weights_desc, result.get_desc());
  if (type != f32) source = reordered(source, chosen.src_desc());
  if (type != f32 || packed) weights = reordered(weights, chosen.weights_desc());
  return {dnnl::matmul(chosen), {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, result}}};
}

}  // namespace

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  return std::to_string(version->major) + "." + std::to_string(version->minor) + "." + std::to_string(version->patch);
}

std::function<void()> onednn_gemm(const GemmArgs& args, int threads, bool packed) {
  omp_set_num_threads(1);
  const auto experts = std::make_shared<std::vector<Expert>>();
  int64_t row = 0;
  try {
    for (size_t e = 0; e < args.rows.size(); row += args.rows[e++])
      experts->push_back(expert_gemm(args, e, row, packed));
  } catch (const dnnl::error&) {
    return {};  // no bf16 on this machine
  }
  return [=] {
    const auto task = [](void* list, int64_t i) {
      omp_set_num_threads(1);  // of the calling thread
      Expert& expert = (*static_cast<std::vector<Expert>*>(list))[static_cast<size_t>(i)];
      expert.primitive.execute(stream(), expert.arguments);
      stream().wait();
    };
    cpu::pool_run(threads, static_cast<int64_t>(experts->size()), task, experts.get());
  };
}

}  // namespace st_moe::bench

#else
namespace st_moe::bench {

std::string onednn_version() {
  return {};
}

std::function<void()> onednn_gemm(const GemmArgs&, int, bool) {
  return {};
}

}  // namespace st_moe::bench
#endif
