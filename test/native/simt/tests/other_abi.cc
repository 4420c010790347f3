#include <cstdint>

// A plugin of another version: only the ABI number is where it always was.
extern "C" __attribute__((visibility("default"))) const uint32_t* st_moe_plugin() {
  static const uint32_t plugin[16] = {4711};
  return plugin;
}
