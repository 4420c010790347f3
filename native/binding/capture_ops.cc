#include <cmath>

#include "binding/op_call.h"

// Captured steps. JavaScript identifies a finished one by a number.
namespace st_moe {

static Napi::Value capture_begin(Call& c) {  // (device)
  Device& device = c.environment.device(c.integer("device", 0, 1 << 20));
  if (c.environment.recording) fail(ErrorCode::unsupported, "a step is being captured already");
  if (c.environment.async.is_recording())
    fail(ErrorCode::unsupported, "a step cannot be captured in an asynchronous call");
  c.environment.recording = Capture::begin(device);
  return c.env.Undefined();
}

static Napi::Value capture_outside(Call& c) {  // (on)
  const bool on = c.boolean("on");
  if (c.environment.recording) c.environment.recording->outside(on);
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

// Consecutive rows: −1, seed and step of a sample; or the number of an op in ops.inc and its attributes.
static std::vector<StepRow> step_rows(Call& c, const char* name) {
  const Napi::Float64Array numbers = c.numbers(name);
  size_t at = 0;
  const auto next = [&](double min, double max) {
    const double number = at < numbers.ElementLength() ? numbers[at++] : NAN;
    if (!(number >= min && number <= max)) fail(ErrorCode::option, "%s must hold samples and updates", name);
    return number;
  };
  const std::vector<OpInfo>& ops = declared_ops();
  std::vector<StepRow> rows;
  while (at < numbers.ElementLength()) {
    const double number = next(-1, static_cast<double>(ops.size() - 1));
    StepRow row{number < 0 ? nullptr : &ops[static_cast<size_t>(number)], numbers.Data() + at};
    if (!row.op) {
      next(0, 0x1p53 - 1);
      next(0, 0x1p53 - 1);
    } else {
      if (!row.op->factors) fail(ErrorCode::option, "%s must hold samples and updates, got %s", name, row.op->name);
      for (const Field& field : row.op->fields) {
        if (field.role != Role::attribute) continue;
        const bool any = field.attribute == AttributeType::number;  // else the step
        next(any ? -INFINITY : static_cast<double>(field.min), any ? INFINITY : static_cast<double>(field.max));
      }
    }
    rows.push_back(row);
  }
  return rows;
}

static int64_t number_of(Call& c) {
  return c.integer("step", 1, int64_t{1} << 53);
}

static Napi::Value replay(Call& c) {  // (step, arguments)
  const auto found = c.environment.captured.find(number_of(c));
  if (found == c.environment.captured.end()) fail(ErrorCode::disposed, "the captured step has been disposed");
  if (c.environment.recording) fail(ErrorCode::unsupported, "a step cannot be replayed while one is captured");
  const std::vector<StepRow> rows = step_rows(c, "arguments");
  AsyncCalls& calls = c.environment.async;
  if (calls.is_recording())
    calls.record(found->second->replay_later(rows));
  else
    found->second->replay(rows);
  return c.env.Undefined();
}

static Napi::Value release_capture(Call& c) {  // (step)
  c.environment.captured.erase(number_of(c));
  return c.env.Undefined();
}

const std::vector<Entry> kCaptureEntries = {
    {"captureBegin", capture_begin, Order::waiting},     {"captureOutside", capture_outside, Order::waiting},
    {"captureEnd", capture_end, Order::waiting},         {"replay", replay, Order::recorded},
    {"releaseCapture", release_capture, Order::waiting},
};

}  // namespace st_moe
