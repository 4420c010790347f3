#include "binding/call.h"

// Asynchronous calls: async_calls.h.
namespace st_moe {

static Napi::Value async_begin(Call& c) {
  c.environment.async.begin();
  return c.env.Undefined();
}

static Napi::Value async_end(Call& c) {  // (canAbort: whether asyncCancel may come)
  return c.environment.async.end(c.env, c.boolean("canAbort"));
}

static Napi::Value async_drop(Call& c) {
  c.environment.async.drop();
  return c.env.Undefined();
}

static Napi::Value async_cancel(Call& c) {
  c.environment.async.cancel();
  return c.env.Undefined();
}

// (tensor): whether no asynchronous call that has begun uses it.
static Napi::Value is_settled(Call& c) {
  return Napi::Boolean::New(c.env, c.stored("tensor").storage->recorded == 0);
}

const std::vector<Entry> kAsyncEntries = {
    {"asyncBegin", async_begin, Order::free}, {"asyncEnd", async_end, Order::free},
    {"asyncDrop", async_drop, Order::free},   {"asyncCancel", async_cancel, Order::free},
    {"isSettled", is_settled, Order::free},
};

}  // namespace st_moe
