#include "binding/call.h"

// Optimizer steps: in place, so they raise the version of what they change.
namespace st_moe {

static Napi::Value adamw(Call& c) {  // (p, g, m, v, step, lr, beta1, beta2, eps, weightDecay)
  Tensor& p = c.tensor("p");
  Tensor& g = c.tensor("g");
  Tensor& m = c.tensor("m");
  Tensor& v = c.tensor("v");
  const int64_t step = c.integer("step", 1, int64_t{1} << 53);
  const double lr = c.number("lr"), beta1 = c.number("beta1"), beta2 = c.number("beta2");
  const double eps = c.number("eps"), weight_decay = c.number("weightDecay");
  c.expect_float("p", p);
  c.expect("g", g, p.dtype, p.shape);
  c.expect_writable("m", m, p);
  c.expect_writable("v", v, p);
  for (Tensor* changed : {&p, &m, &v}) changed->storage->change();
  c.run(*p.device, &OpTable::adamw,
        AdamwArgs{p.data(), g.data(), m.data(), v.data(), p.dtype, p.size, step, lr, beta1, beta2, eps, weight_decay});
  return c.env.Undefined();
}

static Napi::Value sgd(Call& c) {  // (p, g, buffer | null, step, lr, momentum, weightDecay)
  Tensor& p = c.tensor("p");
  Tensor& g = c.tensor("g");
  Tensor* buffer = c.optional("buffer");
  const int64_t step = c.integer("step", 1, int64_t{1} << 53);
  const double lr = c.number("lr"), momentum = c.number("momentum"), weight_decay = c.number("weightDecay");
  c.expect_float("p", p);
  c.expect("g", g, p.dtype, p.shape);
  if (buffer) c.expect_writable("buffer", *buffer, p);
  p.storage->change();
  if (buffer) buffer->storage->change();
  c.run(*p.device, &OpTable::sgd,
        SgdArgs{p.data(), g.data(), data_of(buffer), p.dtype, p.size, step, lr, momentum, weight_decay});
  return c.env.Undefined();
}

const std::vector<Entry> kOptimEntries = {
    {"adamw", adamw},
    {"sgd", sgd},
};

}  // namespace st_moe
