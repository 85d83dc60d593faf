// Which fiber runs. A scheduler per cluster: it stays on a warp until no lane is ready; fibers
// switch directly to each other and to the host thread only when none can run.
#pragma once
#include <cstdint>

#include "machine.hpp"

namespace swa::emu {

// The next thread to run, taken out of its warp's ready set; nullptr when none is ready.
Thread* pick();
void wake(Thread& thread);
// Suspends the running fiber until somebody wakes it; `what`, `loc`, `id` and `detail` are for the
// deadlock report.
void suspend(State state, const char* what, Loc loc, uint64_t id = 0, uint64_t detail = 0);
// Runs the machine's threads until all have exited and everything in flight has landed; throws
// Stopped if fail() was called outside a fiber, sets machine().abandoned if inside.
void run_to_completion();
// What a fiber executes: the kernel, then its own end.
void thread_main(void* thread);
// Who waits for what, grouped; for the report when nothing can go on.
std::string deadlock_text();

}  // namespace swa::emu
