#include "fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// swa_emu_switch(void** save, void* load): pushes the callee-saved registers, stores the stack
// pointer in *save, loads the other one and pops. Floating-point control words are the same for all
// fibers of a process and are left alone. swa_emu_entry: where a fresh fiber's first switch
// "returns" to; calls entry(argument), kept in callee-saved registers.
#if defined(__x86_64__)
__asm__(R"(
    .text
    .p2align 4
    .globl swa_emu_switch
    .hidden swa_emu_switch
    .type swa_emu_switch,@function
swa_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq  %rsp, (%rdi)
    movq  %rsi, %rsp
    popq  %r15
    popq  %r14
    popq  %r13
    popq  %r12
    popq  %rbx
    popq  %rbp
    ret
    .size swa_emu_switch,.-swa_emu_switch
    .globl swa_emu_entry
    .hidden swa_emu_entry
    .type swa_emu_entry,@function
swa_emu_entry:
    movq %rbx, %rdi
    xorl %ebp, %ebp
    call *%r12
    ud2
    .size swa_emu_entry,.-swa_emu_entry
)");
#else
__asm__(R"(
    .text
    .p2align 4
    .globl swa_emu_switch
    .hidden swa_emu_switch
    .type swa_emu_switch,%function
swa_emu_switch:
    sub  sp, sp, #160
    stp  x19, x20, [sp, #0]
    stp  x21, x22, [sp, #16]
    stp  x23, x24, [sp, #32]
    stp  x25, x26, [sp, #48]
    stp  x27, x28, [sp, #64]
    stp  x29, x30, [sp, #80]
    stp  d8,  d9,  [sp, #96]
    stp  d10, d11, [sp, #112]
    stp  d12, d13, [sp, #128]
    stp  d14, d15, [sp, #144]
    mov  x9, sp
    str  x9, [x0]
    mov  sp, x1
    ldp  x19, x20, [sp, #0]
    ldp  x21, x22, [sp, #16]
    ldp  x23, x24, [sp, #32]
    ldp  x25, x26, [sp, #48]
    ldp  x27, x28, [sp, #64]
    ldp  x29, x30, [sp, #80]
    ldp  d8,  d9,  [sp, #96]
    ldp  d10, d11, [sp, #112]
    ldp  d12, d13, [sp, #128]
    ldp  d14, d15, [sp, #144]
    add  sp, sp, #160
    ret
    .size swa_emu_switch,.-swa_emu_switch
    .globl swa_emu_entry
    .hidden swa_emu_entry
    .type swa_emu_entry,%function
swa_emu_entry:
    mov  x0, x19
    mov  x29, xzr
    blr  x20
    brk  #0
    .size swa_emu_entry,.-swa_emu_entry
)");
#endif

extern "C" void swa_emu_switch(void** save, void* load);
extern "C" void swa_emu_entry();

namespace swa::emu {

void fiber_make(Fiber& fiber, char* low, size_t size, void (*entry)(void*), void* argument) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(low, size);  // frames of an abandoned fiber leave poison behind
#endif
  const auto top = (reinterpret_cast<uintptr_t>(low) + size) & ~uintptr_t(15);
#if defined(__x86_64__)
  // From the top: two words that keep the stack 16-aligned at the call, the return address, rbp rbx
  // r12 r13 r14 r15.
  auto** frame = reinterpret_cast<void**>(top) - 9;
  for (int i = 0; i < 9; ++i) frame[i] = nullptr;
  frame[3] = reinterpret_cast<void*>(entry);  // r12
  frame[4] = argument;                        // rbx
  frame[6] = reinterpret_cast<void*>(&swa_emu_entry);
#else
  auto** frame = reinterpret_cast<void**>(top - 160);
  for (int i = 0; i < 20; ++i) frame[i] = nullptr;
  frame[0] = argument;                                  // x19
  frame[1] = reinterpret_cast<void*>(entry);            // x20
  frame[11] = reinterpret_cast<void*>(&swa_emu_entry);  // x30
#endif
  fiber.stack_pointer = frame;
#if defined(__SANITIZE_ADDRESS__)
  fiber.bottom = low;
  fiber.size = size;
  fiber.fake_stack = nullptr;
#endif
}

void fiber_adopt_host_stack([[maybe_unused]] Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* low;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &low, &fiber.size);
  pthread_attr_destroy(&attributes);
  fiber.bottom = low;
#endif
}

void fiber_switch(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
  swa_emu_switch(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void fiber_entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void StackSlab::reserve(size_t count, size_t bytes_each) {
  page_ = size_t(sysconf(_SC_PAGESIZE));
  bytes_each = (bytes_each + page_ - 1) / page_ * page_;
  if (count <= count_ && bytes_each == bytes_) return;
  release();
  void* p = mmap(nullptr, count * (bytes_each + page_), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::abort();
  base_ = static_cast<char*>(p);
  count_ = count;
  bytes_ = bytes_each;
  for (size_t i = 0; i < count_; ++i) mprotect(base_ + i * (bytes_ + page_), page_, PROT_NONE);
}

void StackSlab::release() {
  if (!base_) return;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(base_, count_ * (bytes_ + page_));
#endif
  munmap(base_, count_ * (bytes_ + page_));
  base_ = nullptr;
  count_ = 0;
}

}  // namespace swa::emu
