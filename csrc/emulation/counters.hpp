// What a kernel would ask of a GPU's memory system and tensor cores: exact, and independent of the
// emulated schedule.
//
// Lanes become warp-level requests by source line and by how often the lane has executed that line
// since it last met its whole warp (a collective of all lanes) or a barrier. Bytes are those of
// distinct addresses: lanes that read the same word count it once. The models of the memory system
// are the published ones:
//   sector      32 aligned bytes of global memory; a request costs as many as it touches
//   wavefront   one pass over the 32 banks of 4 bytes. A request is served in phases of 32, 16 or 8
//   lanes for accesses of
//               up to 4, 8 or 16 bytes; a phase costs as many wavefronts as the fullest bank has
//               distinct words
#pragma once
#include <cstdint>
#include <map>
#include <vector>

#include "source_location.hpp"

namespace swa::emu {

struct Warp;

enum class Op : uint8_t {
  kGlobalLoad,
  kGlobalStore,
  kCpAsync,
  kBulkLoad,
  kBulkStore,
  kTmaLoad,
  kTmaStore,
  kSharedLoad,
  kSharedStore,
  kLdmatrix,
  kStmatrix
};
const char* to_string(Op op);

enum class Tally : uint8_t {
  kMma,       // mma.sync instructions, per warp
  kMmaMacs,   // multiply-adds of mma.sync and wgmma
  kWgmma,     // wgmma instructions, per warpgroup
  kEx2,       // per lane
  kBarriers,  // completed phases of block-wide barriers
  kWarpSyncs,
  kShuffles,  // per warp
  kMbarrierPhases,
  kClusterBarriers,
  kNumTallies
};
const char* to_string(Tally tally);

constexpr int kNoTag = -1;  // no global memory involved

struct SiteCount {
  uint64_t requests = 0, lanes = 0;
  uint64_t bytes = 0, sectors = 0, min_sectors = 0;  // global side
  uint64_t wavefronts = 0, min_wavefronts = 0;       // shared side
  void add(const SiteCount& o);
};

// Totals of one host thread, later of a session.
class Counts {
 public:
  void add(Tally tally, uint64_t n = 1) { tallies_[size_t(tally)] += n; }
  SiteCount& site(Loc loc, Op op, int tag) { return sites_[Site{loc, op, tag}]; }
  void add(const Counts& o);

  uint64_t tally(Tally t) const { return tallies_[size_t(t)]; }
  struct Site {
    Loc loc;
    Op op;
    int tag;
    bool operator<(const Site& o) const;
  };
  const std::map<Site, SiteCount>& sites() const { return sites_; }

 private:
  uint64_t tallies_[size_t(Tally::kNumTallies)] = {};
  std::map<Site, SiteCount> sites_;
};

// One warp-level memory request: what each lane in `lanes` asks for.
struct Request {
  uint32_t lanes = 0;
  uint8_t global_bytes[32], shared_bytes[32];
  int16_t tag[32];
  uintptr_t global[32];
  uint32_t shared[32];
};

// Puts the accesses of a warp's lanes, which run one after the other, together into requests.
class RequestGrouper {
 public:
  // The request that the running lane's present access at (loc, op) belongs to; the caller fills
  // the lane's entries.
  Request& open(Warp& warp, Loc loc, Op op);
  // Counts the request just filled if all lanes have come.
  void close(Warp& warp);
  // Counts what is left: requests in which only some lanes took part.
  void flush();

 private:
  struct Site {
    Loc loc;
    Op op;
    uint32_t epoch[32] = {}, ordinal[32] = {};
    std::map<uint64_t, Request> requests;  // by (epoch, ordinal)
  };
  void count(const Site& site, const Request& request);
  void flush_before(Site& site, uint32_t epoch);

  std::vector<Site> sites_;
  size_t last_site_ = 0;
  std::map<uint64_t, Request>::iterator last_request_;
};

// One access of the running lane.
void count_global(Op op, const void* address, size_t bytes, int tag, Loc loc);
void count_shared(Op op, uint32_t address, size_t bytes, Loc loc);
void count_cp_async(uint32_t dst, int bytes, const void* src, int src_bytes, int tag, Loc loc);
// ldmatrix or stmatrix: `num_rows` rows of 16 bytes, eight per phase.
void count_matrix(Op op, const uint32_t* row_addresses, int num_rows, Loc loc);

// A range of global memory that one instruction of one thread moves.
struct GlobalRange {
  uintptr_t address;
  size_t bytes;
  int tag;
};
void count_bulk(Op op, const std::vector<GlobalRange>& ranges, Loc loc);

}  // namespace swa::emu
