#include "bulk_copy.hpp"

#include <cstring>

#include "machine.hpp"

namespace swa::emu {

void async_load(Block& block, std::vector<LoadSegment> segments, uint32_t bytes, uint32_t mbarrier,
                const char* what, Loc loc) {
  Machine& m = machine();
  Thread& t = self();
  const Mbarrier& b = check_mbarrier(mbarrier, loc);
  const int loader = m.clocks.loader_entity();
  if (m.config.race && !b.init_fenced)
    report(Kind::kMbarrierFence, loc, b.loc,
           format("%s at %s uses an mbarrier whose initializing thread executed no "
                  "fence.mbarrier_init or "
                  "fence.proxy.async",
                  what, to_string(loc).c_str()));
  // All checks come first: two segments may share a 4-byte cell.
  for (const LoadSegment& s : segments)
    if (m.config.race)
      shadow_check_write({block, s.offset, s.bytes, loader, m.clocks.of(t.entity), true, loc});
  for (const LoadSegment& s : segments) {
    if (m.config.race)
      shadow_set_write(block, s.offset, s.bytes, loader, 0, Shadow::kInFlight | Shadow::kAsyncProxy,
                       loc);
    if (m.config.poison) std::memset(block.smem + s.offset, 0xff, s.bytes);
  }
  Block& barrier_block = block_of(mbarrier, loc);
  submit([&block, &barrier_block, segments = std::move(segments), bytes, mbarrier, loader, loc,
          clock = fork_clock(t)]() mutable {
    Machine& m = machine();
    uint32_t now = 0;
    if (m.config.race) clock[size_t(loader)] = now = ++m.clocks.of(loader)[loader];
    for (const LoadSegment& s : segments) {
      if (s.src)
        std::memcpy(block.smem + s.offset, s.src, s.bytes);
      else
        std::memset(block.smem + s.offset, 0, s.bytes);
      if (m.config.race)
        shadow_set_write(block, s.offset, s.bytes, loader, now, Shadow::kAsyncProxy, loc);
    }
    mbarrier_complete_bytes(barrier_block, mbarrier, bytes, clock);
  });
}

void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t mbarrier, Loc loc) {
  check_aligned(dst, 16, "cp.async.bulk destination", loc);
  check_aligned(reinterpret_cast<uintptr_t>(src), 16, "cp.async.bulk source", loc);
  check_aligned(bytes, 16, "cp.async.bulk size", loc);
  const Buffer& buffer = check_global(src, bytes, false, loc);
  Block& block = block_of(dst, loc);
  smem_at(block, dst, bytes, "cp.async.bulk destination", loc);
  count_bulk(Op::kBulkLoad, {{reinterpret_cast<uintptr_t>(src), bytes, buffer.tag}}, loc);
  async_load(block, {{smem_offset(dst), static_cast<const uint8_t*>(src), bytes}}, bytes, mbarrier,
             "cp.async.bulk", loc);
}

void async_store(const std::vector<StoreSegment>& segments, Loc loc) {
  Machine& m = machine();
  const Thread& t = self();
  uint32_t clock = 0;
  const int reader = m.config.race ? m.clocks.store_reader_entity() : 0;
  if (m.config.race) clock = ++m.clocks.of(reader)[reader];
  for (const StoreSegment& s : segments) {
    if (m.config.race)
      shadow_read({*t.block, s.offset, s.bytes, reader, m.clocks.of(t.entity), true, loc}, clock);
    m.bulk_stores.push_back({&t, t.bulk_group, clock, s, loc});
  }
}

void bulk_store(void* dst, uint32_t src, uint32_t bytes, Loc loc) {
  check_aligned(src, 16, "cp.async.bulk source", loc);
  check_aligned(reinterpret_cast<uintptr_t>(dst), 16, "cp.async.bulk destination", loc);
  check_aligned(bytes, 16, "cp.async.bulk size", loc);
  const Buffer& buffer = check_global(dst, bytes, true, loc);
  smem_at(*self().block, src, bytes, "cp.async.bulk source", loc);
  count_bulk(Op::kBulkStore, {{reinterpret_cast<uintptr_t>(dst), bytes, buffer.tag}}, loc);
  async_store({{smem_offset(src), static_cast<uint8_t*>(dst), bytes}}, loc);
}

void bulk_commit() { self().bulk_group++; }

void bulk_wait(uint32_t n) {
  Machine& m = machine();
  Thread& t = self();
  const uint32_t limit = t.bulk_group > n ? t.bulk_group - n : 0;
  size_t kept = 0;
  for (const BulkStore& s : m.bulk_stores) {
    if (s.thread != &t || s.group >= limit) {
      m.bulk_stores[kept++] = s;
      continue;
    }
    const auto& [offset, dst, bytes] = s.segment;
    if (dst) std::memcpy(dst, t.block->smem + offset, bytes);
    if (m.config.race) {
      uint32_t& seen = m.clocks.of(t.entity)[m.clocks.store_reader_entity()];
      seen = std::max(seen, s.clock);
    }
  }
  m.bulk_stores.resize(kept);
  t.warp->common_clock_stale = true;
}

}  // namespace swa::emu
