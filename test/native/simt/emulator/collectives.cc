#include "emulator/engine.h"

// The collectives of a warp, computed when all its lanes have arrived.
namespace simt {
namespace {

bool in_mask(const Exchange& exchange, int lane) {
  return exchange.mask >> lane & 1;
}

Cell cell_of(unsigned value) {
  return {{value, 0}};
}

void finish_shuffle(Exchange& exchange) {
  for (int l = 0; l < kLanes; ++l) {
    if (!in_mask(exchange, l)) continue;
    const int source = exchange.source[l];
    if (!in_mask(exchange, source)) die("a shuffle reads a lane outside of its mask");
    exchange.out[l] = exchange.in[source];
  }
}

void finish_ballot(Exchange& exchange) {
  unsigned bits = 0;
  for (int l = 0; l < kLanes; ++l)
    if (in_mask(exchange, l) && exchange.source[l]) bits |= 1u << l;
  for (int l = 0; l < kLanes; ++l) exchange.out[l] = in_mask(exchange, l) ? cell_of(bits) : exchange.out[l];
}

void finish_match(Exchange& exchange) {
  for (int l = 0; l < kLanes; ++l) {
    if (!in_mask(exchange, l)) continue;
    unsigned equal = 0;
    for (int other = 0; other < kLanes; ++other)
      if (in_mask(exchange, other) && exchange.in[l].words[0] == exchange.in[other].words[0]) equal |= 1u << other;
    exchange.out[l] = cell_of(equal);
  }
}

// Values are the low halves of the first words.
template <class Combine>
void finish_reduce(Exchange& exchange, Combine combine) {
  unsigned total = 0;
  bool first = true;
  for (int l = 0; l < kLanes; ++l) {
    if (!in_mask(exchange, l)) continue;
    const unsigned value = static_cast<unsigned>(exchange.in[l].words[0]);
    total = first ? value : combine(total, value);
    first = false;
  }
  for (int l = 0; l < kLanes; ++l) exchange.out[l] = in_mask(exchange, l) ? cell_of(total) : exchange.out[l];
}

bool less_int(unsigned a, unsigned b) {
  return static_cast<int>(a) < static_cast<int>(b);
}

}  // namespace

void finish(Exchange& exchange, Collective kind) {
  using U = unsigned;
  switch (kind) {
    case Collective::barrier: return;
    case Collective::shuffle: return finish_shuffle(exchange);
    case Collective::ballot: return finish_ballot(exchange);
    case Collective::match: return finish_match(exchange);
    case Collective::add_int:
    case Collective::add_unsigned: return finish_reduce(exchange, [](U a, U b) { return a + b; });
    case Collective::min_int: return finish_reduce(exchange, [](U a, U b) { return less_int(b, a) ? b : a; });
    case Collective::max_int: return finish_reduce(exchange, [](U a, U b) { return less_int(a, b) ? b : a; });
    case Collective::min_unsigned: return finish_reduce(exchange, [](U a, U b) { return b < a ? b : a; });
    case Collective::max_unsigned: return finish_reduce(exchange, [](U a, U b) { return a < b ? b : a; });
  }
}

}  // namespace simt
