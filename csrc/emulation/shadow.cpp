#include "shadow.hpp"

#include "machine.hpp"

namespace swa::emu {
namespace {

constexpr uint8_t kWholeCell = 0xf;

uint8_t byte_mask(uint32_t offset, size_t bytes) {
  return bytes < 4 ? uint8_t(((1u << bytes) - 1) << (offset & 3)) : kWholeCell;
}

int reader_slot(int entity) {
  Machine& m = machine();
  const int num_warps = int(m.warps.size());
  if (m.clocks.is_thread(entity)) return m.threads[size_t(entity)].warp->global_id;
  return num_warps + std::min(entity - m.clocks.wgmma_entity(0), num_warps);
}

void report_race(Kind kind, const Access& a, int other, Loc other_loc, uint32_t cell) {
  report(kind, a.loc, other_loc,
         format("shared-memory race (%s): %s at %s conflicts with %s at %s, smem offset %u, no "
                "happens-before",
                to_string(kind), entity_name(a.entity).c_str(), to_string(a.loc).c_str(),
                entity_name(other).c_str(), to_string(other_loc).c_str(), cell * 4));
}

// A generic write that the asynchronous proxy may not have seen: its thread made no proxy fence
// since.
bool lacks_proxy_fence(const Shadow::Cell& c) {
  Machine& m = machine();
  if (c.flags & (Shadow::kAsyncProxy | Shadow::kInFlight)) return false;
  if ((c.flags & Shadow::kCpAsync) && !m.config.cp_async_proxy) return false;
  if (!m.clocks.is_thread(c.writer))
    return c.flags & Shadow::kCpAsync;  // landed on its own: nobody could fence it
  return m.threads[c.writer].fenced_clock < c.write_clock;
}

void report_proxy(const char* verb, const Access& a, const Shadow::Cell& c, uint32_t cell) {
  report(Kind::kProxyFence, a.loc, c.write_loc,
         format("missing fence.proxy.async: %s at %s %s shared memory (offset %u) written through "
                "the generic proxy by "
                "%s at %s, which executed no proxy fence after the write",
                entity_name(a.entity).c_str(), to_string(a.loc).c_str(), verb, cell * 4,
                entity_name(c.writer).c_str(), to_string(c.write_loc).c_str()));
}

}  // namespace

void Shadow::reset(size_t bytes, int num_reader_slots) {
  num_slots_ = num_reader_slots;
  cells_.assign((bytes + 3) / 4, Cell{});
  readers_.resize(cells_.size() * size_t(num_slots_));
}

void shadow_read(const Access& a, uint32_t clock) {
  Shadow& s = a.block.shadow;
  const int slot = reader_slot(a.entity);
  for (uint32_t i = a.offset / 4, end = uint32_t((a.offset + a.bytes + 3) / 4); i < end; ++i) {
    Shadow::Cell& c = s.cell(i);
    if (c.flags & Shadow::kInFlight) {
      report(Kind::kInFlight, a.loc, c.write_loc,
             format("read of shared memory (offset %u) at %s by %s while the asynchronous copy "
                    "issued at %s is still "
                    "in flight (missing wait)",
                    i * 4, to_string(a.loc).c_str(), entity_name(a.entity).c_str(),
                    to_string(c.write_loc).c_str()));
    } else if (!c.written_mask) {
      report(Kind::kUninitialized, a.loc, {},
             format("read of uninitialized shared memory (offset %u) at %s by %s", i * 4,
                    to_string(a.loc).c_str(), entity_name(a.entity).c_str()));
    } else {
      if (c.writer != a.entity && a.known[c.writer] < c.write_clock)
        report_race(Kind::kReadAfterWrite, a, c.writer, c.write_loc, i);
      if (a.async_proxy && lacks_proxy_fence(c)) report_proxy("reads", a, c, i);
    }
    if (!c.has_readers) std::fill_n(s.readers(i), s.num_slots(), Shadow::Reader{});
    c.has_readers = true;
    s.readers(i)[slot] = {clock, uint16_t(a.entity)};
    c.read_loc = a.loc;
  }
}

void shadow_check_write(const Access& a) {
  Shadow& s = a.block.shadow;
  const uint8_t mask = byte_mask(a.offset, a.bytes);
  for (uint32_t i = a.offset / 4, end = uint32_t((a.offset + a.bytes + 3) / 4); i < end; ++i) {
    Shadow::Cell& c = s.cell(i);
    if (c.flags & Shadow::kInFlight)
      report(Kind::kInFlight, a.loc, c.write_loc,
             format("write to shared memory (offset %u) at %s while the asynchronous copy issued "
                    "at %s is still in "
                    "flight",
                    i * 4, to_string(a.loc).c_str(), to_string(c.write_loc).c_str()));
    else if ((c.written_mask & mask) && c.writer != a.entity && a.known[c.writer] < c.write_clock)
      report_race(Kind::kWriteAfterWrite, a, c.writer, c.write_loc, i);
    const Shadow::Reader* readers = s.readers(i);
    for (int k = 0; c.has_readers && k < s.num_slots(); ++k)
      if (readers[k].clock && readers[k].entity != a.entity &&
          a.known[readers[k].entity] < readers[k].clock)
        report_race(Kind::kWriteAfterRead, a, readers[k].entity, c.read_loc, i);
    if (a.async_proxy && c.written_mask && lacks_proxy_fence(c))
      report_proxy("overwrites", a, c, i);
  }
}

void shadow_set_write(Block& block, uint32_t offset, size_t bytes, int entity, uint32_t clock,
                      uint8_t flags, Loc loc) {
  Shadow& s = block.shadow;
  const uint8_t mask = byte_mask(offset, bytes);
  for (uint32_t i = offset / 4, end = uint32_t((offset + bytes + 3) / 4); i < end; ++i) {
    Shadow::Cell& c = s.cell(i);
    const bool same_write = c.written_mask && c.writer == entity && c.write_clock == clock;
    c.written_mask = same_write ? c.written_mask | mask : mask;
    c.writer = uint16_t(entity);
    c.write_clock = clock;
    c.flags = flags;
    c.write_loc = loc;
    if (bytes >= 4) c.has_readers = false;
  }
}

void note_read(uint32_t address, size_t bytes, Loc loc) {
  Machine& m = machine();
  if (!m.config.race) return;
  const Thread& t = self();
  uint32_t* own = m.clocks.of(t.entity);
  shadow_read({block_of(address, loc), smem_offset(address), bytes, t.entity, own, false, loc},
              own[t.entity]);
}

void note_write(uint32_t address, size_t bytes, Loc loc) {
  Machine& m = machine();
  if (!m.config.race) return;
  const Thread& t = self();
  Block& b = block_of(address, loc);
  uint32_t* own = m.clocks.of(t.entity);
  shadow_check_write({b, smem_offset(address), bytes, t.entity, own, false, loc});
  shadow_set_write(b, smem_offset(address), bytes, t.entity, own[t.entity], 0, loc);
}

}  // namespace swa::emu
