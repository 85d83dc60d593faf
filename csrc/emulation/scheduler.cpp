#include "scheduler.hpp"

namespace swa::emu {
namespace {

constexpr int kSpuriousTimeouts =
    32;  // rounds in which idle try_waits give up before it counts as a deadlock

int choose_lane(Machine& m, uint32_t ready) {
  if (m.config.order == Order::kForward) return __builtin_ctz(ready);
  if (m.config.order == Order::kReverse) return 31 - __builtin_clz(ready);
  const int start = int(m.random() & 31);
  const uint32_t rotated = (ready >> start) | (start ? ready << (32 - start) : 0);
  return (__builtin_ctz(rotated) + start) & 31;
}

// Lets the polling waits on mbarriers time out, as hardware may at any moment. False when nobody
// polls.
bool time_out_polling_waits() {
  bool any = false;
  for (Thread& t : machine().threads)
    if (t.state == State::kAtMbarrier) {
      t.block->mbarriers[uint32_t(t.waits_for)].waiting.clear();
      wake(t);
      any = true;
    }
  return any;
}

}  // namespace

Thread* pick() {
  Machine& m = machine();
  const size_t n = m.warps.size();
  if (m.config.order == Order::kRandom && (m.random() & 15) == 0) m.current_warp = m.random() % n;
  for (size_t i = 0; i < n; ++i) {
    const size_t k =
        m.config.order == Order::kReverse ? (m.current_warp + n - i) % n : (m.current_warp + i) % n;
    Warp& warp = m.warps[k];
    if (!warp.ready) continue;
    const int lane = choose_lane(m, warp.ready);
    warp.ready &= ~(1u << lane);
    m.current_warp = k;
    return &warp.lane(lane);
  }
  return nullptr;
}

void wake(Thread& thread) {
  thread.state = State::kReady;
  thread.warp->ready |= 1u << thread.lane;
}

void suspend(State state, const char* what, Loc loc, uint64_t id, uint64_t detail) {
  Machine& m = machine();
  Thread* me = m.current;
  me->state = state;
  me->waits_in = what;
  me->waits_at = loc;
  me->waits_for = id;
  me->waits_detail = detail;
  Thread* next = pick();
  if (next == me) {
    me->state = State::kReady;
    return;
  }
  m.current = next;
  fiber_switch(me->fiber, next ? next->fiber : m.main);
}

void thread_main(void* thread) {
  auto* t = static_cast<Thread*>(thread);
  fiber_entered();
  machine().launch->body();
  Machine& m = machine();
  if (!t->cp_async.empty())
    report(
        Kind::kNeverWaited, t->cp_async[0].loc, {},
        "thread exits with cp.async from " + to_string(t->cp_async[0].loc) + " never waited for");
  t->state = State::kDone;
  t->block->live--;
  m.live--;
  m.progress++;
  Thread* next = pick();
  m.current = next;
  fiber_switch(t->fiber, next ? next->fiber : m.main);
  __builtin_unreachable();
}

void run_to_completion() {
  Machine& m = machine();
  int idle = 0;
  uint64_t seen = m.progress;
  while (m.live) {
    if (m.config.async == Async::kRandom && !m.in_flight.empty() && (m.random() & 3) == 0)
      land_one();
    if (Thread* next = pick()) {
      m.current = next;
      fiber_switch(m.main, next->fiber);
      m.current = nullptr;
      if (m.abandoned) return;
      continue;
    }
    if (land_one()) continue;
    if (m.progress != seen) {
      seen = m.progress;
      idle = 0;
    }
    if (++idle >= kSpuriousTimeouts || !time_out_polling_waits())
      fail(Kind::kDeadlock, {}, deadlock_text());
  }
  while (land_one()) {
  }
}

}  // namespace swa::emu
