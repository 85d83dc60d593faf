#include "vector_clock.hpp"

#include "machine.hpp"

namespace swa::emu {

void release_into(Clock& into, Thread& thread) {
  Clocks& clocks = machine().clocks;
  if (!clocks.enabled()) return;
  uint32_t* own = clocks.of(thread.entity);
  join(into, own, clocks.size());
  own[thread.entity]++;
  thread.warp->common_clock_stale = true;
}

void acquire_from(const Clock& from, Thread& thread) {
  Clocks& clocks = machine().clocks;
  if (!clocks.enabled()) return;
  join(clocks.of(thread.entity), from);
  thread.warp->common_clock_stale = true;
}

Clock fork_clock(Thread& thread) {
  Clock copy;
  release_into(copy, thread);
  return copy;
}

std::string entity_name(int entity) {
  Machine& m = machine();
  if (m.clocks.is_thread(entity)) return format("thread %d", m.threads[size_t(entity)].linear);
  if (m.clocks.is_wgmma(entity))
    return format("wgmma of warp %d", m.warps[size_t(entity - m.clocks.wgmma_entity(0))].id);
  return entity == m.clocks.loader_entity() ? "TMA/bulk load" : "bulk store read";
}

}  // namespace swa::emu
