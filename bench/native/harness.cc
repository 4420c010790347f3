#include "harness.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "core/error.h"

namespace st_moe::bench {
namespace {

template <class List, class F>
std::string array(const List& list, F&& each) {
  std::string out;
  for (const auto& item : list) out += (out.empty() ? "" : ",") + each(item);
  return "[" + out + "]";
}

std::string members(const Members& list) {
  std::string out;
  for (const auto& [key, value] : list) out += (out.empty() ? "" : ",") + Json(key).text + ":" + value.text;
  return out;
}

std::string object(const Case& one, int64_t iterations, const Members& counted, const std::vector<Clocks>& samples) {
  const auto list = [&](double Clocks::* clock) {
    return array(samples, [&](const Clocks& ms) { return Json(ms.*clock).text; });
  };
  Members known{{"name", one.name}, {"params", one.params}, {"iterations", iterations}};
  for (const Members& more : {one.facts, counted}) known.insert(known.end(), more.begin(), more.end());
  std::string out = "{" + members(known) + ",\"wall\":" + list(&Clocks::wall);
  if (samples[0].device >= 0) out += ",\"device\":" + list(&Clocks::device);
  return out + ",\"against\":" +
         array(one.against,
               [](const Against& other) {
                 return "{" + members({{"index", static_cast<int64_t>(other.index)}, {"measure", other.measure}}) + "}";
               }) +
         "}";
}

}  // namespace

Json::Json(const std::string& value) : text("\"") {
  for (const char c : value) {
    if (c == '"' || c == '\\') text += '\\';
    text += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  text += '"';
}

Json::Json(double number) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.6g", number);
  text = std::isfinite(number) ? digits : "null";
}

Json::Json(const Members& object) : text("{" + members(object) + "}") {}

size_t Group::add(Case one) {
  cases.push_back(std::move(one));
  return cases.size() - 1;
}

Clocks Meter::time(const std::function<void()>& run, int64_t count) const {
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < count; ++i) run();
  const std::chrono::duration<double, std::milli> all = std::chrono::steady_clock::now() - start;
  return {all.count() / static_cast<double>(count)};
}

Harness::Harness(const Meter& meter, const Settings& settings, const std::string& file)
    : meter_(meter), settings_(settings), file_(file.empty() ? stdout : std::fopen(file.c_str(), "w")) {
  if (!file_) throw std::runtime_error("cannot write " + file);
}

Harness::~Harness() {
  if (file_ != stdout) std::fclose(file_);
}

void Harness::run(const Group& group) {
  const std::vector<Case>& cases = group.cases;
  const size_t count = cases.size();
  std::vector<int64_t> iterations(count);
  std::vector<Members> counted(count);
  for (size_t i = 0; i < count; ++i) {
    cases[i].run();  // first touch of memory, first use of threads
    const auto before = meter_.counters();
    const double ms = meter_.time(cases[i].run, 1).wall;
    const auto after = meter_.counters();
    for (size_t k = 0; k < before.size(); ++k)
      counted[i].push_back({before[k].first, after[k].second - before[k].second});
    iterations[i] = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(settings_.least_ms / std::max(ms, 1e-4))));
  }
  std::vector<std::vector<Clocks>> samples(count);
  for (int turn = 0; turn < settings_.repetitions; ++turn)
    for (size_t k = 0; k < count; ++k) {
      const size_t i = turn % 2 == 0 ? k : count - 1 - k;
      samples[i].push_back(meter_.time(cases[i].run, iterations[i]));
    }
  std::string line;
  for (size_t i = 0; i < count; ++i) line += (i ? "," : "") + object(cases[i], iterations[i], counted[i], samples[i]);
  write_line("{\"cases\":[" + line + "]}");
}

void Harness::write(const Members& line) {
  write_line(Json(line).text);
}

void Harness::attempt(const std::string& name, const std::function<void()>& part) {
  try {
    part();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported) return failed(name, error.what());
    std::fprintf(stderr, "%s is left out: %s\n", name.c_str(), error.what());
  } catch (const std::exception& error) {
    failed(name, error.what());
  }
}

void Harness::failed(const std::string& name, const char* text) {
  ++failures_;
  std::fprintf(stderr, "%s: %s\n", name.c_str(), text);
  write({{"name", name}, {"failed", text}});
}

// Flushed, so that whatever ends the program leaves what was measured.
void Harness::write_line(const std::string& text) {
  if (std::fprintf(file_, "%s\n", text.c_str()) < 0 || std::fflush(file_) != 0)
    throw std::runtime_error("cannot write the samples");
}

}  // namespace st_moe::bench
