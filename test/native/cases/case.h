#pragma once
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../check.h"
#include "../cuda/size.h"
#include "core/blocks.h"
#include "core/op_fields.h"

#pragma GCC diagnostic ignored "-Wmissing-field-initializers"  // a case names the sizes and attributes alone

// The table of cases: an op, its sizes and attributes, and a way to fill its inputs. ops_test runs each on the CPU
// against a plain loop, by every instruction set and 1, 2 and 3 threads; cuda/ops_test runs each on the device of a
// plugin against the CPU.
namespace st_moe::test {

constexpr DType kReals[] = {DType::f32, DType::f64};
constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i32};

// What a weight may be stored as.
inline std::vector<DType> stored_as(DType real) {
  return real == DType::f32 ? std::vector{DType::f32, DType::bf16, DType::f16, DType::int8} : std::vector{real};
}

inline std::vector<DType> reals() {
  return small() ? std::vector{DType::f32} : std::vector{DType::f32, DType::f64};
}

double rounded(DType dtype, double value);
struct Tensor;
void fill_normal(Tensor& t, TestRandom& random);  // zeros if it has integers

using Bytes = std::vector<char>;

// What is in memory that nothing has written: NaN in every floating-point format, and no number that an op would write.
Bytes unwritten(size_t size);

// A tensor of a call. Its numbers are in double, which holds those of every dtype.
struct Tensor {
  std::string name;
  size_t offset;  // of its pointer in the struct of arguments
  Role role;      // input, output or updated
  DType dtype;
  int64_t size;
  std::string shares{};  // the tensor whose memory it has
  bool present = true;
  int64_t columns = 1;             // of a row, where the dtype has blocks
  bool opaque = false;             // in a layout of the backend: an input comes from the forward of the same backend
  std::shared_ptr<Bytes> bytes{};  // of such an input
  std::vector<double> numbers{};

  size_t bytes_in_memory() const { return static_cast<size_t>(bytes_of(dtype, size, columns)); }
  void round();  // the numbers, to those of the dtype
  Bytes encode() const;
  std::vector<double> decode(const Bytes& bytes) const;
};

struct Result {
  Status status;
  std::vector<Bytes> bytes;  // of each tensor
  int64_t launches = 0;      // on a device that counts them
};

// The inputs of one call, and its expected results.
struct Problem {
  const OpInfo* op;
  alignas(8) char args[kMaxArgsSize];
  std::vector<Tensor> tensors;
  TestRandom random{1};
  std::shared_ptr<Problem> forward{};  // of a backward that was added with one
  bool fitted = false;

  std::vector<double>& operator[](const std::string& name) { return find(name)->numbers; }
  Tensor* find(const std::string& name);
  bool has(const std::string& name);  // and it is not null
  DType dtype() const;
  DType stored(const Field& weight) const;  // dtype() unless a more compact one is named
  template <class Args>
  const Args& as() const {
    return *reinterpret_cast<const Args*>(args);
  }
  // Gives opaque tensors the size that they have on this backend, and such inputs what `run` returns for the forward.
  void fit(const Backend& backend, const std::function<Result(const Problem&)>& run);
};
Result run_on_host(const Problem& problem, const OpTable& ops, int threads, bool host_copies = false);

using Fill = std::function<void(Problem&)>;
inline Fill plus(const std::string& name, double shift) {
  return [=](Problem& p) {
    for (double& x : p[name]) x += shift;
  };
}
inline Fill below(const std::string& name, int64_t limit) {
  return [=](Problem& p) {
    for (double& x : p[name]) x = static_cast<double>(p.random.below(limit));
  };
}

// A language model around the layer. Tests compute with these sizes, the benchmark with larger ones.
struct ModelSizes {
  int64_t B = 2, N = 32, D = 24, E = 4, K = 2, H = 64, heads = 2, V = 40;

  int64_t tokens() const { return B * N; }
  int64_t capacity() const { return std::max<int64_t>(std::min(N, N * 5 / 4 / E), 4); }  // capacity factor 1.25
  int64_t rows() const { return E * B * capacity(); }
};

struct Case {
  Problem empty;  // without numbers
  std::vector<Fill> fills{}, spoils{};
  std::function<void(Problem& got, const char* what)> verify{};
  double cpu_factor = 1, device_factor = 1;  // of the tolerance
  double magnitude = 0;                      // of the terms whose sum a result is, where that cancels
  bool exact = false, on_cpu = true, on_device = true;
  bool host_copies = false;  // of the tensors that the op may know on the host: the device runs with them
  ErrorCode error = ErrorCode::none;
  std::string error_text{};
  bool total_error = false;
  std::string label{};                            // for people
  std::vector<int> threads{1, 2, 3};              // the bits do not depend on it
  std::map<std::string, double> loose_tensors{};  // factors of their tolerances
  bool only_runs = false, has_races = false;
  int64_t most_launches = INT64_MAX;

  struct Twin {
    std::shared_ptr<const Case> other;
    std::vector<std::string> equal;
    bool on_device;
  };
  std::vector<Twin> twins{};

  std::shared_ptr<const Case> forward{};
  std::vector<std::string> detached{};
  bool differences = true;  // a backward without a loop is compared with them
  double step = 1e-3, difference_limit = 1e-8;
  const char* measure = nullptr;
  double work = 0;

  // Inputs are normal numbers and indices 0, then as `f` changes them, one after the other.
  Case& fill(Fill f) { return fills.push_back(std::move(f)), *this; }
  // Changes what a backward got from its forward.
  Case& spoil(Fill f) { return spoils.push_back(std::move(f)), *this; }
  Case& without(const std::string& name) { return empty.find(name)->present = false, *this; }
  Case& tolerance(double cpu, double device = 1) { return cpu_factor = cpu, device_factor = device, *this; }
  Case& terms(double size) { return magnitude = size, *this; }
  Case& same_bits() { return exact = true, *this; }
  Case& cpu_only() { return on_device = false, *this; }
  Case& device_only() { return on_cpu = false, *this; }
  // On the CPU with this text. On a device, where a kernel finds it, other rows are as the loop has them, if it is
  // not `total`.
  Case& fails(ErrorCode code, const std::string& text, bool total = false) {
    return error = code, error_text = text, total_error = total, *this;
  }

  Case& called(const std::string& text) { return label = text, *this; }
  Case& on_threads(std::vector<int> counts) { return threads = std::move(counts), *this; }
  Case& loose(const std::string& name, double factor) { return loose_tensors[name] = factor, *this; }
  // Inputs for which no result is promised, except that nothing is touched that does not belong to the call. `races`:
  // on a device two threads may write one number.
  Case& any_values() { return only_runs = true, *this; }
  Case& races() { return has_races = true, *this; }
  // On a device that counts them.
  Case& launches(int64_t most) { return most_launches = most, *this; }
  // The named results have the same bits in the other case: without some outputs, or with rows in another order.
  Case& same_as(const Case& other, std::vector<std::string> names, bool on_devices = true) {
    return twins.push_back({std::make_shared<Case>(other), std::move(names), on_devices}), *this;
  }
  // How a backward is compared with differences of the forward: not at all, or with this step. A tensor whose gradient
  // passes a stop_gradient: the loop of the forward finds its value before the step under `before NAME`.
  Case& without_differences() { return differences = false, *this; }
  Case& steps(double h, double limit) { return step = h, difference_limit = limit, *this; }
  Case& detach(const std::string& name) { return detached.push_back(name), *this; }

  // The benchmark times it, vs. the arithmetic ("flops") or the memory traffic ("bytes") of one run; 0: that of its
  // tensors, each read or written once.
  Case& timed(const char* what, double amount) { return measure = what, work = amount, *this; }

  std::string name() const;
  Problem problem(int64_t most = INT64_MAX) const;  // without numbers for tensors of more elements
};

#define OP(Name, name)                            \
  inline const char* name_of(const Name##Args&) { \
    return #name;                                 \
  }
#define END
#include "core/op_list.inc"

class Table {
 public:
  explicit Table(const ModelSizes& model = {}) : sizes(model) {}

  // Tensors of an op that is declared by hand come with it.
  template <class Args>
  Case& add(const Args& args, std::vector<Tensor> tensors = {}) {
    return add(name_of(args), &args, sizeof args, std::move(tensors));
  }

  // A backward with the arguments, inputs and outputs of this forward, but for what `args` says and those of its own.
  template <class Args>
  Case& add_backward(const Case& forward, const Args& args) {
    return add_backward(forward, name_of(args), &args, sizeof args);
  }

  // The op in plain loops, in double. An index outside its range is skipped.
  template <class Args>
  void loop(void (*f)(const Args&, Problem&)) {
    loops_.push_back({name_of(Args{}), [f](Problem& p) { f(p.as<Args>(), p); }});
  }

  const ModelSizes sizes;
  const std::vector<Case>& cases() const { return cases_; }
  void keep(size_t first) { cases_.erase(cases_.begin() + static_cast<std::ptrdiff_t>(first), cases_.end()); }
  void device_only_from(size_t first) {
    for (size_t i = first; i < cases_.size(); ++i) cases_[i].on_cpu = false;
  }
  const Fill* find_loop(const std::string& op) const;

  // The inputs of a case; the loop of the forward computes those that a backward gets from its forward.
  Problem problem(const Case& c) const;
  // The outputs, by the loop. Of a backward without one: by the op itself in f64, which is compared with differences.
  Problem wanted(const Case& c, const Problem& problem, const OpTable& ops) const;

 private:
  Case& add(const char* op, const void* args, size_t size, std::vector<Tensor> tensors);
  Case& add_backward(const Case& forward, const char* op, const void* args, size_t size);
  Problem forward_of(const Problem& backward) const;
  void check_differences(const Case& c, const Problem& before, Problem& backward) const;

  std::vector<Case> cases_;
  std::vector<std::pair<std::string, Fill>> loops_;
};

// How the outputs differ from the expected ones; empty if they do not. f32 and f64 are tolerances, before the factor.
std::string difference(const Case& c, const Problem& wanted, const std::vector<Bytes>& got, double factor, double f32,
                       double f64);
inline void compare(const Case& c, const std::string& name, const Problem& wanted, const std::vector<Bytes>& got,
                    double factor, double f32, double f64) {
  const std::string text = difference(c, wanted, got, factor, f32, f64);
  ::check(text.empty(), "%s: %s", name.c_str(), text.c_str());
}

// The groups of the table, one per file, and a table of some of them.
Table table_of(const std::vector<std::string>& names, const ModelSizes& sizes = {});
std::vector<std::string> groups();

}  // namespace st_moe::test
