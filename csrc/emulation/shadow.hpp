// Shadow of a block's shared memory: who wrote and who read each 4-byte cell, and when, by vector
// clock.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "source_location.hpp"

namespace swa::emu {

struct Block;

class Shadow {
 public:
  enum Flag : uint8_t { kAsyncProxy = 1, kInFlight = 2, kCpAsync = 4 };

  struct Cell {
    uint32_t write_clock = 0;
    uint16_t writer = 0;  // entity; meaningful if written_mask
    uint8_t flags = 0;
    uint8_t written_mask =
        0;  // bytes of the last write: 16-bit elements of one cell may have different writers
    bool has_readers =
        false;  // since the last write of the whole cell; false: its readers() are stale
    Loc write_loc, read_loc;
  };
  struct Reader {
    uint32_t clock = 0;
    uint16_t entity = 0;
  };

  void reset(size_t bytes, int num_reader_slots);
  Cell& cell(size_t i) { return cells_[i]; }
  // The last reader of a cell per slot: one slot per warp, one per wgmma engine, one for
  // asynchronous copies.
  Reader* readers(size_t i) { return &readers_[i * size_t(num_slots_)]; }
  int num_slots() const { return num_slots_; }

 private:
  int num_slots_ = 0;
  std::vector<Cell> cells_;
  std::vector<Reader> readers_;
};

// One access to be checked and recorded: [offset, offset + bytes) of `block`.
struct Access {
  Block& block;
  uint32_t offset;
  size_t bytes;
  int entity;
  const uint32_t* known;  // the vector clock that must cover earlier conflicting accesses
  bool async_proxy;       // made by wgmma, TMA or a bulk copy
  Loc loc;
};
// Checks a read against earlier writes and records it at `clock` of its entity.
void shadow_read(const Access& access, uint32_t clock);
// Checks a write against earlier reads and writes; nothing is recorded yet.
void shadow_check_write(const Access& access);
void shadow_set_write(Block& block, uint32_t offset, size_t bytes, int entity, uint32_t clock,
                      uint8_t flags, Loc loc);

// Plain accesses of the running thread, through the generic proxy.
void note_read(uint32_t address, size_t bytes, Loc loc);
void note_write(uint32_t address, size_t bytes, Loc loc);

}  // namespace swa::emu
