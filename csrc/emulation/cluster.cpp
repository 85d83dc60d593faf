#include "cluster.hpp"

#include "machine.hpp"

namespace swa::emu {

uint32_t cluster_rank() { return uint32_t(self().block->rank); }

uint32_t map_to_cta(uint32_t address, uint32_t rank, Loc loc) {
  if (rank >= machine().blocks.size())
    fail(Kind::kInvalid, loc,
         format("mapa: rank %u in a cluster of %zu, %s", rank, machine().blocks.size(),
                to_string(loc).c_str()));
  return cluster_address(address, rank);
}

void note_remote_access(Block& block, Loc loc) {
  const int entity = self().entity;
  const uint32_t clock = machine().clocks.now(entity);
  for (RemoteAccess& a : block.remote_accesses)
    if (a.entity == entity && a.loc == loc) {
      a.clock = clock;
      return;
    }
  block.remote_accesses.push_back({entity, clock, loc});
}

void check_remote_accesses_at_exit() {
  Machine& m = machine();
  for (const Block& block : m.blocks)
    for (const RemoteAccess& a : block.remote_accesses) {
      uint32_t known = 0;
      for (const Thread& t : m.threads)
        if (t.block == &block) known = std::max(known, m.clocks.of(t.entity)[a.entity]);
      if (known < a.clock)
        report(Kind::kExitedPeer, a.loc, {},
               format("CTA %d of the cluster may exit before %s of another CTA accesses its shared "
                      "memory at %s: nothing "
                      "makes it wait",
                      block.rank, entity_name(a.entity).c_str(), to_string(a.loc).c_str()));
    }
}

}  // namespace swa::emu
