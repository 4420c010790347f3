#include "binding/async_calls.h"

#include <algorithm>
#include <bit>
#include <new>
#include <system_error>

#include "binding/environment.h"
#include "core/wait.h"

namespace st_moe {

void AsyncCalls::Recording::attempt(const char* op, const auto& work) {
  try {
    work();
  } catch (const Error& thrown) {
    note(op, thrown);
  } catch (const std::bad_alloc&) {
    note(op, Error(ErrorCode::out_of_memory, "not enough memory"));
  }
}

void AsyncCalls::Recording::note(const char* op, const Error& thrown) {
  if (error) return;
  error = thrown;
  failed = op;
}

size_t AsyncCalls::Recording::end_of_failures() const {
  const auto last = std::find_if(ops.rbegin(), ops.rend(), [](const RecordedOp& op) { return op.can_fail(); });
  return static_cast<size_t>(ops.rend() - last);
}

void AsyncCalls::Recording::run() {
  Backups backups;
  const size_t safe = can_abort ? ops.size() + 1 : end_of_failures();
  for (size_t i = 0; i < ops.size() && !is_cancelled && !error; ++i) {
    if (i == safe) backups.clear();
    attempt(ops[i].name(), [&] {
      if (i + 1 < safe) ops[i].back_up(backups);
      ops[i].run();
    });
    const RecordedOp done = std::move(ops[i]);  // frees what nobody else needs
  }
  const bool failed_op = error.has_value();
  ops.clear();
  // What runs on a device may report its errors only at the end.
  for (Device* device : devices)
    attempt("asyncEnd", [&] {
      const auto lock = device->lock();
      check(device->backend->copy_out(device->context, nullptr, nullptr, 0));
    });
  was_aborted = is_cancelled;
  if (!failed_op && !was_aborted) return;
  for (auto& entry : backups) attempt("asyncEnd", [&] { entry.second.restore(); });
}

void AsyncCalls::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (Recording* const running = running_) running->is_cancelled = true;
  }
  changed_.notify_all();
  thread_.join();
}

void AsyncCalls::begin() {
  if (recording_) fail(ErrorCode::unsupported, "an asynchronous call cannot begin inside another");
  if (environment_.recording)
    fail(ErrorCode::unsupported, "an asynchronous call cannot begin while a step is captured");
  wait();
  recording_ = std::make_unique<Recording>();
}

void AsyncCalls::record(RecordedOp op) {
  recording_->ops.push_back(std::move(op));
}

void AsyncCalls::record(std::vector<RecordedOp> ops) {
  auto& recorded = recording_->ops;
  recorded.reserve(std::bit_ceil(recorded.size() + ops.size()));  // all or none
  for (RecordedOp& op : ops) recorded.push_back(std::move(op));
}

void AsyncCalls::drop() {
  recording_.reset();
}

void AsyncCalls::cancel() {
  const std::lock_guard lock(mutex_);
  if (Recording* const running = running_) running->is_cancelled = true;
}

void AsyncCalls::wait_for_thread() {
  std::unique_lock lock(mutex_);
  wait_until(changed_, lock, [this] { return running_ == nullptr; });
}

void AsyncCalls::start(Napi::Env env) {
  if (!settle_) {
    const napi_status status = napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "st-moe"),
                                                               0, 1, nullptr, nullptr, this, settle, &settle_);
    if (status != napi_ok) fail(ErrorCode::internal, "no thread-safe function (%d)", status);
    napi_unref_threadsafe_function(env, settle_);  // only a running call keeps the process alive
    // At its end the environment calls the newest hook first: the thread ends before the function that it calls.
    napi_add_env_cleanup_hook(env, [](void* calls) { static_cast<AsyncCalls*>(calls)->stop(); }, this);
  }
  if (thread_.joinable()) return;
  try {
    thread_ = std::thread(&AsyncCalls::work, this);
  } catch (const std::system_error& error) {
    fail(ErrorCode::out_of_memory, "no thread: %s", error.what());
  }
}

Napi::Value AsyncCalls::end(Napi::Env env, bool can_abort) {
  if (!recording_) fail(ErrorCode::unsupported, "no asynchronous call has begun");
  start(env);
  recording_->can_abort = can_abort;
  recording_->devices = environment_.plugin_devices();
  napi_value promise = nullptr;
  if (napi_create_promise(env, &recording_->promise, &promise) != napi_ok) fail(ErrorCode::internal, "no promise");
  napi_ref_threadsafe_function(env, settle_);
  {
    const std::lock_guard lock(mutex_);
    running_ = recording_.release();
  }
  changed_.notify_all();
  return {env, promise};
}

void AsyncCalls::work() {
  for (;;) {
    std::unique_ptr<Recording> recording;
    {
      std::unique_lock lock(mutex_);
      wait_until(changed_, lock, [this] { return stopping_ || running_ != nullptr; });
      if (!running_) break;
      recording.reset(running_);
    }
    recording->run();
    {
      const std::lock_guard lock(mutex_);
      running_ = nullptr;
    }
    changed_.notify_all();
    if (napi_call_threadsafe_function(settle_, recording.get(), napi_tsfn_nonblocking) != napi_ok) return;
    static_cast<void>(recording.release());
  }
  napi_release_threadsafe_function(settle_, napi_tsfn_release);
}

// On the thread of JavaScript; without `env` if that ends.
void AsyncCalls::settle(napi_env env, napi_value, void* calls, void* data) {
  const std::unique_ptr<Recording> recording(static_cast<Recording*>(data));
  if (!env) return;
  auto& self = *static_cast<AsyncCalls*>(calls);
  napi_unref_threadsafe_function(env, self.settle_);
  try {
    if (recording->error)
      napi_reject_deferred(env, recording->promise,
                           self.environment_.make_error(env, recording->failed, *recording->error));
    else
      napi_resolve_deferred(env, recording->promise, Napi::Boolean::New(env, !recording->was_aborted));
  } catch (const Napi::Error& failure) {  // the environment ends
    napi_reject_deferred(env, recording->promise, failure.Value());
  }
}

}  // namespace st_moe
