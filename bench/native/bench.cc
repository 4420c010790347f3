#include "bench.h"

#include <cstring>

namespace st_moe::bench {

void expect_ok(const Status& status) {
  if (status.code != ErrorCode::none) throw std::runtime_error(status.text);
}

template <class T>
Buffer<T>::Buffer(const Bench& bench, int64_t count) : count_(count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  const Context ctx{1, nullptr};
  void* data = bench.backend.allocate(ctx, bytes);
  if (!data) throw std::runtime_error("not enough memory for " + std::to_string(bytes) + " bytes");
  std::memset(data, 0, bytes);
  const auto release = bench.backend.release;
  data_ = std::shared_ptr<T>(static_cast<T*>(data), [=](T* p) { release(ctx, p, bytes); });
}

template class Buffer<float>;
template class Buffer<int32_t>;
template class Buffer<uint16_t>;

static Buffer<float> draw(const Bench& bench, int64_t count, Distribution distribution, double a, double b) {
  static uint64_t step = 0;
  Buffer<float> out(bench, count);
  call(bench.ops().random, bench.threads.back(), {out.get(), DType::f32, count, distribution, a, b, 1, step++});
  return out;
}

Buffer<float> normals(const Bench& bench, int64_t count, double deviation) {
  return draw(bench, count, Distribution::normal, 0, deviation);
}

Buffer<float> uniforms(const Bench& bench, int64_t count, double bound) {
  return draw(bench, count, Distribution::uniform, -bound, bound);
}

Buffer<int32_t> integers(const Bench& bench, int64_t count, int64_t below) {
  const Buffer<float> from = draw(bench, count, Distribution::uniform, 0, static_cast<double>(below));
  Buffer<int32_t> out(bench, count);
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(from[i]) % static_cast<int32_t>(below);
  return out;
}

}  // namespace st_moe::bench
