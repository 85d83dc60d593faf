// Thread block clusters: ranks and addresses in another CTA's shared memory. The barrier is in
// barrier.hpp.
#pragma once
#include <cstdint>

#include "source_location.hpp"

namespace swa::emu {

uint32_t cluster_rank();
// The shared::cluster address of the same offset in CTA `rank`.
uint32_t map_to_cta(uint32_t address, uint32_t rank, Loc loc);

struct Block;

// A thread touched the shared memory of another CTA, which must not exit before: some thread of it
// must know of the access.
struct RemoteAccess {
  int entity;
  uint32_t clock;
  Loc loc;
};
void note_remote_access(Block& block, Loc loc);
void check_remote_accesses_at_exit();

}  // namespace swa::emu
