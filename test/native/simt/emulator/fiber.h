#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// A stack with a saved stack pointer, and the switch between two of them: callee-saved registers only.
namespace simt {

extern "C" void simt_switch(void** save_from, void* load_to);

#if defined(__x86_64__)
asm(R"(
  .pushsection .text
  .hidden simt_switch
  .globl simt_switch
  .type simt_switch, @function
simt_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
  .size simt_switch, . - simt_switch
  .popsection
)");

static inline void* first_stack_pointer(void* top, void (*entry)()) {
  auto* slot = reinterpret_cast<uint64_t*>(top);
  *--slot = 0;  // entry finds the stack as after a call
  *--slot = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--slot = 0;
  return slot;
}
#elif defined(__aarch64__)
asm(R"(
  .pushsection .text
  .hidden simt_switch
  .globl simt_switch
  .type simt_switch, %function
simt_switch:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
  .size simt_switch, . - simt_switch
  .popsection
)");

static inline void* first_stack_pointer(void* top, void (*entry)()) {
  auto* frame = reinterpret_cast<uint64_t*>(top) - 20;
  std::memset(frame, 0, 160);
  frame[1] = reinterpret_cast<uint64_t>(entry);
  return frame;
}
#else
#error "the emulator has no context switch for this processor"
#endif

}  // namespace simt
