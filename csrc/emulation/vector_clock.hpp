// Happens-before for the race checker: one vector clock per entity of a cluster.
//
// Entities: every thread; one wgmma engine per warp; one loader for all TMA and bulk loads; one
// reader for all bulk stores. An access at clock c of entity e happened before what entity f does
// now if f's clock for e has reached c.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace swa::emu {

struct Thread;

using Clock = std::vector<uint32_t>;  // one count per entity; empty: knows nothing

class Clocks {
 public:
  void reset(int num_threads, int num_warps, bool enabled) {
    num_threads_ = num_threads;
    num_warps_ = num_warps;
    enabled_ = enabled;
    if (!enabled) return;
    counts_.assign(size_t(size()) * size(), 0);
    for (int e = 0; e < size(); ++e) of(e)[e] = 1;
  }
  bool enabled() const { return enabled_; }
  int size() const { return num_threads_ + num_warps_ + 2; }
  int wgmma_entity(int warp) const { return num_threads_ + warp; }
  int loader_entity() const { return num_threads_ + num_warps_; }
  int store_reader_entity() const { return loader_entity() + 1; }
  bool is_thread(int entity) const { return entity < num_threads_; }
  bool is_wgmma(int entity) const { return !is_thread(entity) && entity < loader_entity(); }

  uint32_t* of(int entity) { return &counts_[size_t(entity) * size()]; }
  uint32_t now(int entity) { return enabled_ ? of(entity)[entity] : 0; }

 private:
  int num_threads_ = 0, num_warps_ = 0;
  bool enabled_ = false;
  std::vector<uint32_t> counts_;
};

inline void join(uint32_t* into, const Clock& from) {
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}
inline void join(Clock& into, const uint32_t* from, int n) {
  if (into.empty()) into.assign(size_t(n), 0);
  for (int i = 0; i < n; ++i) into[size_t(i)] = std::max(into[size_t(i)], from[i]);
}

// What a thread has done so far becomes known to whoever acquires `into`.
void release_into(Clock& into, Thread& thread);
void acquire_from(const Clock& from, Thread& thread);
// A copy of the thread's clock for an operation that it starts; later writes of the thread are not
// covered.
Clock fork_clock(Thread& thread);

// "thread 5", "wgmma of warp 4", "TMA/bulk load", "bulk store read"
std::string entity_name(int entity);

}  // namespace swa::emu
