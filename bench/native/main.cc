#include <cstdio>
#include <cstdlib>
#include <sstream>
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
  --compute DTYPE,...   operands of GEMMs: f32, bf16, f16 (all)
  --repetitions N       turns of each group (9)
  --json FILE           where the samples go (standard output)
  --quick               small shapes and two turns: tests this program, says nothing about speed
)";

int positive(const std::string& name, const std::string& text) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end || value < 1 || value > 100000)
    throw std::invalid_argument(name + " must be a whole number of at least 1, got '" + text + "'");
  return static_cast<int>(value);
}

Options parse(int count, char** values) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    if (name == "--quick") {
      options.quick = true;
      continue;
    }
    if (i + 1 == count) throw std::invalid_argument("unknown option '" + name + "', or it needs a value");
    std::stringstream list(values[++i]);
    for (std::string value; std::getline(list, value, ',');) {
      if (name == "--suite")
        options.suites.push_back(value);
      else if (name == "--threads")
        options.threads.push_back(positive(name, value));
      else if (name == "--compute")
        options.computes.push_back(value);
      else if (name == "--repetitions")
        options.settings.repetitions = positive(name, value);
      else if (name == "--json")
        options.file = values[i];
      else
        throw std::invalid_argument("unknown option '" + name + "'");
    }
  }
  if (options.quick) options.settings = {.repetitions = 2, .least_ms = 0};
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  if (options.threads.empty()) options.threads = {1, cores};
  if (options.threads == std::vector<int>{1, 1}) options.threads.pop_back();
  return options;
}

// Those that were asked for, in the order of the platform.
std::vector<Suite> chosen(std::vector<std::string> names, std::vector<Suite> suites) {
  if (names.empty()) return suites;
  std::erase_if(suites, [&](const Suite& suite) { return std::erase(names, suite.name) == 0; });
  if (!names.empty()) throw std::invalid_argument("there is no suite '" + names[0] + "'");
  return suites;
}

int run(int count, char** values) {
  Options options = parse(count, values);
  const std::unique_ptr<Platform> platform = make_platform(options);
  const std::vector<Suite> suites = chosen(options.suites, platform->suites);
  Harness harness(*platform, options.settings, options.file);
  const Bench bench{*platform, harness, options};
  harness.write(platform->versions);
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
