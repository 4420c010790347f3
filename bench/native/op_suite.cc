#include <algorithm>
#include <cmath>

#include "bench.h"

// Each op at sizes of the seed layer, beside the arithmetic or the memory traffic that it cannot do without.
namespace st_moe::bench {
namespace {

constexpr DType f32 = DType::f32;

struct Sizes {
  int64_t B, N, D, E, K, H, heads, V;
  int64_t T() const { return B * N; }
  int64_t C() const { return std::max<int64_t>(4, N * 5 / (4 * E)); }
};

// Runs `run(threads)` as a case for each number of threads: `flops` against the FMA peak, or `bytes` (what must be read
// and written) against reading memory. What fits a cache may exceed that.
class Suite {
 public:
  Suite(const Bench& bench, const Sizes& sizes, Results& results) : bench(bench), s(sizes), results_(results) {}

  void add(const char* name, double flops, double bytes, const std::function<void(int)>& run) {
    Group group;
    for (const int threads : bench.threads) {
      const bool arithmetic = flops > 0;
      const size_t floor = group.add(arithmetic ? fma_floor(bench, threads) : dram_floor(bench, threads));
      Case one{.name = std::string("op/") + name,
               .params = {{"threads", std::to_string(threads)}},
               .run = [=] { run(threads); },
               .flops = flops,
               .bytes = bytes,
               .against = {{floor, arithmetic ? Measure::flops : Measure::bytes}}};
      if (threads != bench.threads.front()) one.against.push_back({1, Measure::speed});
      group.add(std::move(one));
    }
    run_into(bench, results_, group);
  }
  void traffic(const char* name, int64_t floats, const std::function<void(int)>& run) {
    add(name, 0, static_cast<double>(floats) * 4, run);
  }
  void arithmetic(const char* name, double flops, const std::function<void(int)>& run) { add(name, flops, 0, run); }

  const Bench& bench;
  const Sizes s;

 private:
  Results& results_;
};

void element_wise(Suite& suite) {
  const Bench& bench = suite.bench;
  const OpTable& ops = bench.ops();
  const int64_t size = suite.s.T() * suite.s.D;
  const Buffer<float> x = normals(bench, size), dy = normals(bench, size), y(bench, size), narrow(bench, size / 2 + 1);
  suite.traffic("fill", size, [&](int t) { call(ops.fill, t, {y.get(), f32, size, 1}); });
  suite.traffic("random", size,
                [&](int t) { call(ops.random, t, {y.get(), f32, size, Distribution::normal, 0, 1, 1, 1}); });
  suite.traffic("convert to bf16", size + size / 2,
                [&](int t) { call(ops.convert, t, {x.get(), narrow.get(), f32, DType::bf16, size}); });
  suite.traffic("strided_copy", 2 * size, [&](int t) {  // a transposition
    StridedCopyArgs args{x.get(), y.get(), f32, 2, {suite.s.D, suite.s.T()}, {1, suite.s.D}, {suite.s.T(), 1}, 0, 0};
    call(ops.strided_copy, t, args);
  });
  suite.traffic("gelu", 2 * size, [&](int t) { call(ops.unary, t, {x.get(), y.get(), f32, size, UnaryKind::gelu}); });
  suite.traffic("gelu backward", 3 * size,
                [&](int t) { call(ops.unary_backward, t, {x.get(), dy.get(), y.get(), f32, size, UnaryKind::gelu}); });
  suite.traffic("add", 3 * size, [&](int t) {
    call(ops.binary, t, {x.get(), dy.get(), y.get(), f32, BinaryKind::add, 1, {size}, {1}, {1}});
  });
  suite.traffic("scale", 2 * size, [&](int t) { call(ops.scale, t, {y.get(), f32, size, 1.0}); });
  suite.traffic("reduce", size,
                [&](int t) { call(ops.reduce, t, {x.get(), y.get(), f32, 1, suite.s.T(), suite.s.D, 1.0}); });
  double sum = 0;
  suite.traffic("sum_squares", size, [&](int t) { call(ops.sum_squares, t, {x.get(), &sum, f32, size, 1.0}); });
  suite.traffic("dropout", 2 * size, [&](int t) { call(ops.dropout, t, {x.get(), y.get(), f32, size, 0.1, 1, 1}); });
}

void optimizers(Suite& suite) {
  const Bench& bench = suite.bench;
  const int64_t size = suite.s.E * 3 * suite.s.H * suite.s.D;  // the experts' weights
  const Buffer<float> p = normals(bench, size), g = normals(bench, size), m(bench, size), v(bench, size);
  suite.traffic("adamw", 7 * size, [&](int t) {
    call(bench.ops().adamw, t, {p.get(), g.get(), m.get(), v.get(), f32, size, 1, 1e-5, 0.9, 0.999, 1e-8, 1e-2});
  });
  suite.traffic("sgd", 5 * size,
                [&](int t) { call(bench.ops().sgd, t, {p.get(), g.get(), m.get(), f32, size, 2, 1e-5, 0.9, 0}); });
}

void rows(Suite& suite) {
  const Bench& bench = suite.bench;
  const OpTable& ops = bench.ops();
  const int64_t T = suite.s.T(), D = suite.s.D, V = suite.s.V;
  const Buffer<float> x = normals(bench, T * D), dy = normals(bench, T * D), y(bench, T * D);
  const Buffer<float> w = normals(bench, D), b = normals(bench, D), dw(bench, D), db(bench, D);
  suite.traffic("rmsnorm", 2 * T * D, [&](int t) { call(ops.rmsnorm, t, {x.get(), w.get(), y.get(), f32, T, D}); });
  suite.traffic("rmsnorm backward", 3 * T * D, [&](int t) {
    call(ops.rmsnorm_backward, t, {dy.get(), x.get(), w.get(), y.get(), dw.get(), f32, T, D});
  });
  suite.traffic("layernorm", 2 * T * D,
                [&](int t) { call(ops.layernorm, t, {x.get(), w.get(), b.get(), y.get(), f32, T, D, 1e-5}); });
  suite.traffic("layernorm backward", 3 * T * D, [&](int t) {
    call(ops.layernorm_backward, t, {dy.get(), x.get(), w.get(), y.get(), dw.get(), db.get(), f32, T, D, 1e-5});
  });
  suite.traffic("softmax", 2 * T * D, [&](int t) { call(ops.softmax, t, {x.get(), y.get(), f32, T, D, 0}); });
  suite.traffic("softmax backward", 3 * T * D,
                [&](int t) { call(ops.softmax_backward, t, {dy.get(), x.get(), y.get(), f32, T, D, 0}); });

  const Buffer<float> logits = normals(bench, T * V), dlogits(bench, T * V), lse(bench, T), loss(bench, 1);
  const Buffer<float> table = normals(bench, V * D), dtable(bench, V * D);
  const Buffer<int32_t> target = integers(bench, T, V);
  suite.traffic("cross_entropy", T * V, [&](int t) {
    call(ops.cross_entropy, t, {logits.get(), target.get(), loss.get(), lse.get(), f32, T, V, -100});
  });
  suite.traffic("cross_entropy backward", 2 * T * V, [&](int t) {
    call(ops.cross_entropy_backward, t,
         {loss.get(), logits.get(), lse.get(), target.get(), dlogits.get(), f32, T, V, -100});
  });
  suite.traffic("embedding", 2 * T * D,
                [&](int t) { call(ops.embedding, t, {table.get(), target.get(), y.get(), f32, T, D, V}); });
  suite.traffic("embedding backward", T * D + V * D,
                [&](int t) { call(ops.embedding_backward, t, {dy.get(), target.get(), dtable.get(), f32, T, D, V}); });
  const Buffer<float> value(bench, T * suite.s.K);
  const Buffer<int32_t> index(bench, T * suite.s.K);
  suite.traffic("topk", T * V,
                [&](int t) { call(ops.topk, t, {logits.get(), value.get(), index.get(), f32, T, V, suite.s.K}); });
  suite.traffic("topk backward", T * V, [&](int t) {
    call(ops.topk_backward, t, {value.get(), index.get(), dlogits.get(), f32, T, V, suite.s.K});
  });
}

void products(Suite& suite) {
  const Bench& bench = suite.bench;
  const OpTable& ops = bench.ops();
  const int64_t T = suite.s.T(), D = suite.s.D;
  const double flops = 2.0 * static_cast<double>(T * D * D);
  const Buffer<float> x = normals(bench, T * D), w = normals(bench, D * D), b = normals(bench, D), y(bench, T * D);
  const Buffer<float> dx(bench, T * D), dw(bench, D * D), db(bench, D);
  suite.arithmetic("linear", flops,
                   [&](int t) { call(ops.linear, t, {x.get(), w.get(), b.get(), y.get(), f32, f32, T, D, D}); });
  suite.arithmetic("linear backward", 2 * flops, [&](int t) {
    call(ops.linear_backward, t, {y.get(), x.get(), w.get(), dx.get(), dw.get(), db.get(), f32, f32, T, D, D});
  });
  suite.arithmetic("matmul", flops,
                   [&](int t) { call(ops.matmul, t, {x.get(), w.get(), y.get(), f32, 1, T, D, D, 0, 0, 0, 0}); });

  const int64_t B = suite.s.B, N = suite.s.N, heads = suite.s.heads, d = D / heads;
  const double pairs = 4.0 * static_cast<double>(B * N * N * D) / 2;  // two products, half of the square
  const Buffer<float> k = normals(bench, T * D), v = normals(bench, T * D), lse(bench, B * heads * N);
  const Buffer<float> dk(bench, T * D), dv(bench, T * D);
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  suite.arithmetic("attention", pairs, [&](int t) {
    call(ops.attention, t, {x.get(), k.get(), v.get(), y.get(), lse.get(), f32, B, N, N, heads, d, scale, 1});
  });
  suite.arithmetic("attention backward", 2.5 * pairs, [&](int t) {  // five products
    call(ops.attention_backward, t,
         {x.get(), x.get(), k.get(), v.get(), y.get(), lse.get(), dx.get(), dk.get(), dv.get(), f32, B, N, N, heads, d,
          scale, 1});
  });
}

void mixture(Suite& suite) {
  const Bench& bench = suite.bench;
  const OpTable& ops = bench.ops();
  const Sizes& s = suite.s;
  const int64_t T = s.T(), D = s.D, TK = T * s.K, slots = s.E * s.B * s.C();
  const Buffer<float> x = normals(bench, T * D), w = uniforms(bench, s.E * D, 0.1), threshold(bench, s.K);
  const Buffer<int32_t> expert(bench, TK), kept(bench, TK), position(bench, TK);
  const Buffer<float> gate(bench, TK), weight(bench, TK), losses(bench, 3), probs(bench, T * s.E),
      logits(bench, T * s.E);
  const Buffer<float> lse(bench, T), density(bench, s.B * s.E), one = uniforms(bench, 1, 1);
  RouteArgs route{};
  route.x = x, route.w = w, route.threshold = threshold;
  route.expert_index = expert, route.kept = kept, route.position = position, route.gate = gate, route.weight = weight;
  route.balance_loss = losses.get(), route.z_loss = losses.get() + 1, route.total_loss = losses.get() + 2;
  route.probs = probs, route.logits = logits, route.lse = lse, route.density = density;
  route.B = s.B, route.N = s.N, route.D = D, route.E = s.E, route.K = s.K, route.C = s.C();
  route.seed = 1, route.step = 1, route.eps = 1e-9, route.balance_coef = 1e-2, route.z_coef = 1e-3, route.training = 1;
  suite.traffic("route", T * D, [&](int t) { call(ops.route, t, route); });
  call(ops.route, 1, route);

  const Buffer<float> dweight = normals(bench, TK), dx(bench, T * D), dw(bench, s.E * D);
  RouteBackwardArgs back{};
  back.dweight = dweight, back.dtotal = one, back.x = x, back.w = w, back.expert_index = expert, back.kept = kept;
  back.gate = gate, back.probs = probs, back.logits = logits, back.lse = lse, back.density = density;
  back.dx = dx, back.dw = dw;
  back.B = s.B, back.N = s.N, back.D = D, back.E = s.E, back.K = s.K;
  back.eps = 1e-9, back.balance_coef = 1e-2, back.z_coef = 1e-3, back.training = 1;
  suite.traffic("route backward", 2 * T * D, [&](int t) { call(ops.route_backward, t, back); });

  const Buffer<float> buffer = normals(bench, slots * D), dbuffer(bench, slots * D), y(bench, T * D), dkept(bench, TK);
  suite.traffic("dispatch", 2 * slots * D, [&](int t) {
    call(ops.dispatch, t, {x.get(), expert.get(), position.get(), dbuffer.get(), f32, s.B, s.N, D, s.E, s.K, s.C()});
  });
  suite.traffic("dispatch backward", slots * D + 2 * T * D, [&](int t) {
    call(ops.dispatch_backward, t,
         {buffer.get(), x.get(), expert.get(), position.get(), dx.get(), dkept.get(), f32, s.B, s.N, D, s.E, s.K,
          s.C()});
  });
  suite.traffic("combine", slots * D + T * D, [&](int t) {
    call(ops.combine, t,
         {buffer.get(), weight.get(), expert.get(), position.get(), y.get(), f32, s.B, s.N, D, s.E, s.K, s.C()});
  });
  suite.traffic("combine backward", T * D + 2 * slots * D, [&](int t) {
    call(ops.combine_backward, t,
         {x.get(), buffer.get(), weight.get(), expert.get(), position.get(), dbuffer.get(), dkept.get(), f32, s.B, s.N,
          D, s.E, s.K, s.C()});
  });
}

}  // namespace

void op_suite(const Bench& bench, Results& results) {
  const Sizes sizes = bench.quick ? Sizes{2, 32, 24, 4, 2, 20, 2, 40} : Sizes{4, 1024, 512, 16, 2, 1365, 8, 1024};
  Suite suite(bench, sizes, results);
  element_wise(suite);
  rows(suite);
  products(suite);
  mixture(suite);
  optimizers(suite);
}

}  // namespace st_moe::bench
