#include "binding/async_calls.h"

#include <algorithm>
#include <new>
#include <system_error>

#include "binding/environment.h"
#include "core/wait.h"

namespace st_moe {

const void* pointer_to(const Storage& storage, Use use) {
  if (use == Use::packed) return storage.packed();
  if (use == Use::host_copy) return storage.remembered();
  return storage.data();
}

static void check(const Status& status) {
  if (status.code != ErrorCode::none) throw Error(status.code, status.text);
}

static void copy_values(Device& device, const void* from, void* to, DType dtype, size_t bytes) {
  StridedCopyArgs args{};
  args.in = from;
  args.out = to;
  args.dtype = dtype;
  args.rank = 1;
  args.shape[0] = static_cast<int64_t>(bytes) / dtype_size(dtype);
  args.in_strides[0] = args.out_strides[0] = 1;
  check(device.backend->ops.strided_copy(device.context, args));
}

Backup::Backup(std::shared_ptr<Storage> storage, DType dtype)
    : storage_(std::move(storage)), copy_(storage_->device(), storage_->bytes()), dtype_(dtype) {
  copy_.allocate();
  copy_values(storage_->device(), storage_->data(), copy_.data(), dtype_, copy_.bytes());
  ++storage_->recorded;
}

void Backup::restore() {
  const auto lock = storage_->device().lock();
  storage_->drop_packed();
  copy_values(storage_->device(), copy_.data(), storage_->data(), dtype_, copy_.bytes());
}

RecordedOp::RecordedOp(const char* name, OpFunction function, const void* args, size_t size, int64_t count,
                       std::span<const Operand> operands)
    : name_(name),
      device_(operands[0].tensor->device),
      function_(function),
      count_(count),
      args_(static_cast<const char*>(args), static_cast<const char*>(args) + size) {
  operands_.reserve(operands.size());
  for (const Operand& operand : operands) {
    const auto offset = static_cast<size_t>(static_cast<const char*>(operand.at) - static_cast<const char*>(args));
    const Tensor& tensor = *operand.tensor;
    operands_.push_back({offset, tensor.storage, operand.use, tensor.dtype, tensor.data() != nullptr, {}});
    ++tensor.storage->recorded;
    if (operand.use != Use::host_copy) continue;
    if (const int32_t* list = tensor.storage->remembered()) operands_.back().list.assign(list, list + tensor.size);
  }
}

RecordedOp::~RecordedOp() {
  for (const Bound& operand : operands_) --operand.storage->recorded;
}

bool RecordedOp::makes_tensors() const {
  return std::ranges::any_of(operands_, [](const Bound& operand) { return is_made(operand.use); });
}

bool RecordedOp::can_fail() const {
  return makes_tensors() || op_of(function_).takes_memory;
}

// An op that makes no tensor changes all or nothing. What others update is of this call, or a cache of attention, in
// which the next call overwrites the rows of one that failed.
void RecordedOp::back_up(Backups& backups) const {
  if (makes_tensors()) return;
  const auto lock = device_->lock();
  for (const Bound& operand : operands_)
    if (operand.use == Use::updated && operand.existed)
      backups.try_emplace(operand.storage.get(), operand.storage, operand.dtype);
}

void RecordedOp::set_pointers() {
  for (const Bound& operand : operands_) {
    Storage& storage = *operand.storage;
    if (is_made(operand.use)) storage.allocate();
    if (operand.use == Use::updated) storage.outdate_packed();
    expect_values(storage, "a tensor");
    member<const void*>(args_.data(), operand.offset) =
        operand.list.empty() ? pointer_to(storage, operand.use) : operand.list.data();
  }
}

void RecordedOp::run() {
  const auto lock = device_->lock();
  try {
    set_pointers();
    check(function_(device_->backend->ops, device_->context, args_.data(), count_));
    for (const Bound& operand : operands_) {
      if (operand.use == Use::updated) operand.storage->drop_outdated();
      if (operand.use == Use::made_on_host) operand.storage->remember_values();
    }
  } catch (const Error&) {
    for (const Bound& operand : operands_)
      if (is_made(operand.use)) operand.storage->release();  // it has no values
    throw;
  }
}

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
  for (auto& [storage, backup] : backups) attempt("asyncEnd", [&] { backup.restore(); });
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
