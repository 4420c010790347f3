#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "bench.h"

// Ops and layer of one backend without Node, beside hardware limits measured in the same run. bench/README.md says
// more.
namespace st_moe::bench {
namespace {

constexpr const char* kHelp = R"(options:
  --suite NAME[,NAME]   some of the suites (all)
  --threads N[,N]       numbers of CPU threads to run everything with (1 and what the machine has)
  --compute DTYPE       operands of GEMMs in f32, bf16 or f16 alone (all)
  --repetitions N       turns of each group (9)
  --least-ms N          least length of a sample (20)
  --json FILE           where the samples go (standard output)
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

DType compute_of(const std::string& name) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    if (name == dtype_name(dtype)) return dtype;
  throw std::invalid_argument("--compute must be f32, bf16 or f16, got '" + name + "'");
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
    else if (name == "--suite")
      options.suites = split(value());
    else if (name == "--threads")
      for (const std::string& n : split(value())) options.threads.push_back(positive(name, n));
    else if (name == "--compute")
      options.computes.assign(1, compute_of(value()));
    else if (name == "--repetitions")
      options.settings.repetitions = positive(name, value());
    else if (name == "--least-ms")
      options.settings.least_ms = positive(name, value());
    else if (name == "--json")
      options.file = value();
    else
      throw std::invalid_argument("unknown option '" + name + "'");
  }
  if (options.quick) options.settings = {.repetitions = 2, .least_ms = 0};
  if (options.threads.empty()) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    options.threads = cores > 1 ? std::vector<int>{1, cores} : std::vector<int>{1};
  }
  return options;
}

std::vector<Suite> chosen(const Options& options, const std::vector<Suite>& all) {
  if (options.suites.empty()) return all;
  std::vector<Suite> suites;
  for (const std::string& name : options.suites) {
    const size_t before = suites.size();
    std::string names;
    for (const Suite& suite : all) {
      if (name == suite.name) suites.push_back(suite);
      names += (names.empty() ? "" : ", ") + std::string(suite.name);
    }
    if (suites.size() == before) throw std::invalid_argument("--suite must be " + names + ", got '" + name + "'");
  }
  return suites;
}

int run(int count, char** values) {
  Options options = parse(count, values);
  const std::unique_ptr<Platform> platform = make_platform(options);
  const std::vector<Suite> suites = chosen(options, platform->suites());
  Harness harness(*platform, options.settings, options.file);
  const Bench bench{*platform, harness, options};
  harness.write(platform->versions());
  for (const Suite& suite : suites) harness.attempt(suite.name, [&] { suite.run(bench); });
  return harness.failures() != 0;
}

}  // namespace
}  // namespace st_moe::bench

int main(int count, char** values) {
  try {
    return st_moe::bench::run(count, values);
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s: %s\n%s", values[0], error.what(), st_moe::bench::kHelp);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", values[0], error.what());
    return 1;
  }
}
