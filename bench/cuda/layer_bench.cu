#include <cstring>

#include "layer.h"
#include "parts.h"

// How long does the layer take on a GPU beside its own GEMMs alone: strided-batched cuBLAS of the same shapes and types
// in the same run? Repetitions alternate and ratios are taken inside a repetition. Then what the GPU can do, and the
// other ops of a training step. What fails or does not fit is a row that says so.
//
//   cuda_layer_bench [--quick] [--only DTYPE] [FILE.jsonl]      --quick: small shapes once, a test of the program
extern "C" const st_moe::Plugin* st_moe_plugin();

namespace st_moe::cuda {
namespace {

// Whether the device has the memory. If not, a row says what is left out and why.
bool fits(const Config& config, bool backward, Rows& rows) {
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory");
  const double needed = config.bytes(backward);
  if (needed < double(free_bytes)) return true;
  char text[200];
  std::snprintf(text, sizeof text, "needs about %.0f GB, the GPU has %.0f GB free", needed * 1e-9,
                double(free_bytes) * 1e-9);
  rows.leave_out({config.name, config.type(), backward ? "forward + backward" : "forward"}, text);
  return false;
}

struct Pass {
  const char* name;
  std::function<void()> layer, gemms;
  double flops;
};

void time_pass(const Context& ctx, Timer& timer, const Config& config, const Pass& pass, Rows& rows) {
  Stream& stream = stream_of(ctx);
  pass.layer();
  const int64_t launches = stream.launches(), gemms = stream.gemms();
  pass.layer();
  const int64_t kernels = stream.launches() - launches, calls = stream.gemms() - gemms;
  pass.gemms();
  const int layer_runs = timer.runs(pass.layer), gemm_runs = timer.runs(pass.gemms);
  std::vector<double> host, device, alone, ratio;
  for (int i = 0; i < timer.repetitions(); ++i) {
    Milliseconds layer{};
    if (i % 2 == 0) layer = timer.time(pass.layer, layer_runs);
    alone.push_back(timer.time(pass.gemms, gemm_runs).device);
    if (i % 2 == 1) layer = timer.time(pass.layer, layer_runs);
    host.push_back(layer.host), device.push_back(layer.device);
    ratio.push_back(layer.device / alone.back());
  }
  const Milliseconds ms{median(host), median(device)};
  rows.add({config.name, config.type(), pass.name}, ms, median(alone), median(ratio), pass.flops / ms.device * 1e-9,
           "TFLOP/s", kernels, calls);
}

void time_layer(st_moe::Device& device, const Config& config, bool quick, Rows& rows) {
  const bool backward = fits(config, true, rows);
  if (!backward && !fits(config, false, rows)) return;
  Layer layer(device, config, backward);
  Timer timer(device.context, quick);
  const auto two = [&] { layer.gemms(false); };
  const auto six = [&] { layer.gemms(true); };
  const double flops = config.flops();
  std::vector<Pass> passes{{"forward", [&] { layer.forward(); }, two, flops}};
  if (backward) {
    passes.push_back({"forward + backward", [&] { layer.forward(), layer.backward(); }, six, 3 * flops});
    passes.push_back({"forward + backward, weights changed",
                      [&] { layer.change_weights(), layer.forward(), layer.backward(); }, six, 3 * flops});
  }
  for (const Pass& pass : passes) time_pass(device.context, timer, config, pass, rows);
  if (!layer.finite()) throw std::runtime_error("the output is not finite");
}

// Whatever one part throws, the others run.
void attempt(Rows& rows, const Rows::Name& name, const std::function<void()>& part) {
  try {
    part();
  } catch (const std::exception& error) {
    rows.fail(name, error.what());
  }
}

int run(bool quick, const char* only, const char* file) {
  const Backend* backend = nullptr;
  Context context{1, nullptr};
  expect_ok(st_moe_plugin()->open(0, &backend, &context));
  st_moe::Device device(backend, context, st_moe_plugin());
  std::printf("%s\n\n", backend->variant);
  Rows rows(file);
  const auto wanted = [&](DType dtype) { return !only || std::strcmp(dtype_name(dtype), only) == 0; };
  std::vector<Config> configs;
  for (DType compute : {DType::f32, DType::bf16, DType::f16})
    configs.push_back(quick ? Config{"quick", 24, 4, 2, 2, 16, 64, compute}
                            : Config{"small", 512, 16, 2, 4, 1024, 1365, compute});
  if (!quick) {  // the same 320 rows per expert; E = 64 needs more than 80 GB for its backward
    configs.push_back({"large, E = 32", 4096, 32, 2, 4, 2048, 10922, DType::bf16});
    configs.push_back({"large, E = 32, H = 10944", 4096, 32, 2, 4, 2048, 10944, DType::bf16});
    configs.push_back({"large, E = 64", 4096, 64, 2, 8, 2048, 10922, DType::bf16});
  }
  Parts parts(device, rows, quick);
  if (!only) attempt(rows, {"copy", "", ""}, [&] { parts.limits(); });
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    if (wanted(dtype)) attempt(rows, {"GEMM", dtype_name(dtype), ""}, [&] { parts.gemm_limit(dtype); });
  for (const Config& config : configs)
    if (wanted(config.compute))
      attempt(rows, {config.name, config.type(), ""}, [&] { time_layer(device, config, quick, rows); });
  if (!only) {
    attempt(rows, {"attention", "f32", ""}, [&] { parts.attention(); });
    attempt(rows, {"cross-entropy", "f32", ""}, [&] { parts.cross_entropy(); });
    attempt(rows, {"AdamW", "f32", ""}, [&] { parts.adamw(); });
  }
  return rows.failures() != 0;
}

}  // namespace
}  // namespace st_moe::cuda

int main(int count, char** arguments) {
  bool quick = false;
  const char *only = nullptr, *file = nullptr;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--quick") == 0) {
      quick = true;
    } else if (std::strcmp(arguments[i], "--only") == 0 && i + 1 < count) {
      only = arguments[++i];
    } else if (!file && arguments[i][0] != '-') {
      file = arguments[i];
    } else {
      std::fprintf(stderr, "usage: cuda_layer_bench [--quick] [--only DTYPE] [FILE.jsonl]\n");
      return 2;
    }
  }
  try {
    return st_moe::cuda::run(quick, only, file);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
