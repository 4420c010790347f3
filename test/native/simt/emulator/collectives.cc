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

void finish_match(Exchange& exchange) {
  for (int l = 0; l < kLanes; ++l) {
    if (!in_mask(exchange, l)) continue;
    unsigned equal = 0;
    for (int other = 0; other < kLanes; ++other)
      if (in_mask(exchange, other) && exchange.in[l].words[0] == exchange.in[other].words[0]) equal |= 1u << other;
    exchange.out[l] = cell_of(equal);
  }
}

}  // namespace

void finish(Exchange& exchange, Collective kind) {
  switch (kind) {
    case Collective::barrier: return;
    case Collective::shuffle: return finish_shuffle(exchange);
    case Collective::match: return finish_match(exchange);
  }
}

}  // namespace simt
