#include "binding/call.h"

// Captured steps. JavaScript knows a finished one by a number.
namespace st_moe {

static Napi::Value capture_begin(Call& c) {  // (device)
  Device& device = c.environment.device(c.integer("device", 0, 1 << 20));
  if (c.environment.recording) fail(ErrorCode::unsupported, "a step is being captured already");
  c.environment.recording = std::make_shared<Capture>(device);
  return c.env.Undefined();
}

static Napi::Value capture_aside(Call& c) {  // (on)
  const bool on = c.boolean("on");
  if (c.environment.recording) c.environment.recording->aside(on);
  return c.env.Undefined();
}

static Napi::Value capture_end(Call& c) {  // (keep) → number, or undefined
  const bool keep = c.boolean("keep");
  const std::shared_ptr<Capture> step = std::move(c.environment.recording);
  c.environment.recording = nullptr;
  if (!step) fail(ErrorCode::unsupported, "no step is being captured");
  step->end(keep);
  if (!keep) return c.env.Undefined();
  const int64_t number = c.environment.captured.empty() ? 1 : c.environment.captured.rbegin()->first + 1;
  c.environment.captured.emplace(number, step);
  return Napi::Number::New(c.env, static_cast<double>(number));
}

static std::vector<StepArgs> step_args(Call& c, const char* name) {  // of kStepNumbers numbers each
  constexpr size_t kStepNumbers = 8;
  const Napi::Value value = c.value();
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float64_array)
    fail(ErrorCode::option, "%s must be a Float64Array", name);
  const auto numbers = value.As<Napi::Float64Array>();
  std::vector<StepArgs> args(numbers.ElementLength() / kStepNumbers);
  for (size_t i = 0; i < args.size(); ++i) {
    const double* n = numbers.Data() + i * kStepNumbers;
    for (size_t j = 0; j < 3; ++j)
      if (!(n[j] >= 0 && n[j] < 0x1p53)) fail(ErrorCode::option, "%s must hold kinds, seeds and steps", name);
    args[i] = {static_cast<StepArgs::Kind>(static_cast<int32_t>(n[0])),
               static_cast<uint64_t>(n[1]),
               static_cast<uint64_t>(n[2]),
               n[3],
               n[4],
               n[5],
               n[6],
               n[7]};
  }
  return args;
}

static int64_t number_of(Call& c) {
  return c.integer("step", 1, int64_t{1} << 53);
}

static Napi::Value replay(Call& c) {  // (step, arguments)
  const auto found = c.environment.captured.find(number_of(c));
  if (found == c.environment.captured.end()) fail(ErrorCode::disposed, "the captured step has been disposed");
  if (c.environment.recording) fail(ErrorCode::unsupported, "a step cannot be replayed while one is captured");
  found->second->replay(step_args(c, "arguments"));
  return c.env.Undefined();
}

static Napi::Value release_capture(Call& c) {  // (step)
  c.environment.captured.erase(number_of(c));
  return c.env.Undefined();
}

const std::vector<Entry> kCaptureEntries = {
    {"captureBegin", capture_begin},     {"captureAside", capture_aside},
    {"captureEnd", capture_end},         {"replay", replay},
    {"releaseCapture", release_capture},
};

}  // namespace st_moe
