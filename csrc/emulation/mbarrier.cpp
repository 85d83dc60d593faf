#include "mbarrier.hpp"

#include <cstring>

#include "machine.hpp"
#include "scheduler.hpp"

namespace swa::emu {
namespace {

constexpr uint64_t kTag = 0x7e57ba44c0deull;
constexpr uint32_t kMaxCount = (1u << 20) - 1;

std::string describe(uint32_t address) {
  return format("mbarrier at smem+%d", int(smem_offset(address)));
}

void complete_phase_if_due(Mbarrier& b) {
  if (b.pending != 0 || b.pending_bytes != 0) return;
  Machine& m = machine();
  b.phase++;
  b.pending = b.expected;
  m.progress++;
  m.counts.add(Tally::kMbarrierPhases);
  if (m.config.race && !b.arriving.empty()) join(b.completed, b.arriving.data(), m.clocks.size());
  b.arriving.clear();
  for (Thread* t : b.waiting) wake(*t);
  b.waiting.clear();
}

Mbarrier& find(Block& block, uint32_t address, Loc loc) {
  const uint32_t local = local_address(address);
  auto it = block.mbarriers.find(local);
  if (it == block.mbarriers.end())
    fail(Kind::kMbarrier, loc,
         describe(address) + " used at " + to_string(loc) + " but never initialized");
  uint64_t word;
  std::memcpy(&word, block.smem + smem_offset(address), sizeof word);
  if (word != (kTag ^ local))
    fail(
        Kind::kMbarrier, loc,
        describe(address) + " was overwritten by ordinary stores (seen at " + to_string(loc) + ")");
  return it->second;
}

}  // namespace

Mbarrier& check_mbarrier(uint32_t address, Loc loc) {
  Machine& m = machine();
  Mbarrier& b = find(block_of(address, loc), address, loc);
  const int me = self().entity;
  if (m.config.race && b.initializer != me && m.clocks.of(me)[b.initializer] < b.init_clock)
    report(Kind::kMbarrier, loc, b.loc,
           "mbarrier used at " + to_string(loc) +
               " without synchronization after mbarrier.init at " + to_string(b.loc));
  return b;
}

void mbarrier_init(uint32_t address, uint32_t count, Loc loc) {
  Machine& m = machine();
  Thread& t = self();
  check_aligned(address, 8, "mbarrier", loc);
  if (count == 0 || count > kMaxCount)
    fail(Kind::kInvalid, loc,
         format("mbarrier.init count %u at %s is not in 1..%u", count, to_string(loc).c_str(),
                kMaxCount));
  uint8_t* word = smem_at(*t.block, address, 8, "mbarrier.init", loc);
  if (t.block->mbarriers.count(address))
    fail(Kind::kMbarrier, loc,
         "mbarrier.init at " + to_string(loc) + " on a live mbarrier (no mbarrier.inval)");
  Mbarrier b;
  b.address = address;
  b.expected = b.pending = count;
  b.loc = loc;
  b.initializer = t.entity;
  b.init_clock = m.clocks.now(t.entity);
  const uint64_t tag = kTag ^ address;
  std::memcpy(word, &tag, sizeof tag);
  t.block->mbarriers.emplace(address, std::move(b));
}

void mbarrier_inval(uint32_t address, Loc loc) {
  check_mbarrier(address, loc);
  self().block->mbarriers.erase(address);
}

void mbarrier_arrive(uint32_t address, uint32_t count, uint32_t expect_bytes, Loc loc) {
  Mbarrier& b = check_mbarrier(address, loc);
  b.pending_bytes += expect_bytes;
  if (b.pending_bytes > int64_t(kMaxCount))
    fail(Kind::kMbarrier, loc, describe(address) + ": tx-count overflow at " + to_string(loc));
  if (b.pending < count)
    fail(Kind::kMbarrier, loc,
         format("%s: more arrivals than its count %u in one phase (%s)", describe(address).c_str(),
                b.expected, to_string(loc).c_str()));
  b.pending -= count;
  release_into(b.arriving, self());
  complete_phase_if_due(b);
}

bool mbarrier_try_wait(uint32_t address, uint32_t parity, Loc loc) {
  Mbarrier& b = check_mbarrier(address, loc);
  if (parity > 1)
    fail(Kind::kInvalid, loc,
         format("mbarrier wait at %s: parity %u is not 0 or 1", to_string(loc).c_str(), parity));
  if ((b.phase & 1) == parity) {
    b.waiting.push_back(&self());
    suspend(State::kAtMbarrier, "mbarrier", loc, address, parity);
    if ((b.phase & 1) == parity) return false;
  }
  acquire_from(b.completed, self());
  return true;
}

void mbarrier_complete_bytes(Block& block, uint32_t address, uint32_t bytes, const Clock& clock) {
  Machine& m = machine();
  Mbarrier& b = block.mbarriers.at(local_address(address));
  b.pending_bytes -= bytes;
  if (m.config.race) join(b.arriving, clock.data(), m.clocks.size());
  complete_phase_if_due(b);
}

void mbarrier_arrive_detached(Block& block, uint32_t address, const Clock& clock, Loc loc) {
  Machine& m = machine();
  Mbarrier& b = block.mbarriers.at(local_address(address));
  if (b.pending == 0)
    fail(
        Kind::kMbarrier, loc,
        describe(address) + ": more arrivals than its count in one phase (" + to_string(loc) + ")");
  b.pending--;
  if (m.config.race) join(b.arriving, clock.data(), m.clocks.size());
  complete_phase_if_due(b);
}

void fence_mbarrier_init() {
  const Thread& t = self();
  for (auto& [address, b] : t.block->mbarriers)
    if (b.initializer == t.entity) b.init_fenced = true;
}

void fence_proxy_async() {
  Machine& m = machine();
  Thread& t = self();
  fence_mbarrier_init();
  if (!m.config.race) return;
  uint32_t* own = m.clocks.of(t.entity);
  t.fenced_clock = own[t.entity]++;
  t.warp->common_clock_stale = true;
}

}  // namespace swa::emu
