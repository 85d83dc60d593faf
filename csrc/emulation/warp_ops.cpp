#include "warp_ops.hpp"

#include "machine.hpp"

namespace swa::emu {

int lane_id() { return self().lane; }

uint32_t shuffle(const char* op, uint32_t mask, uint32_t value, int source, Loc loc) {
  struct Argument {
    uint32_t value, result;
    int source;
  } argument{value, value, source};
  collective(op, mask, argument, loc, Aligned::kNo, [&](Collective& c, Warp&) {
    machine().counts.add(Tally::kShuffles);
    for (int lane : Lanes{c.mask}) {
      Argument& x = c.of<Argument>(lane);
      if (x.source < 0 || x.source > 31 || !(c.mask >> x.source & 1))
        fail(Kind::kDivergence, loc,
             format("%s at %s reads from lane %d outside mask 0x%08x", op, to_string(loc).c_str(),
                    x.source, c.mask));
      x.result = c.of<Argument>(x.source).value;
    }
  });
  return argument.result;
}

uint32_t ballot(uint32_t mask, bool predicate, Loc loc) {
  struct Argument {
    bool predicate;
    uint32_t result;
  } argument{predicate, 0};
  collective("vote.ballot", mask, argument, loc, Aligned::kNo, [](Collective& c, Warp&) {
    uint32_t result = 0;
    for (int lane : Lanes{c.mask})
      if (c.of<Argument>(lane).predicate) result |= 1u << lane;
    for (int lane : Lanes{c.mask}) c.of<Argument>(lane).result = result;
  });
  return argument.result;
}

bool elect(uint32_t mask, Loc loc) {
  struct {
  } nothing;
  collective("elect.sync", mask, nothing, loc, Aligned::kNo, [](Collective&, Warp&) {});
  const bool highest = machine().config.order == Order::kReverse;
  return lane_id() == (highest ? 31 - __builtin_clz(mask) : __builtin_ctz(mask));
}

}  // namespace swa::emu
