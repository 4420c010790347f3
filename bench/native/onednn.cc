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

Expert prepared(const ExpertGemm& one, DType compute, bool packed) {
  const memory::data_type f32 = memory::data_type::f32;
  const memory::data_type type = compute == DType::bf16 ? memory::data_type::bf16 : f32;
  const memory::dims a{one.M, one.K}, b{one.K, one.N}, c{one.M, one.N};
  const memory::dims a_strides{one.a.row, one.a.column}, b_strides{one.b.row, one.b.column};
  memory source({a, f32, a_strides}, engine(), const_cast<float*>(one.a.data));
  memory weights({b, f32, b_strides}, engine(), const_cast<float*>(one.b.data));
  memory result({c, f32, memory::dims{one.N, 1}}, engine(), one.c);
  const memory::desc weights_desc =
      packed ? memory::desc(b, type, memory::format_tag::any) : memory::desc(b, type, b_strides);
  const dnnl::matmul::primitive_desc chosen(engine(), {a, type, a_strides}, weights_desc, result.get_desc());
  if (type != f32) source = reordered(source, chosen.src_desc());
  if (type != f32 || packed) weights = reordered(weights, chosen.weights_desc());
  return {dnnl::matmul(chosen), {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, result}}};
}

}  // namespace

std::string onednn_version() {
  const dnnl_version_t* version = dnnl_version();
  return std::to_string(version->major) + "." + std::to_string(version->minor) + "." + std::to_string(version->patch);
}

std::function<void()> onednn_gemm(const GroupedGemm& group, int threads, bool packed) {
  omp_set_num_threads(1);
  const auto experts = std::make_shared<std::vector<Expert>>();
  try {
    for (const ExpertGemm& one : group.experts) experts->push_back(prepared(one, group.compute, packed));
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

std::function<void()> onednn_gemm(const GroupedGemm&, int, bool) {
  return {};
}

}  // namespace st_moe::bench
#endif
