#include <cmath>

#include "layer.h"

// Each op at the sizes of a language model around the layer, beside the arithmetic or the memory traffic that it cannot
// do without.
namespace st_moe::bench {
namespace {

constexpr DType kType = DType::f32;

struct Sizes {
  int64_t B, N, D, E, K, heads, V;
  int64_t T() const { return B * N; }
};

template <class Args>
using Fill = std::type_identity_t<std::function<void(Args&)>>;  // sets what is not zero; dtype is set

class Ops {
 public:
  Ops(const Bench& bench, const Sizes& sizes) : bench(bench), s(sizes) {}

  // `floats`: what must be read and written. What fits a cache may exceed the speed of memory.
  template <class Args>
  void traffic(const char* name, int64_t floats, Op<Args> OpTable::* op, const Fill<Args>& fill) {
    add(name, "bytes", static_cast<double>(floats) * 4, call_of(op, fill));
  }
  template <class Args>
  void arithmetic(const char* name, double flops, Op<Args> OpTable::* op, const Fill<Args>& fill) {
    add(name, "flops", flops, call_of(op, fill));
  }

  void element_wise();
  void rows();
  void loss();
  void gemms();
  void attention();
  void routing();
  void optimizers();

 private:
  template <class Args>
  std::function<void(int)> call_of(Op<Args> OpTable::* op, const Fill<Args>& fill) const {
    Args args{};
    if constexpr (requires { args.dtype; }) args.dtype = kType;
    fill(args);
    return [=, &bench = bench](int threads) { bench.call(op, threads, args); };
  }

  // For each number of threads, beside the hardware limit.
  void add(const char* name, const char* measure, double work, const std::function<void(int)>& run) {
    Group group;
    for (const int threads : bench.options.threads) {
      const Platform& platform = bench.platform;
      const bool flops = measure == std::string("flops");
      const size_t limit =
          group.add(flops ? platform.flops_limit(bench, kType, threads) : platform.bytes_limit(bench, threads));
      Case one{.name = std::string("op/") + name,
               .params = {{"threads", threads}},
               .run = [=] { run(threads); },
               .facts = {{measure, work}},
               .against = {{limit, measure}}};
      if (threads != bench.options.threads.front()) one.against.push_back({1, "speed"});
      group.add(std::move(one));
    }
    bench.harness.attempt(name, [&] { bench.harness.run(group); });
  }

  const Bench& bench;
  const Sizes s;
};

void Ops::element_wise() {
  const int64_t T = s.T(), D = s.D, size = T * D;
  const Tensor x = bench.normals({T, D}), dy = bench.normals({T, D}), y = bench.filled({T, D});
  const Tensor rounded = bench.filled({T, D}, 0, DType::bf16), sum = bench.filled({}, 0, DType::f64);
  void *const in = x.data(), *const out = y.data(), *const grad = dy.data();
  traffic("full", size, &OpTable::full, [&](auto& a) { a.out = out, a.size = size, a.value = 1; });
  traffic("random", size, &OpTable::random, [&](auto& a) {
    a.out = out, a.size = size, a.distribution = Distribution::normal, a.b = 1, a.seed = a.step = 1;
  });
  traffic("convert to bf16", size + size / 2, &OpTable::convert, [&](auto& a) {
    a.in = in, a.out = rounded.data(), a.in_dtype = kType, a.out_dtype = DType::bf16, a.size = size;
  });
  traffic("strided_copy", 2 * size, &OpTable::strided_copy, [&](auto& a) {  // a transposition
    a.in = in, a.out = out, a.rank = 2, a.shape[0] = a.in_strides[1] = D, a.shape[1] = a.out_strides[0] = T;
    a.in_strides[0] = a.out_strides[1] = 1;
  });
  traffic("gelu", 2 * size, &OpTable::unary,
          [&](auto& a) { a.x = in, a.y = out, a.size = size, a.kind = UnaryKind::gelu; });
  traffic("gelu backward", 3 * size, &OpTable::unary_backward,
          [&](auto& a) { a.x = in, a.dy = grad, a.dx = out, a.size = size, a.kind = UnaryKind::gelu; });
  traffic("add", 3 * size, &OpTable::binary, [&](auto& a) {
    a.a = in, a.b = grad, a.y = out, a.kind = BinaryKind::add, a.rank = 1, a.shape[0] = size;
    a.a_strides[0] = a.b_strides[0] = 1;
  });
  traffic("scale", 2 * size, &OpTable::scale, [&](auto& a) { a.x = out, a.size = size, a.factor = 1; });
  traffic("reduce", size, &OpTable::reduce,
          [&](auto& a) { a.x = in, a.y = out, a.outer = 1, a.axis = T, a.inner = D, a.factor = 1; });
  traffic("sum_squares", size, &OpTable::sum_squares,
          [&](auto& a) { a.x = in, a.out = sum.data(), a.size = size, a.scale = 1; });
  traffic("dropout", 2 * size, &OpTable::dropout,
          [&](auto& a) { a.x = in, a.y = out, a.size = size, a.p = 0.1, a.seed = a.step = 1; });
}

void Ops::rows() {
  const int64_t T = s.T(), D = s.D;
  const Tensor x = bench.normals({T, D}), dy = bench.normals({T, D}), y = bench.filled({T, D});
  const Tensor w = bench.normals({D}), b = bench.normals({D}), dw = bench.filled({D}), db = bench.filled({D});
  const auto forward = [&](auto& a) { a.x = x.data(), a.y = y.data(), a.T = T; };
  const auto backward = [&](auto& a) { a.dy = dy.data(), a.dx = y.data(), a.T = T; };
  traffic("rmsnorm", 2 * T * D, &OpTable::rmsnorm, [&](auto& a) { forward(a), a.gamma = w.data(), a.D = D; });
  traffic("rmsnorm backward", 3 * T * D, &OpTable::rmsnorm_backward,
          [&](auto& a) { backward(a), a.x = x.data(), a.gamma = w.data(), a.dgamma = dw.data(), a.D = D; });
  traffic("layernorm", 2 * T * D, &OpTable::layernorm,
          [&](auto& a) { forward(a), a.weight = w.data(), a.bias = b.data(), a.D = D, a.eps = 1e-5; });
  traffic("layernorm backward", 3 * T * D, &OpTable::layernorm_backward, [&](auto& a) {
    backward(a), a.x = x.data(), a.weight = w.data(), a.dweight = dw.data(), a.dbias = db.data(), a.D = D, a.eps = 1e-5;
  });
  traffic("softmax", 2 * T * D, &OpTable::softmax, [&](auto& a) { forward(a), a.V = D; });
  traffic("softmax backward", 3 * T * D, &OpTable::softmax_backward,
          [&](auto& a) { backward(a), a.y = x.data(), a.V = D; });
}

void Ops::loss() {
  const int64_t T = s.T(), D = s.D, V = s.V, K = s.K;
  const Tensor logits = bench.normals({T, V}), dlogits = bench.filled({T, V}), lse = bench.filled({T});
  const Tensor table = bench.normals({V, D}), dtable = bench.filled({V, D}), x = bench.normals({T, D});
  const Tensor target = bench.integers({T}, V), one = bench.filled({}, 1);
  const Tensor value = bench.filled({T, K}), index = bench.filled({T, K}, 0, DType::i32);
  const auto tokens = [&](auto& a) {
    a.logits = logits.data(), a.target = i32(target), a.lse = lse.data(), a.T = T, a.V = V, a.ignore_index = -100;
  };
  traffic("cross_entropy", T * V, &OpTable::cross_entropy, [&](auto& a) { tokens(a), a.loss = one.data(); });
  traffic("cross_entropy backward", 2 * T * V, &OpTable::cross_entropy_backward,
          [&](auto& a) { tokens(a), a.dloss = one.data(), a.dlogits = dlogits.data(); });
  const auto rows = [&](auto& a) { a.index = i32(target), a.T = T, a.D = D, a.V = V; };
  traffic("embedding", 2 * T * D, &OpTable::embedding, [&](auto& a) { rows(a), a.w = table.data(), a.y = x.data(); });
  traffic("embedding backward", T * D + V * D, &OpTable::embedding_backward,
          [&](auto& a) { rows(a), a.dy = x.data(), a.dw = dtable.data(); });
  const auto chosen = [&](auto& a) { a.index = i32(index), a.T = T, a.E = V, a.K = K; };
  traffic("topk", T * V, &OpTable::topk, [&](auto& a) { chosen(a), a.x = logits.data(), a.value = value.data(); });
  traffic("topk backward", T * V, &OpTable::topk_backward,
          [&](auto& a) { chosen(a), a.dvalue = value.data(), a.dx = dlogits.data(); });
}

void Ops::gemms() {
  const int64_t T = s.T(), D = s.D;
  const double flops = 2.0 * static_cast<double>(T * D * D);
  const Tensor x = bench.normals({T, D}), w = bench.normals({D, D}), b = bench.normals({D}), y = bench.filled({T, D});
  const Tensor dx = bench.filled({T, D}), dw = bench.filled({D, D}), db = bench.filled({D});
  const auto sizes = [&](auto& a) { a.x = x.data(), a.w = w.data(), a.compute = kType, a.T = T, a.I = a.O = D; };
  arithmetic("linear", flops, &OpTable::linear, [&](auto& a) { sizes(a), a.bias = b.data(), a.y = y.data(); });
  arithmetic("linear backward", 2 * flops, &OpTable::linear_backward,
             [&](auto& a) { sizes(a), a.dy = y.data(), a.dx = dx.data(), a.dw = dw.data(), a.dbias = db.data(); });
  arithmetic("matmul", flops, &OpTable::matmul,
             [&](auto& a) { a.a = x.data(), a.b = w.data(), a.y = y.data(), a.batch = 1, a.M = T, a.N = a.K = D; });
}

void Ops::attention() {
  const int64_t B = s.B, N = s.N, D = s.D, heads = s.heads;
  const double flops = 2.0 * static_cast<double>(B * N * N * D);  // causal: half of two GEMMs
  const Tensor q = bench.normals({B, N, D}), k = bench.normals({B, N, D}), v = bench.normals({B, N, D});
  const Tensor y = bench.filled({B, N, D}), dy = bench.normals({B, N, D}), lse = bench.filled({B, heads, N});
  const Tensor dq = bench.filled({B, N, D}), dk = bench.filled({B, N, D}), dv = bench.filled({B, N, D});
  const auto share = [&](auto& a) {
    a.q = q.data(), a.k = k.data(), a.v = v.data(), a.y = y.data(), a.lse = lse.data(), a.B = B, a.Nq = a.Nk = N;
    a.heads = heads, a.d = D / heads, a.scale = 1 / std::sqrt(static_cast<double>(a.d)), a.causal = 1;
  };
  arithmetic("attention", flops, &OpTable::attention, share);
  arithmetic("attention backward", 2.5 * flops, &OpTable::attention_backward, [&](auto& a) {  // five GEMMs
    share(a), a.dy = dy.data(), a.dq = dq.data(), a.dk = dk.data(), a.dv = dv.data();
  });
}

void Ops::routing() {
  const LayerSizes sizes{.B = s.B, .N = s.N, .D = s.D, .E = s.E, .K = s.K};
  const Layer layer(bench, sizes, true);
  const int64_t floats = s.T() * s.D, slots = s.E * s.B * sizes.capacity() * s.D;
  add("route", "bytes", 4.0 * static_cast<double>(floats), [&](int threads) { layer.route(threads); });
  add("route backward", "bytes", 8.0 * static_cast<double>(floats),
      [&](int threads) { layer.route_backward(threads); });

  const Tensor buffer = bench.normals({slots}), dbuffer = bench.filled({slots});
  const auto share = [&](auto& a) {
    a.expert_index = i32(layer.expert_index), a.position = i32(layer.position);
    a.B = s.B, a.N = s.N, a.D = s.D, a.E = s.E, a.K = s.K, a.C = sizes.capacity();
  };
  traffic("dispatch", 2 * slots, &OpTable::dispatch,
          [&](auto& a) { share(a), a.x = layer.x.data(), a.y = dbuffer.data(); });
  traffic("dispatch backward", slots + 2 * floats, &OpTable::dispatch_backward, [&](auto& a) {
    share(a), a.dy = buffer.data(), a.x = layer.x.data(), a.dx = layer.dx.data(), a.dweight = layer.dweight.data();
  });
  traffic("combine", slots + floats, &OpTable::combine,
          [&](auto& a) { share(a), a.x = buffer.data(), a.weight = layer.weight.data(), a.y = layer.y.data(); });
  traffic("combine backward", floats + 2 * slots, &OpTable::combine_backward, [&](auto& a) {
    share(a), a.dy = layer.dy.data(), a.x = buffer.data(), a.weight = layer.weight.data();
    a.dx = dbuffer.data(), a.dweight = layer.dweight.data();
  });
}

void Ops::optimizers() {
  const int64_t size = s.E * 3 * LayerSizes{.D = s.D}.H * s.D;  // the experts' weights
  const Tensor p = bench.normals({size}), g = bench.normals({size}), m = bench.filled({size}), v = bench.filled({size});
  const auto share = [&](auto& a) { a.p = p.data(), a.g = g.data(), a.size = size, a.lr = 1e-5; };
  traffic("adamw", 7 * size, &OpTable::adamw, [&](auto& a) {
    share(a), a.m = m.data(), a.v = v.data(), a.step = 1, a.beta1 = 0.9, a.beta2 = 0.999, a.eps = 1e-8;
    a.weight_decay = 1e-2;
  });
  traffic("sgd", 5 * size, &OpTable::sgd,
          [&](auto& a) { share(a), a.buffer = m.data(), a.step = 2, a.momentum = 0.9; });
}

}  // namespace

void op_suite(const Bench& bench) {
  const Sizes quick{2, 32, 24, 4, 2, 2, 40};
  Ops ops(bench, bench.options.quick ? quick : Sizes{4, 1024, 512, 16, 2, 8, 32000});
  ops.element_wise();
  ops.rows();
  ops.loss();
  ops.gemms();
  ops.attention();
  ops.routing();
  ops.optimizers();
}

}  // namespace st_moe::bench
