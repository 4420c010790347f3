#pragma once
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/backend.h"
#include "cuda/stream.h"

// Timing, by the clock of the host and by events of the device, and the rows that come of it.
namespace st_moe::cuda {

inline void expect_ok(const Status& status) {
  if (status.code != ErrorCode::none) throw std::runtime_error(status.text);
}

struct Milliseconds {
  double host, device;
};

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Timer {
 public:
  Timer(const Context& ctx, bool quick) : ctx_(ctx), quick_(quick) {
    for (cudaEvent_t* event : {&start_, &end_}) check(cudaEventCreateWithFlags(event, cudaEventDefault), "event");
  }
  ~Timer() {
    for (cudaEvent_t event : {start_, end_}) cudaEventDestroy(event);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  Milliseconds time(const std::function<void()>& f, int count) {
    const cudaStream_t stream = stream_of(ctx_).stream();
    check(cudaStreamSynchronize(stream), "synchronise");
    const auto start = std::chrono::steady_clock::now();
    check(cudaEventRecord(start_, stream), "event");
    for (int i = 0; i < count; ++i) f();
    check(cudaEventRecord(end_, stream), "event");
    check(cudaEventSynchronize(end_), "synchronise");
    const double host = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    float device = 0;
    check(cudaEventElapsedTime(&device, start_, end_), "event");
    return {host / count, device / count};
  }

  int runs(const std::function<void()>& f) {  // that take 20 ms; f has run before
    return quick_ ? 1 : static_cast<int>(std::clamp(20 / std::max(time(f, 3).host, 1e-3), 1.0, 1000.0));
  }

  int repetitions() const { return quick_ ? 1 : 15; }

  Milliseconds median_of(const std::function<void()>& f) {
    f();
    const int count = runs(f);
    std::vector<double> host, device;
    for (int i = 0; i < repetitions(); ++i) {
      const Milliseconds ms = time(f, count);
      host.push_back(ms.host), device.push_back(ms.device);
    }
    return {median(host), median(device)};
  }

 private:
  const Context& ctx_;
  bool quick_;
  cudaEvent_t start_ = nullptr, end_ = nullptr;
};

// A row of the table, and a line of JSON in a file: each is written when it is known, so that what comes later can take
// nothing away.
class Rows {
 public:
  explicit Rows(const char* file) : file_(file ? std::fopen(file, "w") : nullptr) {
    if (file && !file_) throw std::runtime_error(std::string(file) + " cannot be written");
    std::printf(
        "| what | operands | pass | ms | ms of the device | its GEMMs alone, ms | ratio | rate | kernels + GEMMs |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  }
  ~Rows() {
    if (file_) std::fclose(file_);
  }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

  struct Name {
    std::string what, type, pass;
  };

  // `gemms_ms`, `ratio`: of the GEMMs alone; 0 where there are none. `unit` is TFLOP/s or GB/s.
  void add(const Name& name, Milliseconds ms, double gemms_ms, double ratio, double rate, const char* unit,
           int64_t kernels, int64_t gemms) {
    char text[400], alone[60] = "| |";
    if (gemms_ms > 0) std::snprintf(alone, sizeof alone, "| %.3f | %.2f", gemms_ms, ratio);
    std::snprintf(text, sizeof text, "%.3f | %.3f %s | %.1f %s | %lld + %lld", ms.host, ms.device, alone, rate, unit,
                  static_cast<long long>(kernels), static_cast<long long>(gemms));
    print(name, text);
    std::snprintf(text, sizeof text,
                  "\"ms\":%.5f,\"deviceMs\":%.5f,\"gemmsMs\":%.5f,\"ratio\":%.4f,\"rate\":%.3f,\"unit\":\"%s\","
                  "\"kernels\":%lld,\"gemms\":%lld",
                  ms.host, ms.device, gemms_ms, ratio, rate, unit, static_cast<long long>(kernels),
                  static_cast<long long>(gemms));
    write(name, text);
  }

  void leave_out(const Name& name, const std::string& why) {
    print(name, "left out: " + why + " | | | | | ");
    write(name, "\"leftOut\":\"" + escaped(why) + "\"");
  }

  void fail(const Name& name, const std::string& error) {
    ++failures_;
    print(name, "failed: " + error + " | | | | | ");
    write(name, "\"error\":\"" + escaped(error) + "\"");
  }

  int failures() const { return failures_; }

 private:
  static std::string escaped(const std::string& text) {
    std::string out;
    for (char c : text) out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c < ' ' ? ' ' : c);
    return out;
  }
  static void print(const Name& n, const std::string& cells) {
    std::printf("| %s | %s | %s | %s |\n", n.what.c_str(), n.type.c_str(), n.pass.c_str(), cells.c_str());
    std::fflush(stdout);
  }
  void write(const Name& n, const std::string& members) {
    if (!file_) return;
    std::fprintf(file_, "{\"what\":\"%s\",\"type\":\"%s\",\"pass\":\"%s\",%s}\n", n.what.c_str(), n.type.c_str(),
                 n.pass.c_str(), members.c_str());
    std::fflush(file_);
  }

  std::FILE* file_;
  int failures_ = 0;
};

}  // namespace st_moe::cuda
