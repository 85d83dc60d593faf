#include "barrier.hpp"

#include "machine.hpp"
#include "scheduler.hpp"

namespace swa::emu {
namespace {

void check_arrival(NamedBarrier& b, int id, unsigned count, Loc loc) {
  const Thread& t = self();
  if (b.expected != count)
    fail(Kind::kBarrier, loc,
         format("barrier %d at %s: thread count %u differs from %u given by earlier arrivals", id,
                to_string(loc).c_str(), count, b.expected));
  const Loc& warp_loc = b.warp_loc[size_t(t.warp->id)];
  const uint32_t lanes = b.warp_lanes[size_t(t.warp->id)];
  if (lanes && !(warp_loc == loc))
    fail(Kind::kDivergence, loc,
         format("divergent barrier %d: warp %d executes it at %s and at %s in the same phase", id,
                t.warp->id, to_string(warp_loc).c_str(), to_string(loc).c_str()));
  if (lanes >> t.lane & 1)
    fail(Kind::kBarrier, loc,
         format("barrier %d at %s: thread arrives twice in one phase", id, to_string(loc).c_str()));
}

}  // namespace

void barrier(int id, unsigned num_threads, Then then, Loc loc) {
  Machine& m = machine();
  Thread& t = self();
  if (id < 0 || id > 15)
    fail(Kind::kBarrier, loc,
         format("barrier id %d at %s is not in 0..15", id, to_string(loc).c_str()));
  if (num_threads % 32)
    fail(Kind::kBarrier, loc,
         format("barrier %d at %s: thread count %u is not a multiple of 32", id,
                to_string(loc).c_str(), num_threads));
  const unsigned count = num_threads ? num_threads : t.block->num_threads;
  NamedBarrier& b = t.block->barriers[id];
  if (b.arrived == 0) {
    b.expected = count;
    b.warp_loc.assign(t.block->warps.size(), Loc{});
    b.warp_lanes.assign(t.block->warps.size(), 0);
    b.clock.clear();
  }
  check_arrival(b, id, count, loc);
  t.epoch++;
  b.warp_loc[size_t(t.warp->id)] = loc;
  b.warp_lanes[size_t(t.warp->id)] |= 1u << t.lane;
  release_into(b.clock, t);
  b.arrived++;
  if (then == Then::kWait) b.waiting.push_back(&t);
  if (b.arrived == b.expected) {
    m.progress++;
    m.counts.add(Tally::kBarriers);
    for (Thread* waiter : b.waiting) {
      acquire_from(b.clock, *waiter);
      if (waiter != &t) wake(*waiter);
    }
    b.waiting.clear();
    b.arrived = 0;
  } else if (then == Then::kWait) {
    suspend(State::kAtBarrier, "barrier", loc, uint64_t(id), count);
  }
}

void cluster_barrier_arrive() {
  Machine& m = machine();
  ClusterBarrier& b = m.cluster_barrier;
  Thread& t = self();
  t.epoch++;
  release_into(b.arriving, t);
  b.awaited_phase[size_t(t.entity)] = b.phase + 1;
  if (++b.arrived < m.threads.size()) return;
  b.completed = std::move(b.arriving);
  b.arriving.clear();
  b.arrived = 0;
  b.phase++;
  m.progress++;
  m.counts.add(Tally::kClusterBarriers);
  for (Thread* waiter : b.waiting) wake(*waiter);
  b.waiting.clear();
}

void cluster_barrier_wait(Loc loc) {
  ClusterBarrier& b = machine().cluster_barrier;
  Thread& t = self();
  while (b.phase < b.awaited_phase[size_t(t.entity)]) {
    b.waiting.push_back(&t);
    suspend(State::kAtClusterBarrier, "cluster barrier", loc);
  }
  acquire_from(b.completed, t);
}

}  // namespace swa::emu
