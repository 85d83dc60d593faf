#include "counters.hpp"

#include <algorithm>

#include "machine.hpp"

namespace swa::emu {
namespace {

constexpr uintptr_t kSectorBytes = 32;
constexpr int kNumBanks = 32, kBankBytes = 4;
constexpr size_t kMaxOpenRequests = 4096;

// Distinct bytes and sectors of ranges of one tag; sorts them.
struct Footprint {
  uint64_t bytes = 0, sectors = 0;
};
Footprint footprint(std::vector<std::pair<uintptr_t, uintptr_t>>& ranges) {
  std::sort(ranges.begin(), ranges.end());
  Footprint f;
  uintptr_t covered = 0,
            next_sector = 0;  // bytes below `covered`, sectors below `next_sector` are counted
  for (auto [low, high] : ranges) {
    if (high > covered) f.bytes += high - std::max(low, covered);
    covered = std::max(covered, high);
    const uintptr_t first = std::max(low / kSectorBytes, next_sector);
    const uintptr_t end = (high + kSectorBytes - 1) / kSectorBytes;
    if (end > first) f.sectors += end - first;
    next_sector = std::max(next_sector, end);
  }
  return f;
}

void add_global(SiteCount& count, std::vector<std::pair<uintptr_t, uintptr_t>>& ranges) {
  const Footprint f = footprint(ranges);
  count.bytes += f.bytes;
  count.sectors += f.sectors;
  count.min_sectors += (f.bytes + kSectorBytes - 1) / kSectorBytes;
}

// Wavefronts of one phase: distinct words in the fullest bank.
uint64_t phase_wavefronts(std::vector<uint32_t>& words) {
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  int load[kNumBanks] = {};
  int fullest = 0;
  for (uint32_t word : words) fullest = std::max(fullest, ++load[word % kNumBanks]);
  return uint64_t(fullest);
}

void add_shared(SiteCount& count, const Request& r) {
  uint8_t widest = 0;
  for (int lane : Lanes{r.lanes}) widest = std::max(widest, r.shared_bytes[lane]);
  const int lanes_per_phase = widest <= 4 ? 32 : widest <= 8 ? 16 : 8;
  static thread_local std::vector<uint32_t> words;
  for (int first = 0; first < 32; first += lanes_per_phase) {
    words.clear();
    for (int lane = first; lane < first + lanes_per_phase; ++lane)
      if (r.lanes >> lane & 1)
        for (uint32_t b = 0; b < r.shared_bytes[lane]; b += kBankBytes)
          words.push_back((r.shared[lane] + b) / kBankBytes);
    if (words.empty()) continue;
    count.wavefronts += phase_wavefronts(words);
    count.min_wavefronts++;
  }
}

bool has_global(Op op) {
  return op == Op::kGlobalLoad || op == Op::kGlobalStore || op == Op::kCpAsync;
}
bool has_shared(Op op) {
  return op == Op::kSharedLoad || op == Op::kSharedStore || op == Op::kCpAsync;
}

}  // namespace

const char* to_string(Op op) {
  switch (op) {
    case Op::kGlobalLoad:
      return "global_load";
    case Op::kGlobalStore:
      return "global_store";
    case Op::kCpAsync:
      return "cp_async";
    case Op::kBulkLoad:
      return "bulk_load";
    case Op::kBulkStore:
      return "bulk_store";
    case Op::kTmaLoad:
      return "tma_load";
    case Op::kTmaStore:
      return "tma_store";
    case Op::kSharedLoad:
      return "shared_load";
    case Op::kSharedStore:
      return "shared_store";
    case Op::kLdmatrix:
      return "ldmatrix";
    case Op::kStmatrix:
      return "stmatrix";
  }
  return "?";
}

const char* to_string(Tally tally) {
  switch (tally) {
    case Tally::kMma:
      return "mma";
    case Tally::kMmaMacs:
      return "mma_macs";
    case Tally::kWgmma:
      return "wgmma";
    case Tally::kEx2:
      return "ex2";
    case Tally::kBarriers:
      return "barriers";
    case Tally::kWarpSyncs:
      return "warp_syncs";
    case Tally::kShuffles:
      return "shuffles";
    case Tally::kMbarrierPhases:
      return "mbarrier_phases";
    case Tally::kClusterBarriers:
      return "cluster_barriers";
    case Tally::kNumTallies:
      break;
  }
  return "?";
}

void SiteCount::add(const SiteCount& o) {
  requests += o.requests;
  lanes += o.lanes;
  bytes += o.bytes;
  sectors += o.sectors;
  min_sectors += o.min_sectors;
  wavefronts += o.wavefronts;
  min_wavefronts += o.min_wavefronts;
}

bool Counts::Site::operator<(const Site& o) const {
  if (loc.line != o.loc.line) return loc.line < o.loc.line;
  if (op != o.op) return op < o.op;
  if (tag != o.tag) return tag < o.tag;
  return loc.file != o.loc.file && std::strcmp(loc.file, o.loc.file) < 0;
}

void Counts::add(const Counts& o) {
  for (size_t i = 0; i < size_t(Tally::kNumTallies); ++i) tallies_[i] += o.tallies_[i];
  for (const auto& [site, count] : o.sites_) sites_[site].add(count);
}

Request& RequestGrouper::open(Warp& warp, Loc loc, Op op) {
  const Thread& t = self();
  auto same = [&](const Site& s) {
    return s.op == op && s.loc.line == loc.line && s.loc.file == loc.file;
  };
  if (last_site_ >= sites_.size() || !same(sites_[last_site_])) {
    last_site_ = size_t(std::find_if(sites_.begin(), sites_.end(), same) - sites_.begin());
    if (last_site_ == sites_.size()) {
      sites_.emplace_back();
      sites_.back().loc = loc;
      sites_.back().op = op;
    }
  }
  Site& site = sites_[last_site_];
  if (site.epoch[t.lane] != t.epoch) {
    site.epoch[t.lane] = t.epoch;
    site.ordinal[t.lane] = 0;
  }
  if (site.requests.size() >= kMaxOpenRequests) {
    uint32_t oldest = t.epoch;
    for (int lane : Lanes{warp.full_mask})
      if (warp.lane(lane).state != State::kDone) oldest = std::min(oldest, warp.lane(lane).epoch);
    flush_before(site, oldest);
  }
  const uint64_t key = uint64_t(t.epoch) << 32 | site.ordinal[t.lane]++;
  last_request_ = site.requests.try_emplace(key).first;
  last_request_->second.lanes |= 1u << t.lane;
  return last_request_->second;
}

void RequestGrouper::close(Warp& warp) {
  if (last_request_->second.lanes != warp.full_mask) return;
  Site& site = sites_[last_site_];
  count(site, last_request_->second);
  site.requests.erase(last_request_);
}

void RequestGrouper::flush_before(Site& site, uint32_t epoch) {
  auto end = site.requests.lower_bound(uint64_t(epoch) << 32);
  for (auto it = site.requests.begin(); it != end; ++it) count(site, it->second);
  site.requests.erase(site.requests.begin(), end);
}

void RequestGrouper::flush() {
  for (Site& site : sites_) {
    for (const auto& [key, request] : site.requests) count(site, request);
    site.requests.clear();
  }
  sites_.clear();
}

void RequestGrouper::count(const Site& site, const Request& r) {
  Counts& counts = machine().counts;
  if (!has_global(site.op)) {
    SiteCount& c = counts.site(site.loc, site.op, kNoTag);
    c.requests++;
    c.lanes += uint64_t(__builtin_popcount(r.lanes));
    add_shared(c, r);
    return;
  }
  // A request may touch several tags, for example device and host pages: each gets its own row.
  // Lanes that fetch nothing (cp.async with src-size 0) go with the first.
  static thread_local std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  uint32_t idle = 0;
  for (int lane : Lanes{r.lanes})
    if (!r.global_bytes[lane]) idle |= 1u << lane;
  uint32_t rest = r.lanes & ~idle;
  for (bool first = true; first || rest; first = false) {
    const int tag = rest ? r.tag[__builtin_ctz(rest)] : kNoTag;
    SiteCount& c = counts.site(site.loc, site.op, tag);
    c.requests++;
    ranges.clear();
    for (int lane : Lanes{rest})
      if (r.tag[lane] == tag) {
        rest &= ~(1u << lane);
        c.lanes++;
        ranges.push_back({r.global[lane], r.global[lane] + r.global_bytes[lane]});
      }
    add_global(c, ranges);
    if (!first) continue;
    c.lanes += uint64_t(__builtin_popcount(idle));
    if (has_shared(site.op)) add_shared(c, r);
  }
}

void count_global(Op op, const void* address, size_t bytes, int tag, Loc loc) {
  if (!machine().config.counters) return;
  const Thread& t = self();
  Request& r = t.warp->requests.open(*t.warp, loc, op);
  r.global[t.lane] = reinterpret_cast<uintptr_t>(address);
  r.global_bytes[t.lane] = uint8_t(bytes);
  r.tag[t.lane] = int16_t(tag);
  t.warp->requests.close(*t.warp);
}

void count_shared(Op op, uint32_t address, size_t bytes, Loc loc) {
  if (!machine().config.counters) return;
  const Thread& t = self();
  Request& r = t.warp->requests.open(*t.warp, loc, op);
  r.shared[t.lane] = address;
  r.shared_bytes[t.lane] = uint8_t(bytes);
  t.warp->requests.close(*t.warp);
}

void count_cp_async(uint32_t dst, int bytes, const void* src, int src_bytes, int tag, Loc loc) {
  if (!machine().config.counters) return;
  const Thread& t = self();
  Request& r = t.warp->requests.open(*t.warp, loc, Op::kCpAsync);
  r.global[t.lane] = reinterpret_cast<uintptr_t>(src);
  r.global_bytes[t.lane] = uint8_t(src_bytes);
  r.tag[t.lane] = int16_t(tag);
  r.shared[t.lane] = dst;
  r.shared_bytes[t.lane] = uint8_t(bytes);
  t.warp->requests.close(*t.warp);
}

void count_matrix(Op op, const uint32_t* row_addresses, int num_rows, Loc loc) {
  if (!machine().config.counters) return;
  SiteCount& c = machine().counts.site(loc, op, kNoTag);
  c.requests++;
  c.lanes += 32;
  std::vector<uint32_t> words;
  for (int first = 0; first < num_rows; first += 8) {
    words.clear();
    for (int row = first; row < first + 8; ++row)
      for (uint32_t b = 0; b < 16; b += kBankBytes)
        words.push_back((row_addresses[row] + b) / kBankBytes);
    c.wavefronts += phase_wavefronts(words);
    c.min_wavefronts++;
  }
}

void count_bulk(Op op, const std::vector<GlobalRange>& global, Loc loc) {
  if (!machine().config.counters) return;
  std::map<int, std::vector<std::pair<uintptr_t, uintptr_t>>> by_tag;
  for (const GlobalRange& g : global) by_tag[g.tag].push_back({g.address, g.address + g.bytes});
  for (auto& [tag, ranges] : by_tag) {
    SiteCount& c = machine().counts.site(loc, op, tag);
    c.requests++;
    c.lanes++;
    add_global(c, ranges);
  }
}

}  // namespace swa::emu
