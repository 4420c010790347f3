#include <cstdint>

// A plugin of another build: only the ABI number is where it always was, and nothing else may be read or called.
extern "C" __attribute__((visibility("default"))) const uint32_t* st_moe_plugin() {
  static const uint32_t plugin[16] = {4711};
  return plugin;
}
