#pragma once
#include <cstdio>
#include <functional>
#include <vector>

#include "cpu/bf16_gemm.h"
#include "cpu/isa.h"

// The GEMMs of every instruction set, for gemm_test.
namespace st_moe::cpu {

struct Gemm {
  const char* isa;
  void* stream;  // of the context: the bf16 GEMMs
  std::function<void(const Context&, const GemmProblem<float>*, int64_t, DType)> f32;
  std::function<void(const Context&, const GemmProblem<double>*, int64_t, DType)> f64;
  std::function<void(const GemmProblem<float>&)> serial_f32;
  std::function<void(const GemmProblem<double>&)> serial_f64;
  std::function<std::vector<float>(const GemmProblem<float>&, DType)> packed_b;  // empty if not available
};

#define ST_MOE_DECLARE_GEMM(isa, supported, default_from)                                                 \
  namespace isa {                                                                                         \
  template <class T>                                                                                      \
  void gemm(const Context&, const GemmProblem<T>*, int64_t, DType);                                       \
  template <class T>                                                                                      \
  void gemm_serial(const GemmProblem<T>&);                                                                \
  template <class T>                                                                                      \
  int64_t packed_size(const Context&, int64_t, int64_t, DType);                                           \
  template <class T>                                                                                      \
  void pack_weights(const Context&, const MatrixView<T>&, int64_t, int64_t, int64_t, int64_t, DType, T*); \
  Gemm gemm_of(const char* name, void* stream) {                                                          \
    const auto packed_b = [stream](const GemmProblem<float>& p, DType compute) {                          \
      const Context ctx{2, stream};                                                                       \
      std::vector<float> out(static_cast<size_t>(packed_size<float>(ctx, p.K, p.N, compute)));            \
      if (!out.empty()) pack_weights(ctx, p.b, 1, 0, p.K, p.N, compute, out.data());                      \
      return out;                                                                                         \
    };                                                                                                    \
    return {name, stream, gemm<float>, gemm<double>, gemm_serial<float>, gemm_serial<double>, packed_b};  \
  }                                                                                                       \
  }
#define ST_MOE_DECLARE_BF16(isa, supported, default_from, narrower) \
  namespace isa {                                                   \
  const Bf16Gemm& bf16_gemm();                                      \
  }
ST_MOE_CPU_ISAS(ST_MOE_DECLARE_GEMM)
ST_MOE_CPU_BF16_ISAS(ST_MOE_DECLARE_BF16)

std::vector<Gemm> gemms() {
  std::vector<Gemm> found;
  const auto add = [&](bool supported, const Gemm& gemm) {
    if (supported)
      found.push_back(gemm);
    else
      std::printf("skipped: %s (not supported by this machine)\n", gemm.isa);
  };
#define ST_MOE_ADD_BF16(isa, supported, default_from, narrower) \
  add(supported, narrower::gemm_of(#isa, const_cast<Bf16Gemm*>(&isa::bf16_gemm())));
#define ST_MOE_ADD_GEMM(isa, supported, default_from) add(supported, isa::gemm_of(#isa, nullptr));
  ST_MOE_CPU_BF16_ISAS(ST_MOE_ADD_BF16)
  ST_MOE_CPU_ISAS(ST_MOE_ADD_GEMM)
  return found;
}
}  // namespace st_moe::cpu
