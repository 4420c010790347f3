#include "harness.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

namespace st_moe::bench {
namespace {

struct Clocks {
  double wall, cpu;  // ms
};

Clocks now() {
  timespec cpu{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  const std::chrono::duration<double, std::milli> wall = std::chrono::steady_clock::now().time_since_epoch();
  return {wall.count(), static_cast<double>(cpu.tv_sec) * 1e3 + static_cast<double>(cpu.tv_nsec) * 1e-6};
}

Clocks time_of(const Case& one, int64_t iterations) {
  const Clocks start = now();
  for (int64_t i = 0; i < iterations; ++i) one.run();
  const Clocks end = now();
  const double runs = static_cast<double>(iterations);
  return {(end.wall - start.wall) / runs, (end.cpu - start.cpu) / runs};
}

double ratio_of(const Case& own, const Case& other, Measure measure, double own_ms, double other_ms) {
  switch (measure) {
    case Measure::flops: return own.flops / own_ms / (other.flops / other_ms);
    case Measure::bytes: return own.bytes / own_ms / (other.bytes / other_ms);
    case Measure::time: return own_ms / other_ms;
    case Measure::speed: return other_ms / own_ms;
  }
  return NAN;
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto quantile = [&](double q) {
    const double at = q * static_cast<double>(values.size() - 1);
    const size_t low = static_cast<size_t>(at), high = std::min(low + 1, values.size() - 1);
    return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
  };
  return {quantile(0.5), quantile(0.25), quantile(0.75)};
}

const char* measure_name(Measure measure) {
  switch (measure) {
    case Measure::flops: return "flops";
    case Measure::bytes: return "bytes";
    case Measure::time: return "time";
    case Measure::speed: return "speed";
  }
  return "unknown";
}

std::vector<Result> run_group(const std::vector<Case>& cases, const Settings& settings) {
  const size_t count = cases.size();
  std::vector<int64_t> iterations(count);
  for (size_t i = 0; i < count; ++i) {
    cases[i].run();  // first touch of memory, first use of threads
    const double ms = time_of(cases[i], 1).wall;
    iterations[i] = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(settings.least_ms / std::max(ms, 1e-4))));
  }
  std::vector<std::vector<double>> wall(count), cpu(count);
  for (int turn = 0; turn < settings.repetitions; ++turn)
    for (size_t k = 0; k < count; ++k) {
      const size_t i = turn % 2 == 0 ? k : count - 1 - k;
      const Clocks ms = time_of(cases[i], iterations[i]);
      wall[i].push_back(ms.wall);
      cpu[i].push_back(ms.cpu);
    }
  std::vector<Result> results;
  for (size_t i = 0; i < count; ++i) {
    Result result{cases[i], iterations[i], spread_of(wall[i]), spread_of(cpu[i]), wall[i], {}};
    for (const Against& against : cases[i].against) {
      const Case& other = cases[against.index];
      std::vector<double> by_wall, by_cpu;
      for (size_t turn = 0; turn < wall[i].size(); ++turn) {
        by_wall.push_back(ratio_of(cases[i], other, against.measure, wall[i][turn], wall[against.index][turn]));
        by_cpu.push_back(ratio_of(cases[i], other, against.measure, cpu[i][turn], cpu[against.index][turn]));
      }
      result.ratios.push_back({other.name, other.params, against.measure, spread_of(by_wall), spread_of(by_cpu)});
    }
    results.push_back(std::move(result));
  }
  return results;
}

void print_result(const Result& result) {
  const Case& of = result.of;
  std::string label = of.name;
  for (const auto& [key, value] : of.params) label += " " + key + "=" + value;
  std::printf("%-72s %9.3f ms (%.3f–%.3f)", label.c_str(), result.wall.median, result.wall.low, result.wall.high);
  if (of.flops > 0) std::printf(" %8.1f GFLOP/s", of.flops / result.wall.median * 1e-6);
  if (of.bytes > 0) std::printf(" %7.1f GB/s", of.bytes / result.wall.median * 1e-6);
  for (const Ratio& r : result.ratios)
    std::printf("  %.3f (%.3f–%.3f) %s of %s", r.wall.median, r.wall.low, r.wall.high, measure_name(r.measure),
                r.name.c_str());
  if (of.kept >= 0) std::printf("  kept %.3f, slots full %.3f", of.kept, of.occupancy);
  std::printf("\n");
  std::fflush(stdout);
}

// ---- JSON ---------------------------------------------------------------------------------------------------

namespace {

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

std::string object(const Params& params) {
  std::string out = "{";
  for (const auto& [key, value] : params) {
    char* end = nullptr;
    std::strtod(value.c_str(), &end);
    const bool numeric = !value.empty() && *end == 0;
    out += (out.size() > 1 ? ", " : "") + quoted(key) + ": " + (numeric ? value : quoted(value));
  }
  return out + "}";
}

std::string object(const Spread& spread) {
  return "{\"median\": " + number(spread.median) + ", \"low\": " + number(spread.low) +
         ", \"high\": " + number(spread.high) + "}";
}

std::string object(const Ratio& r) {
  return "{\"name\": " + quoted(r.name) + ", \"params\": " + object(r.params) + ", \"measure\": \"" +
         measure_name(r.measure) + "\", \"wall\": " + object(r.wall) + ", \"cpu\": " + object(r.cpu) + "}";
}

template <class List, class F>
std::string array(const List& list, F&& each, const char* separator) {
  std::string out = "[";
  for (size_t i = 0; i < list.size(); ++i) out += (i ? separator : "") + each(list[i]);
  return out + "]";
}

std::string object(const Result& result) {
  const Case& of = result.of;
  std::string out = "{\"name\": " + quoted(of.name) + ", \"params\": " + object(of.params);
  out += ", \"iterations\": " + std::to_string(result.iterations);
  if (of.flops > 0) out += ", \"flops\": " + number(of.flops);
  if (of.bytes > 0) out += ", \"bytes\": " + number(of.bytes);
  if (of.error >= 0) out += ", \"error\": " + number(of.error);
  if (of.kept >= 0) out += ", \"kept\": " + number(of.kept) + ", \"occupancy\": " + number(of.occupancy);
  out += ", \"wallMs\": " + object(result.wall) + ", \"cpuMs\": " + object(result.cpu);
  out += ", \"samples\": " + array(result.samples, number, ", ");
  return out + ", \"ratios\": " + array(result.ratios, [](const Ratio& r) { return object(r); }, ", ") + "}";
}

}  // namespace

std::string to_json(const Params& header, const std::vector<Result>& results) {
  std::string head = object(header);
  head.pop_back();
  return head + ", \"results\": " + array(results, [](const Result& r) { return object(r); }, ",\n  ") + "}\n";
}

}  // namespace st_moe::bench
