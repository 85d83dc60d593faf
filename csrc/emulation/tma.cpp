#include "tma.hpp"

#include "bulk_copy.hpp"
#include "machine.hpp"

namespace swa::emu {
namespace {

// A box of a tensor, at some coordinates, against its place in shared memory.
class Box {
 public:
  Box(const TensorMap& map, const int* coordinates)
      : map_(map), coordinates_(coordinates), inner_(uint32_t(map.box[0]) * map.element_bytes) {
    rows_ = 1;
    for (int i = 1; i < map.rank; ++i) rows_ *= map.box[i];
  }
  uint32_t bytes() const { return rows_ * inner_; }

  // f(offset in shared memory, global address or nullptr outside the tensor, bytes) for all pieces
  // of a box whose shared address is `smem`.
  template <class F>
  void for_pieces(uint32_t smem, F f) const {
    for (uint32_t row = 0; row < rows_; ++row) {
      uint8_t* start = row_start(row);
      for (uint32_t x = 0; x < inner_; x += 16)
        pieces_of_chunk(smem + row * inner_ + x, start, int64_t(x), f);
    }
  }

 private:
  // Global address of element 0 of a row of the box, nullptr if the row lies outside the tensor.
  uint8_t* row_start(uint32_t row) const {
    auto address = uintptr_t(map_.base);
    for (int i = 1; i < map_.rank; ++i) {
      const int64_t c = int64_t(coordinates_[i]) + row % map_.box[i];
      row /= map_.box[i];
      if (c < 0 || c >= int64_t(map_.size[i])) return nullptr;
      address += uint64_t(c) * map_.stride[i - 1];
    }
    return reinterpret_cast<uint8_t*>(address);
  }

  // 16 bytes of a row, x bytes into the box: whole, or element by element where the tensor's edge
  // cuts them.
  template <class F>
  void pieces_of_chunk(uint32_t smem, uint8_t* row, int64_t x, F f) const {
    const int64_t element = map_.element_bytes, per_chunk = 16 / element, width = map_.size[0];
    const int64_t first = coordinates_[0] + x / element;
    const uint32_t offset = smem_offset(swizzled(local_address(smem), Swizzle(map_.swizzle)));
    if (!row || first >= width || first + per_chunk <= 0) {
      f(offset, nullptr, 16u);
    } else if (first >= 0 && first + per_chunk <= width) {
      f(offset, row + first * element, 16u);
    } else {
      for (int64_t e = 0; e < per_chunk; ++e) {
        const bool inside = first + e >= 0 && first + e < width;
        f(offset + uint32_t(e * element), inside ? row + (first + e) * element : nullptr,
          uint32_t(element));
      }
    }
  }

  const TensorMap& map_;
  const int* coordinates_;
  uint32_t inner_, rows_;
};

struct Tile {
  std::vector<LoadSegment> segments;
  std::vector<GlobalRange> read;
};

// What goes where when the box lands at the shared address `dst`.
Tile tile_at(const Box& box, uint32_t dst, Loc loc) {
  Tile tile;
  box.for_pieces(dst, [&](uint32_t offset, const uint8_t* src, uint32_t bytes) {
    if (src)
      tile.read.push_back(
          {reinterpret_cast<uintptr_t>(src), bytes, check_global(src, bytes, false, loc).tag});
    tile.segments.push_back({offset, src, bytes});
  });
  return tile;
}

// what: "load" or "store"; place: what the instruction calls its address in shared memory.
void check_arguments(const char* what, const char* place, int rank, uint32_t smem,
                     const TensorMap* map, Loc loc) {
  const std::string at = format("TMA %s at %s", what, to_string(loc).c_str());
  if (map->magic != kTensorMapMagic) fail(Kind::kInvalid, loc, at + ": not an encoded tensor map");
  if (map->rank != rank)
    fail(Kind::kInvalid, loc,
         format("%s: %dd instruction with a rank-%d tensor map", at.c_str(), rank, map->rank));
  check_aligned(local_address(smem), 128, format("TMA %s", place).c_str(), loc);
  const uint32_t repeat = swizzle_repeat_bytes(Swizzle(map->swizzle));
  if (local_address(smem) % repeat)
    report(Kind::kMisaligned, loc, {},
           format("%s: %s offset %u is not aligned to the %u-byte swizzle repeat; the pattern "
                  "follows address bits, a wgmma descriptor with base_offset 0 will not match",
                  at.c_str(), place, smem_offset(smem), repeat));
}

}  // namespace

void tma_load(int rank, uint32_t dst, const TensorMap* map, uint32_t mbarrier,
              const int* coordinates, uint16_t multicast, Loc loc) {
  Machine& m = machine();
  check_arguments("load", "destination", rank, dst, map, loc);
  const Box box(*map, coordinates);
  const uint32_t bytes = box.bytes();
  if (!multicast) {
    Block& block = block_of(dst, loc);
    smem_at(block, dst, bytes, "TMA destination", loc);
    Tile tile = tile_at(box, dst, loc);
    count_bulk(Op::kTmaLoad, tile.read, loc);
    async_load(block, std::move(tile.segments), bytes, mbarrier, "cp.async.bulk.tensor", loc);
    return;
  }
  if (multicast >> m.blocks.size())
    fail(Kind::kInvalid, loc,
         format("TMA load at %s: multicast mask 0x%x names CTAs outside a cluster of %zu",
                to_string(loc).c_str(), multicast, m.blocks.size()));
  bool counted = false;
  for (int rank_in_cluster : Lanes{multicast}) {
    const uint32_t address = cluster_address(dst, unsigned(rank_in_cluster));
    Block& block = block_of(address, loc);
    smem_at(block, address, bytes, "TMA destination", loc);
    Tile tile = tile_at(box, address, loc);
    if (!counted) count_bulk(Op::kTmaLoad, tile.read, loc);
    counted = true;
    async_load(block, std::move(tile.segments), bytes,
               cluster_address(mbarrier, unsigned(rank_in_cluster)),
               "cp.async.bulk.tensor.multicast", loc);
  }
}

void tma_store(int rank, const TensorMap* map, uint32_t src, const int* coordinates, Loc loc) {
  check_arguments("store", "source", rank, src, map, loc);
  const Box box(*map, coordinates);
  smem_at(*self().block, src, box.bytes(), "TMA source", loc);
  std::vector<GlobalRange> written;
  std::vector<StoreSegment> segments;
  box.for_pieces(src, [&](uint32_t offset, uint8_t* dst, uint32_t bytes) {
    if (dst)
      written.push_back(
          {reinterpret_cast<uintptr_t>(dst), bytes, check_global(dst, bytes, true, loc).tag});
    segments.push_back({offset, dst, bytes});
  });
  count_bulk(Op::kTmaStore, written, loc);
  async_store(segments, loc);
}

}  // namespace swa::emu
