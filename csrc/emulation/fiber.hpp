// Stackful fibers, one per CUDA thread: a hand-written switch for x86-64 (System V) and aarch64
// (AAPCS64).
//
// A switch costs 7-8 ns, against 150 for ucontext, which calls sigprocmask twice; a kernel switches
// millions of times. A fiber never migrates between host threads, so thread_local variables are
// safe around a switch.
#pragma once
#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "the emulator's fiber switch exists for x86-64 and aarch64 only"
#endif

namespace swa::emu {

struct Fiber {
  void* stack_pointer = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
#endif
};

// Prepares a fiber that calls entry(argument) on the stack [low, low + size) when first switched
// to; entry never returns.
void fiber_make(Fiber& fiber, char* low, size_t size, void (*entry)(void*), void* argument);
// Describes the host thread's own stack, which is switched to and from like any fiber.
void fiber_adopt_host_stack(Fiber& fiber);
void fiber_switch(Fiber& from, Fiber& to);
// The first thing a fiber's entry function does.
void fiber_entered();

// Stacks for many fibers, reused between launches, with an inaccessible page below each.
class StackSlab {
 public:
  StackSlab() = default;
  StackSlab(const StackSlab&) = delete;
  StackSlab& operator=(const StackSlab&) = delete;
  ~StackSlab() { release(); }

  void reserve(size_t count, size_t bytes_each);
  char* low(size_t i) const { return base_ + i * (bytes_ + page_) + page_; }
  size_t bytes_each() const { return bytes_; }

 private:
  void release();
  char* base_ = nullptr;
  size_t count_ = 0, bytes_ = 0, page_ = 4096;
};

}  // namespace swa::emu
