"""Mistakes to plant in sm90_prefill: (name, file below csrc/cuda, what it says, what it shall say)."""

PREFILL = "kernels/sm90_prefill.cuh"
RING, LOADER, PRODUCT = "attention/tile_ring.cuh", "attention/tile_loader.cuh", "attention/wgmma_attention.cuh"
QUERIES = "attention/query_box.cuh"

SM90_PREFILL_MUTATIONS = (
    (
        "wgmma: weights rounded twice",
        PRODUCT,
        "  for (int i = 0; i < 4; ++i) p[i] = ptx::pack_half<Traits::kHalf>(s[2 * i], s[2 * i + 1]);",
        "  for (int i = 0; i < 4; ++i) {\n"
        "    const uint32_t once = ptx::pack_half<Traits::kHalf>(s[2 * i] * 1.5f, s[2 * i + 1] * 1.5f);\n"
        "    p[i] = ptx::pack_half<Traits::kHalf>(ptx::half_low<Traits::kHalf>(once) / 1.5f,\n"
        "                                         ptx::half_high<Traits::kHalf>(once) / 1.5f);\n"
        "  }",
    ),
    # synchronization
    ("sm90_prefill: tiles are loaded over tiles in use", RING, "parity(use) ^ 1", "parity(use)"),
    ("sm90_prefill: nobody waits for room", RING, "ptx::mbarrier_wait(empty(use), parity(use) ^ 1);", ""),
    ("sm90_prefill: the parity of every second use", RING, "use / kStages & 1", "use & 1"),
    ("sm90_prefill: K is used before it lands", PREFILL, "    keys.wait_landed(use);\n", ""),
    ("sm90_prefill: unfinished K is used", PREFILL, "    if (finishes_keys) keys.wait_ready(use);\n", ""),
    ("sm90_prefill: unfinished V is used", PREFILL, "    values.wait_ready(use);\n", ""),
    (
        "sm90_prefill: K is finished before it lands",
        PREFILL,
        "        rings.keys.wait_landed(use + i);\n        loader.fin",
        "        loader.fin",
    ),
    (
        "sm90_prefill: V is finished before it lands",
        PREFILL,
        "        rings.values.wait_landed(use + i);\n        loader.fin",
        "        loader.fin",
    ),
    ("sm90_prefill: one finisher is enough", RING, "uint32_t(num_finishers)", "1"),
    (
        "sm90_prefill: one consumer is enough for K",
        PREFILL,
        "rings.keys.init(kFinishers, kConsumers * 4)",
        "rings.keys.init(kFinishers, 4)",
    ),
    (
        "sm90_prefill: one consumer is enough for V",
        PREFILL,
        "rings.values.init(kFinishers, kConsumers * 4)",
        "rings.values.init(kFinishers, 4)",
    ),
    (
        "sm90_prefill: K is given back while read",
        PRODUCT,
        "    ptx::wgmma_wait<1>(s);\n    tiles.keys_read(i + 1);",
        "    tiles.keys_read(i + 1);\n    ptx::wgmma_wait<1>(s);",
    ),
    (
        "sm90_prefill: V is given back while read",
        PRODUCT,
        "    ptx::wgmma_wait<0>(flat<Traits>(out));\n    tiles.values_read(i);",
        "    tiles.values_read(i);\n    ptx::wgmma_wait<0>(flat<Traits>(out));",
    ),
    ("sm90_prefill: the first K is never given back", PRODUCT, "  tiles.keys_read(0);\n", ""),
    ("sm90_prefill: tiles passed by are kept", PREFILL, "    rings.values.give_back(use + i);\n  }\n}", "  }\n}"),
    ("sm90_prefill: scores are touched in flight", PRODUCT, "ptx::wgmma_wait<1>(s)", "ptx::wgmma_wait<2>(s)"),
    (
        "sm90_prefill: the output is rescaled in flight",
        PRODUCT,
        "      ptx::wgmma_wait<0>(flat<Traits>(out));\n      rescale",
        "      rescale",
    ),
    (
        "sm90_prefill: no wait for the last product",
        PRODUCT,
        "  ptx::wgmma_wait<0>(flat<Traits>(out));\n  tiles.values_read(last)",
        "  tiles.values_read(last)",
    ),
    ("sm90_prefill: no fence before S", PRODUCT, "  ptx::wgmma_fence(s);\n", ""),
    ("sm90_prefill: no fence before P V", PRODUCT, "  ptx::wgmma_fence(flat<Traits>(out));\n", ""),
    (
        "sm90_prefill: queries are not waited for",
        PREFILL,
        "if (part.num_tokens > 0) ptx::mbarrier_wait",
        "if (part.num_tokens > 99) ptx::mbarrier_wait",
    ),
    ("sm90_prefill: zeros of queries without a fence", PREFILL, "  ptx::fence_proxy_async();\n", ""),
    (
        "sm90_prefill: host rows without a fence",
        LOADER,
        "    ptx::fence_proxy_async();\n    ptx::barrier",
        "    ptx::barrier",
    ),
    ("sm90_prefill: cleared values without a fence", LOADER, "if (cleared) ptx::fence_proxy_async();", ""),
    (
        "sm90_prefill: the careful pass starts with fresh slots",
        PREFILL,
        "careful ? tiles.count() : 0;\n    if (issues)",
        "0;\n    if (issues)",
    ),
    # what goes where
    (
        "sm90_prefill: bytes of all boxes are awaited",
        LOADER,
        "return bytes;",
        "return uint32_t(panels * Tile::kPanelBytes);",
    ),
    (
        "sm90_prefill: fewer bytes of queries",
        QUERIES,
        "uint32_t(rows * Traits::kHeadDim * 2)",
        "uint32_t(rows * Traits::kHeadDim)",
    ),
    (
        "sm90_prefill: the second half of a tile over the first",
        LOADER,
        "(key - first) * kPanelRowBytes",
        "(key - first) % 64 * kPanelRowBytes",
    ),
    (
        "sm90_prefill: values outside the range stay",
        LOADER,
        "if (!inside || wanted == Values::kFinite)",
        "if (wanted == Values::kFinite)",
    ),
    (
        "sm90_prefill: the range starts a tile earlier",
        LOADER,
        "first >= first_key_ &&",
        "first + Tile::kKeys > first_key_ &&",
    ),
    ("sm90_prefill: special values stay", LOADER, "clean = finite(x);", "clean = x;"),
    (
        "sm90_prefill: special values are not added",
        PREFILL,
        "  if (careful)\n    add_special",
        "  if (false)\n    add_special",
    ),
    (
        "sm90_prefill: results are not looked at",
        PREFILL,
        "everybody(smem.finite, all_finite<Traits>(out, rows))",
        "everybody(smem.finite, true)",
    ),
    (
        "sm90_prefill: V's panels at the distance of tiles of 64",
        PRODUCT,
        "kPanelBytes = kKeys * kPanelRowBytes",
        "kPanelBytes = 64 * kPanelRowBytes",
    ),
    (
        "sm90_prefill: K's panels at the distance of tiles of 64",
        PRODUCT,
        "k + panel * kPanelUnits<kTileKeys>",
        "k + panel * kPanelUnits<64>",
    ),
    (
        "sm90_prefill: wide outputs have the first columns twice",
        PRODUCT,
        "uint64_t(part * kColumns / kPanelElements)",
        "uint64_t(0 * kColumns / kPanelElements)",
    ),
    (
        "sm90_prefill: the second consumer has the first one's queries",
        PREFILL,
        "part.first_row,\n",
        "block.first_row,\n",
    ),
    ("sm90_prefill: queries of the first KV head", PREFILL, "kv_head_of_cta(p) * p.group_size, part", "0, part"),
    (
        "sm90_prefill: a CTA too few",
        PREFILL,
        "kConsumers * schedule.tokens);\n  const ptx::TensorMap",
        "kConsumers * schedule.tokens) - 1;\n  const ptx::TensorMap",
    ),
    # what is seen
    (
        "sm90_prefill: edge tiles are not masked",
        PRODUCT,
        "  mask_scores<Unseen::kAnywhere, kKeys>(s, first_key, rows);\n",
        "",
    ),
    (
        "sm90_prefill: only half of a tile counts as its edge",
        PRODUCT,
        "rows.visibility(first_key, kKeys) ==",
        "rows.visibility(first_key, kKeys / 2) ==",
    ),
    (
        "sm90_prefill: masks are a key off",
        PRODUCT,
        "const int first = first_key + 2 *",
        "const int first = first_key + 1 + 2 *",
    ),
    (
        "sm90_prefill: masks of neighbouring columns",
        PRODUCT,
        "key = i / 4 * 8 + i % 2;",
        "key = i / 4 * 8;",
    ),
    (
        "sm90_prefill: the tile at the window's start is skipped",
        PREFILL,
        "first_key_of(block, window) / kTileKeys, end",
        "(first_key_of(block, window) + kTileKeys - 1) / kTileKeys, end",
    ),
    (
        "sm90_prefill: the window starts a key late",
        PREFILL,
        "block.position - window + 1",
        "block.position - window + 2",
    ),
    (
        "sm90_prefill: the last key is left out",
        PREFILL,
        "(end_key - 1) / kTileKeys + 1",
        "(end_key - 2) / kTileKeys + 1",
    ),
    ("sm90_prefill: capped scores are scaled again", PRODUCT, "  return 1.f;\n", "  return scale.scale;\n"),
    (
        "sm90_prefill: a row without keys yet has a base",
        PRODUCT,
        "base[r] = larger == -INFINITY ? 0.f : larger;",
        "base[r] = larger;",
    ),
    ("sm90_prefill: outputs are not rescaled", PRODUCT, "      rescale<Traits>(out, correction);\n", ""),
    (
        "sm90_prefill: one row decides on rescaling",
        PRODUCT,
        "correction[0] != 1.f || correction[1] != 1.f);",
        "correction[0] != 1.f);",
    ),
    (
        "sm90_prefill: sums are not rescaled",
        PRODUCT,
        "fmaf(state.sum[r], maxima.correction[r],",
        "fmaf(state.sum[r], 1.f,",
    ),
    # which cases
    ("sm90_prefill: any scale", PREFILL, "!(p.softmax_scale > 0.f) ||", ""),
    ("sm90_prefill: on every card", PREFILL, "device.compute_capability / 10 != 9 ||", ""),
    ("sm90_prefill: strides that TMA cannot describe", PREFILL, "!mappable(p) ||", ""),
)
