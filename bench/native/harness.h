#pragma once
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

// Times cases in turns and writes every sample as JSON, one line per group. Medians, quartiles and ratios are computed
// by whoever reads the lines (bench/measured.ts).
namespace st_moe::bench {

struct Json;
using Members = std::vector<std::pair<std::string, Json>>;

struct Json {  // a value, as it is written
  Json(const std::string& text);
  Json(const char* text) : Json(std::string(text)) {}
  Json(double number);
  Json(int64_t number) : text(std::to_string(number)) {}
  Json(int number) : text(std::to_string(number)) {}
  Json(const Members& object);

  std::string text;
};

struct Against {  // a ratio to another case of the same group
  size_t index;
  const char* measure;  // "flops", "bytes": work per second; "time": own ÷ other; "speed": other ÷ own
};

struct Case {
  std::string name;
  Members params;
  std::function<void()> run;
  Members facts = {};  // flops and bytes of one run, error, shares: whatever is known besides times
  std::vector<Against> against = {};
};

// Cases that are compared run in turns, so that a machine that others load too slows both sides of a ratio.
struct Group {
  std::vector<Case> cases;
  size_t add(Case one);  // its index
};

struct Clocks {  // ms of one run
  double wall;
  double device = -1;  // by the clock of the device, if it has one
};

// How runs are timed on a device.
class Meter {
 public:
  virtual ~Meter() = default;
  virtual Clocks time(const std::function<void()>& run, int64_t count) const;
  // What the device has counted so far, such as kernels. The increase of one run becomes a fact of its case.
  virtual std::vector<std::pair<std::string, int64_t>> counters() const { return {}; }
};

struct Settings {
  int repetitions = 9;
  double least_ms = 20;  // of a sample: short runs are repeated
};

class Harness {
 public:
  Harness(const Meter& meter, const Settings& settings, const std::string& file);  // empty: standard output
  ~Harness();
  Harness(const Harness&) = delete;
  Harness& operator=(const Harness&) = delete;

  // Every case once, unmeasured, then all of them in turns; every second turn goes backwards.
  void run(const Group& group);
  void write(const Members& line);
  // Runs a part of the benchmark. If it throws, a line says so and the other parts go on; what a backend does not
  // support is no failure.
  void attempt(const std::string& name, const std::function<void()>& part);
  int failures() const { return failures_; }

 private:
  void failed(const std::string& name, const char* text);
  void write_line(const std::string& text);

  const Meter& meter_;
  Settings settings_;
  std::FILE* file_;
  int failures_ = 0;
};

}  // namespace st_moe::bench
