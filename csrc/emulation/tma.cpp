#include "tma.hpp"

#include "bulk_copy.hpp"
#include "machine.hpp"

namespace swa::emu {
namespace {

struct Tile {
  std::vector<LoadSegment> segments;
  std::vector<GlobalRange> read;
};

class TileReader {
 public:
  TileReader(const TensorMap& map, const int* coordinates, Loc loc)
      : map_(map),
        coordinates_(coordinates),
        loc_(loc),
        inner_(uint32_t(map.box[0]) * map.element_bytes) {
    rows_ = 1;
    for (int i = 1; i < map.rank; ++i) rows_ *= map.box[i];
  }
  uint32_t bytes() const { return rows_ * inner_; }

  // What goes where when the tile lands at the shared address `dst`.
  Tile at(uint32_t dst) const {
    Tile tile;
    for (uint32_t row = 0; row < rows_; ++row) {
      const uint8_t* start = row_start(row);
      for (uint32_t x = 0; x < inner_; x += 16)
        add_chunk(tile, dst + row * inner_ + x, start, int64_t(x));
    }
    return tile;
  }

 private:
  // Global address of element 0 of a row of the box, nullptr if the row lies outside the tensor.
  const uint8_t* row_start(uint32_t row) const {
    auto address = uintptr_t(map_.base);
    for (int i = 1; i < map_.rank; ++i) {
      const int64_t c = int64_t(coordinates_[i]) + row % map_.box[i];
      row /= map_.box[i];
      if (c < 0 || c >= int64_t(map_.size[i])) return nullptr;
      address += uint64_t(c) * map_.stride[i - 1];
    }
    return reinterpret_cast<const uint8_t*>(address);
  }

  // 16 bytes of a row, x bytes into the box: whole, or element by element where the tensor's edge
  // cuts them.
  void add_chunk(Tile& tile, uint32_t dst, const uint8_t* row, int64_t x) const {
    const int64_t element = map_.element_bytes, per_chunk = 16 / element, width = map_.size[0];
    const int64_t first = coordinates_[0] + x / element;
    const uint32_t offset = smem_offset(swizzled(local_address(dst), Swizzle(map_.swizzle)));
    if (!row || first >= width || first + per_chunk <= 0) {
      tile.segments.push_back({offset, nullptr, 16});
    } else if (first >= 0 && first + per_chunk <= width) {
      add_read(tile, offset, row + first * element, 16);
    } else {
      for (int64_t e = 0; e < per_chunk; ++e) {
        const auto at = offset + uint32_t(e * element);
        if (first + e >= 0 && first + e < width)
          add_read(tile, at, row + (first + e) * element, uint32_t(element));
        else
          tile.segments.push_back({at, nullptr, uint32_t(element)});
      }
    }
  }

  void add_read(Tile& tile, uint32_t offset, const uint8_t* src, uint32_t bytes) const {
    const Buffer& buffer = check_global(src, bytes, false, loc_);
    tile.read.push_back({reinterpret_cast<uintptr_t>(src), bytes, buffer.tag});
    tile.segments.push_back({offset, src, bytes});
  }

  const TensorMap& map_;
  const int* coordinates_;
  Loc loc_;
  uint32_t inner_, rows_;
};

void check_arguments(int rank, uint32_t dst, const TensorMap* map, Loc loc) {
  const std::string at = to_string(loc);
  if (map->magic != kTensorMapMagic)
    fail(Kind::kInvalid, loc, "TMA load at " + at + ": not an encoded tensor map");
  if (map->rank != rank)
    fail(Kind::kInvalid, loc,
         format("TMA load at %s: %dd instruction with a rank-%d tensor map", at.c_str(), rank,
                map->rank));
  check_aligned(local_address(dst), 128, "TMA destination", loc);
  const uint32_t repeat = swizzle_repeat_bytes(Swizzle(map->swizzle));
  if (local_address(dst) % repeat)
    report(Kind::kMisaligned, loc, {},
           format("TMA load at %s: destination offset %u is not aligned to the %u-byte swizzle "
                  "repeat; the pattern "
                  "follows address bits, a wgmma descriptor with base_offset 0 will not match",
                  at.c_str(), smem_offset(dst), repeat));
}

}  // namespace

void tma_load(int rank, uint32_t dst, const TensorMap* map, uint32_t mbarrier,
              const int* coordinates, uint16_t multicast, Loc loc) {
  Machine& m = machine();
  check_arguments(rank, dst, map, loc);
  const TileReader reader(*map, coordinates, loc);
  const uint32_t bytes = reader.bytes();
  if (!multicast) {
    Block& block = block_of(dst, loc);
    smem_at(block, dst, bytes, "TMA destination", loc);
    Tile tile = reader.at(dst);
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
    Tile tile = reader.at(address);
    if (!counted) count_bulk(Op::kTmaLoad, tile.read, loc);
    counted = true;
    async_load(block, std::move(tile.segments), bytes,
               cluster_address(mbarrier, unsigned(rank_in_cluster)),
               "cp.async.bulk.tensor.multicast", loc);
  }
}

}  // namespace swa::emu
