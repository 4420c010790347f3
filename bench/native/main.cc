#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "bench.h"
#include "onednn.h"

// st-moe-bench: the ops and the layer without Node, beside floors measured in the same run. bench/README.md says more.
namespace st_moe::bench {
namespace {

struct Suite {
  const char* name;
  void (*run)(const Bench&, Results&);
};
constexpr Suite kSuites[] = {{"floors", floor_suite},
                             {"gemm", gemm_suite},
                             {"ops", op_suite},
                             {"layer", layer_suite},
                             {"scaling", scaling_suite}};

constexpr const char* kHelp = R"(st-moe-bench [options]
  --suite NAME[,NAME]   floors, gemm, ops, layer, scaling (all)
  --threads N[,N]       numbers of threads to run everything with (1 and what the machine has)
  --repetitions N       turns of each group (9)
  --least-ms N          least length of a sample (20)
  --json FILE           writes what was found
  --quick               small shapes and two turns: tests this program, says nothing about speed
)";

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

int positive(const std::string& name, const std::string& text) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end || value < 1 || value > 100000)
    throw std::invalid_argument(name + " must be a whole number of at least 1, got '" + text + "'");
  return static_cast<int>(value);
}

struct Options {
  std::vector<std::string> suites;
  std::vector<int> threads;
  Settings settings;
  std::string json;
  bool quick = false, help = false;
};

void check_suite(const std::string& name) {
  for (const Suite& suite : kSuites)
    if (name == suite.name) return;
  throw std::invalid_argument("--suite must be floors, gemm, ops, layer or scaling, got '" + name + "'");
}

Options parse(int count, char** values) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == count) throw std::invalid_argument(name + " needs a value");
      return values[++i];
    };
    if (name == "--quick")
      options.quick = true;
    else if (name == "--help")
      options.help = true;
    else if (name == "--suite")
      options.suites = split(value());
    else if (name == "--threads")
      for (const std::string& n : split(value())) options.threads.push_back(positive(name, n));
    else if (name == "--repetitions")
      options.settings.repetitions = positive(name, value());
    else if (name == "--least-ms")
      options.settings.least_ms = positive(name, value());
    else if (name == "--json")
      options.json = value();
    else
      throw std::invalid_argument("unknown option '" + name + "'");
  }
  if (options.quick) options.settings = {2, 0};
  for (const std::string& suite : options.suites) check_suite(suite);
  if (options.threads.empty()) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    options.threads = cores > 1 ? std::vector<int>{1, cores} : std::vector<int>{1};
  }
  return options;
}

bool chosen(const Options& options, const char* name) {
  if (options.suites.empty()) return true;
  for (const std::string& suite : options.suites)
    if (suite == name) return true;
  return false;
}

// Results that are wrong make their times worthless. bf16 rounds operands to 8 bits.
int count_errors(const Results& results) {
  int errors = 0;
  for (const Result& result : results) {
    bool exact = true;
    for (const auto& [key, value] : result.of.params) exact = exact && !(key == "compute" && value == "bf16");
    const bool against_rounded = result.of.name.rfind("gemm/", 0) == 0;
    if (result.of.error <= (exact || against_rounded ? 1e-5 : 2e-2)) continue;
    std::fprintf(stderr, "%s: relative error %g\n", result.of.name.c_str(), result.of.error);
    ++errors;
  }
  return errors;
}

int run(int count, char** values) {
  const Options options = parse(count, values);
  if (options.help) return std::fputs(kHelp, stdout), 0;
  const Backend& backend = cpu_backend();
  const Kernels* kernels = kernels_for(backend.variant);
  if (!kernels) throw std::runtime_error(std::string("no kernels for ") + backend.variant);
  const Bench bench{backend, *kernels, options.settings, options.threads, options.quick};
  std::ofstream file;
  if (!options.json.empty()) {
    file.open(options.json);
    if (!file) throw std::runtime_error("cannot write " + options.json);
  }
  Results results;
  for (const Suite& suite : kSuites)
    if (chosen(options, suite.name)) suite.run(bench, results);
  if (file.is_open()) {
    const Params header{{"variant", backend.variant},
                        {"onednn", onednn_version()},
                        {"quick", options.quick ? "yes" : "no"},
                        {"repetitions", std::to_string(options.settings.repetitions)}};
    file << to_json(header, results);
    file.close();
    if (!file) throw std::runtime_error("cannot write " + options.json);
  }
  return count_errors(results) ? 1 : 0;
}

}  // namespace
}  // namespace st_moe::bench

int main(int count, char** values) {
  try {
    return st_moe::bench::run(count, values);
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "st-moe-bench: %s\n%s", error.what(), st_moe::bench::kHelp);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "st-moe-bench: %s\n", error.what());
    return 1;
  }
}
