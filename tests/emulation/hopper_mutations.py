"""Mistakes to plant in the kernels for Hopper: (name, file below csrc/cuda, what it says, what it shall say)."""

SWA = "kernels/sm90_swa_prefill.cuh"
MAPS = "kernels/tensor_maps.h"
LOADER, PRODUCT = "attention/tile_loader.cuh", "attention/wgmma_attention.cuh"
PANEL = "tile/panel.cuh"

HOPPER_MUTATIONS = (
    # synchronization
    ("hopper: tiles are loaded over tiles in use", SWA, "ring.parity(next_tile) ^ 1", "ring.parity(next_tile)"),
    ("hopper: queries over queries in use", SWA, "smem.q_empty[i]), parity);", "smem.q_empty[i]), 1);"),
    ("hopper: unfinished tiles are used", SWA, "mbarrier_wait(ring.ready(tile), ring.parity(tile))", "sync_warp()"),
    ("hopper: tiles are finished before they land", SWA, "ring.parity(tile));\n    const bool", "1);\n    const bool"),
    ("hopper: one finisher is enough", SWA, "&smem.ready[i]), kFinishers", "&smem.ready[i]), 1"),
    ("hopper: one consumer's word is enough", SWA, "kConsumers * 4", "4"),
    (
        "hopper: tiles are given back while seen",
        SWA,
        "first_tile_for(position + step)",
        "first_tile_for(position + 200)",
    ),
    ("hopper: tiles are never given back", SWA, "held_tile < next_tile", "held_tile < 0"),
    ("hopper: queries are given back unread", SWA, "  ptx::wgmma_wait<0>(s);\n", ""),
    ("hopper: no wait for the last product", SWA, "  ptx::wgmma_wait<0>(flat<Traits>(out));\n", ""),
    ("hopper: no fence before the second product", PRODUCT, "  ptx::wgmma_fence(flat<Traits>(out));\n", ""),
    ("hopper: host rows are not waited for", LOADER, "    ptx::cp_async_wait<0>();\n", ""),
    (
        "hopper: host rows without a fence",
        LOADER,
        "    ptx::fence_proxy_async();\n    ptx::barrier",
        "    ptx::barrier",
    ),
    ("hopper: finishers do not meet", LOADER, "    ptx::barrier_sync(kFinishersBarrier, num_warps * 32);", ""),
    ("hopper: cleared values without a fence", LOADER, "if (cleared) ptx::fence_proxy_async();", ""),
    # what goes where
    (
        "hopper: bytes of host boxes are awaited",
        LOADER,
        "return bytes;",
        "return uint32_t(panels * Tile::kPanelBytes);",
    ),
    (
        "hopper: the next host page",
        LOADER,
        "src = slot_address(pool, page - 1,",
        "src = slot_address(pool, page,",
    ),
    (
        "hopper: boxes outside the range are looked up",
        LOADER,
        "key + keys_per_box_ <= first_key_",
        "key + 64 <= first_key_",
    ),
    ("hopper: boxes beyond the end are looked up", LOADER, "|| key >= end_key_)\n", "|| key > end_key_ + 64)\n"),
    ("hopper: special values stay", LOADER, "clean = finite(x);", "clean = x;"),
    (
        "hopper: special values are not reported",
        LOADER,
        "return ptx::any(special);",
        "return ptx::any(special) && false;",
    ),
    ("hopper: special values of one finisher", SWA, "i < kFinishers; ++i) any", "i < 1; ++i) any"),
    ("hopper: slots of the wrong page size", LOADER, "f(page, key % p_.page_size", "f(page, 0"),
    ("hopper: rows of a box in the tile's first rows", LOADER, "(key - first) * kPanelRowBytes", "0 * kPanelRowBytes"),
    ("hopper: chunks unswizzled", PANEL, "((chunk ^ exchange) & (kChunks - 1))", "(chunk & (kChunks - 1))"),
    (
        "hopper: the second consumer has the first one's queries",
        SWA,
        "position + i * tokens -",
        "position + 0 * tokens -",
    ),
    ("hopper: V by K's panels", SWA, "uint32_t(Tile::kValueOffset)", "0u"),
    ("hopper: panels of queries next to each other", PRODUCT, "q + panel * kPanelUnits<kWarpgroupRows>", "q + panel"),
    ("hopper: keys of the first slice again", PRODUCT, "uint64_t(step) * (kSlice", "uint64_t(0) * (kSlice"),
    (
        "hopper: V by K's stride",
        MAPS,
        "uint64_t(pool.device_page_stride)}",
        "uint64_t(p.k.device_page_stride)}",
    ),
    ("hopper: alignment not looked at", MAPS, "pool.device_page_stride, pool.device_slot_stride", "0, 0"),
    # what is seen
    ("hopper: rows before the segment", SWA, "position + rows.token[r] >= segment.first", "true"),
    ("hopper: nobody's slices count", PRODUCT, "x = seen ? ptx::ex2(x - base[r]) : 0.f;", "x = ptx::ex2(x - base[r]);"),
    ("hopper: slices at an edge are not masked", PRODUCT, "visibility == Visibility::kSome &&", "false &&"),
    ("hopper: a window too many", SWA, "(kMaxTiles - 1) * kTileKeys + 1", "kMaxTiles * kTileKeys"),
    ("hopper: a slot too few", SWA, "num_slots < visible) return none", "num_slots < visible - 1) return none"),
    ("hopper: on every card", SWA, "device.compute_capability / 10 != 9 ||", ""),
)
