#include "collective.hpp"

#include "machine.hpp"
#include "scheduler.hpp"

namespace swa::emu {

Warp& running_warp() { return *self().warp; }

static Collective& join_or_open(Warp& warp, const char* op, uint32_t mask, Loc loc) {
  for (Collective& c : warp.collectives)
    if (c.arrived && c.mask == mask) return c;
  for (Collective& c : warp.collectives)
    if (!c.arrived) {
      c.op = op;
      c.mask = mask;
      c.loc = loc;
      return c;
    }
  fail(Kind::kDivergence, loc,
       "too many partial-warp collectives under way at once, " + to_string(loc));
}

Collective* collective_arrive(const char* op, uint32_t mask, void* argument, Loc loc,
                              Aligned aligned) {
  Thread& t = self();
  if (!(mask >> t.lane & 1))
    fail(Kind::kDivergence, loc,
         format("%s at %s: executing lane %d is not in its own mask 0x%08x", op,
                to_string(loc).c_str(), t.lane, mask));
  Collective& c = join_or_open(*t.warp, op, mask, loc);
  if (c.op != op || (aligned == Aligned::kYes && !(c.loc == loc)))
    fail(Kind::kDivergence, loc,
         format("divergent warp collective: lane %d executes %s at %s while other lanes of the "
                "warp wait in %s at %s",
                t.lane, op, to_string(loc).c_str(), c.op, to_string(c.loc).c_str()));
  if ((mask & t.warp->full_mask) == t.warp->full_mask) t.epoch++;
  c.argument[t.lane] = argument;
  c.arrived |= 1u << t.lane;
  if (c.arrived == mask) return &c;
  suspend(State::kInCollective, op, loc, mask);
  return nullptr;
}

void collective_release(Collective& c) {
  Thread& t = self();
  const uint32_t others = c.mask & ~(1u << t.lane);
  c.arrived = 0;
  for (int lane : Lanes{others}) t.warp->lane(lane).state = State::kReady;
  t.warp->ready |= others;
}

void sync_warp(uint32_t mask, Loc loc) {
  struct {
  } nothing;
  collective("syncwarp", mask, nothing, loc, Aligned::kNo, [](Collective& c, Warp& warp) {
    machine().counts.add(Tally::kWarpSyncs);
    Clock clock;
    for (int lane : Lanes{c.mask}) release_into(clock, warp.lane(lane));
    for (int lane : Lanes{c.mask}) acquire_from(clock, warp.lane(lane));
  });
}

}  // namespace swa::emu
