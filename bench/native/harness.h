#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

// Cases that are to be compared run in turns: a ratio is taken inside a repetition, between neighbours in time, and the
// median is over repetitions. So a machine that others load too slows both sides of a ratio.
namespace st_moe::bench {

using Params = std::vector<std::pair<std::string, std::string>>;

enum class Measure {
  flops,  // flop/s of the case ÷ flop/s of the other
  bytes,  // byte/s of the case ÷ byte/s of the other
  time,   // time of the case ÷ time of the other
  speed,  // time of the other ÷ time of the case
};

struct Against {  // another case of the same group
  size_t index;
  Measure measure;
};

struct Case {
  std::string name;
  Params params;
  std::function<void()> run;
  double flops = 0, bytes = 0;  // work of one run
  std::vector<Against> against = {};
  double error = -1;                 // of the result, relative; below 0: not checked
  double kept = -1, occupancy = -1;  // of assignments and of slots; below 0: no routing
};

struct Settings {
  int repetitions = 9;
  double least_ms = 20;  // of a sample: short runs are repeated
};

struct Spread {
  double median, low, high;  // low, high: the quartiles
};

struct Ratio {
  std::string name;
  Params params;
  Measure measure;
  Spread wall, cpu;
};

struct Result {
  Case of;
  int64_t iterations;
  Spread wall, cpu;  // ms of one run; cpu: of all threads of the process
  std::vector<double> samples;
  std::vector<Ratio> ratios;
};

Spread spread_of(std::vector<double> values);

const char* measure_name(Measure measure);

// Runs every case once, unmeasured, then all of them in turns; every second turn goes backwards.
std::vector<Result> run_group(const std::vector<Case>& cases, const Settings& settings);

// A line for people, and the JSON of all results.
void print_result(const Result& result);
std::string to_json(const Params& header, const std::vector<Result>& results);

}  // namespace st_moe::bench
