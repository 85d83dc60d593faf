"""Mistakes to plant in the attention kernels: (name, file below csrc/cuda, what it says, what it shall say)."""

RING, STREAM, DECODE = (f"kernels/sm80_{name}.cuh" for name in ("swa_prefill", "prefill", "decode"))
ROWS, LOADER, QUERY, SCORES, SOFTMAX, VALUES, SPECIAL, RESULTS, WORK, POOL, SPLIT = (
    f"attention/{name}.cuh"
    for name in (
        "rows",
        "kv_loader",
        "query",
        "scores",
        "online_softmax",
        "values",
        "special_values",
        "epilogue",
        "work",
        "page_pool",
        "decode_split",
    )
)
JOIN, SLICE, PANEL, COMBINE = (
    "attention/decode_join.cuh",
    "tile/kv_slice.cuh",
    "tile/panel.cuh",
    "kernels/smxx_combine.cuh",
)

ATTENTION_MUTATIONS = (
    # synchronization
    ("ring: no wait for copies", RING, "      ptx::cp_async_wait<0>();\n      for (; careful", "      for (; careful"),
    ("ring: no barrier", RING, "      ptx::sync_threads();\n", ""),
    ("ring: a slot too few", RING, "(keys + kSliceKeys - 2) / kSliceKeys + 1", "(keys + kSliceKeys - 2) / kSliceKeys"),
    ("ring: only one step ahead fits", RING, "p.window - 1 + 2 * tokens", "p.window - 1 + tokens"),
    ("stream: a stage too early", STREAM, "wait_for_copies(schedule.num_stages - 2)", "wait_for_copies(2)"),
    ("stream: no barrier", STREAM, "ptx::sync_threads();  // the tile has landed", "// the tile has landed"),
    (
        "stream: loads into the tile in use",
        STREAM,
        "load_tile(tile + schedule.num_stages - 1);",
        "load_tile(tile + schedule.num_stages);",
    ),
    ("decode: a slice too early", DECODE, "wait_for_copies(schedule.depth - 1)", "wait_for_copies(schedule.depth)"),
    ("decode: twins do not meet before use", DECODE, "    meet();  // the slice", "    // the slice"),
    ("decode: twins do not meet after use", DECODE, "    meet();  // both", "    // both"),
    ("join: columns over columns that are read", JOIN, "    if (first > 0) ptx::sync_threads();", "    "),
    (
        "join: columns read before they are there",
        JOIN,
        "    publish_columns<Traits>(own, out, first);\n    ptx::sync_threads();",
        "    publish_columns<Traits>(own, out, first);",
    ),
    # the mask
    ("mask: window wider by one", ROWS, "key > position[r] - window", "key >= position[r] - window"),
    ("mask: window narrower by one", ROWS, "key > position[r] - window", "key > position[r] - window + 1"),
    ("mask: own key unseen", ROWS, "key <= position[r] &&", "key < position[r] &&"),
    (
        "mask: a slice at the window's edge unmasked",
        ROWS,
        "first_key > last - window ?",
        "first_key >= last - window ?",
    ),
    ("mask: a slice at the diagonal unmasked", ROWS, "return last_key <= first &&", "return last_key <= first + 1 &&"),
    (
        "mask: a slice at the window's edge skipped",
        ROWS,
        "last_key <= first - window)",
        "last_key <= first - window + 1)",
    ),
    ("mask: the last slice skipped", ROWS, "if (first_key > last ||", "if (first_key >= last ||"),
    ("mask: rows of one token apart", ROWS, "row - rows.token[r] * group_size", "row % 16"),
    # pages
    ("pages: keys before the window are read", LOADER, "key >= first_key_ && key < end_key_", "key < end_key_"),
    ("pages: keys beyond the sequence are read", LOADER, "key >= first_key_ && key < end_key_", "key >= first_key_"),
    (
        "pages: head 0 of all",
        LOADER,
        "page_of(key), key % p_.page_size, kv_head_);\n    SWA_UNROLL",
        "page_of(key), key % p_.page_size, 0);\n    SWA_UNROLL",
    ),
    ("pages: the neighbour's slot", LOADER, "table_[key / p_.page_size]", "table_[(key + 1) / p_.page_size]"),
    ("pages: host pages counted from 0", POOL, "(page_id - pool.num_device_pages)", "page_id"),
    ("pages: V by K's alignment", LOADER, "value_aligned_(aligned_16(params.v))", "value_aligned_(true)"),
    (
        "table: a row for all sequences",
        LOADER,
        "params.block_table + seq * params.block_table_stride",
        "params.block_table",
    ),
    ("scales: of page 0", LOADER, "int64_t(page_of(key)) * p_.num_kv_heads + kv_head_", "kv_head_"),
    ("scales: K's ignored", SCORES, "x * factor : x", "x : x"),
    # numbers
    (
        "weights: rounded twice",
        SOFTMAX,
        "    p[i] =\n        ptx::pack_half<Traits::kHalf>(s[n][2 * r] * factor[n][0], s[n][2 * r + 1] * factor[n][1]);",
        "    const uint32_t once = ptx::pack_half<Traits::kHalf>(s[n][2 * r] * factor[n][0] * 1.5f,\n"
        "                                                        s[n][2 * r + 1] * factor[n][1] * 1.5f);\n"
        "    p[i] = ptx::pack_half<Traits::kHalf>(ptx::half_low<Traits::kHalf>(once) / 1.5f,\n"
        "                                         ptx::half_high<Traits::kHalf>(once) / 1.5f);",
    ),
    (
        "lse: off by 1e-4",
        RESULTS,
        "(row_max + ptx::lg2(row_sum)) * kLn2};",
        "(row_max + ptx::lg2(row_sum)) * kLn2 + 1e-4f};",
    ),
    ("sink: counted twice", RESULTS, "    denominator += ptx::ex2(", "    denominator += 2.f * ptx::ex2("),
    ("scales: V's ignored", SOFTMAX, "s[n][2 * r] * factor[n][0]", "s[n][2 * r]"),
    # arithmetic
    (
        "query: head 0 of the group",
        QUERY,
        "rows.token[r] * p.q_token_stride + rows.head[r] * p.q_head_stride",
        "rows.token[r] * p.q_token_stride",
    ),
    ("softmax: sums not rescaled", SOFTMAX, "    state.sum[r] *= correction[r];\n", ""),
    ("softmax: output not rescaled", SOFTMAX, "out[j][i] *= correction[i / 2];", "out[j][i] *= 1.f;"),
    ("softmax: maximum of half a row", SOFTMAX, "  return fmaxf(x, ptx::shfl_xor(x, 2));", "  return x;"),
    ("softmax: sum of half a row", SOFTMAX, "  return x + ptx::shfl_xor(x, 2);", "  return x;"),
    ("softcap: never", SCORES, "if (softcap <= 0.f) return x;", "return x;"),
    (
        "float8: odd columns as even ones",
        VALUES,
        "(x >> 8 & 0xff) | (x >> 16 & 0xff00)",
        "(x & 0xff) | (x >> 8 & 0xff00)",
    ),
    ("K: bank conflicts", SLICE, "return panel + t * 16 + u % 2 * 8;", "return panel + u % 2 * 32 + t * 8;"),
    (
        "K: bank conflicts in float8",
        SLICE,
        "return panel + t / 2 * 32 + u % 2 * 16 + t % 2 * 8;",
        "return panel + t * 16 + u % 2 * 8;",
    ),
    ("bank conflicts", PANEL, "((chunk ^ exchange) & (kChunks - 1))", "(chunk & (kChunks - 1))"),
    # results
    ("sink: none", RESULTS, "denominator += ptx::ex2(", "denominator += 0.f * ptx::ex2("),
    ("sink: in base 2", RESULTS, "sink[head] * kLog2e", "sink[head]"),
    ("sink: of the group's first head", RESULTS, "p.sinks, first_head + rows.head[r]", "p.sinks, first_head"),
    ("lse: in base 2", RESULTS, "(row_max + ptx::lg2(row_sum)) * kLn2", "(row_max + ptx::lg2(row_sum))"),
    ("output: lanes exchange the wrong pair", RESULTS, "t % 2 ? pair_a : pair_b", "t % 2 ? pair_b : pair_a"),
    ("output: rows that are not there", RESULTS, "    if (exists) store_half4", "    store_half4"),
    ("join: a key warp's weight", JOIN, "ptx::ex2(maxima[row] - base)", "ptx::ex2(maxima[row] * 0.f)"),
    ("join: the first columns of all", JOIN, "const int column = first + part * 4;", "const int column = part * 4;"),
    ("join: a block's rows twice", JOIN, "storage[row / kWarpRows], joined,", "storage[0], joined,"),
    ("decode: a warp's slices are another's", DECODE, "own + i * kKeyWarps) * kSliceKeys", "own + i) * kSliceKeys"),
    ("split: keys of the next one", SPLIT, "ptx::min(keys.end, first + kSplitKeys)", "keys.end"),
    ("combine: no sink", COMBINE, "finish_row(max, sum, p.sinks, head)", "finish_row(max, sum, nullptr, head)"),
    (
        "combine: splits that were not written",
        COMBINE,
        "splits_touched(visible_keys(p, seqlens_k[seq]))",
        "p.num_splits",
    ),
    ("combine: an even sum", COMBINE, "ptx::ex2(lse - base) * result.factor", "result.factor"),
    # ragged batches
    ("work: prefix sum a lane short", WORK, "if (lane >= distance)", "if (lane > distance)"),
    (
        "work: positions from the sequence's start",
        RING,
        "seqlens_k[segment.seq] - segment.q_len",
        "0 * seqlens_k[segment.seq]",
    ),
    ("work: the last range is whole", WORK, "ptx::min(first + tokens_per_range, length)", "first + tokens_per_range"),
    # infinities and NaN
    ("special: never noticed", SPECIAL, "return ptx::all(finite);", "return ptx::all(finite) || true;"),
    ("special: stay in the ring", RING, "loader.clear_special_values(slice_address(landed), warp, kWarps);", ";"),
    ("special: stay in the stages", STREAM, "if (careful) clear_tile(tile);", ""),
    (
        "special: not noticed in decode",
        JOIN,
        "finite = finite && fabsf(value) < INFINITY",
        "finite = finite || fabsf(value) < INFINITY",
    ),
    ("special: lost in decode", JOIN, "if (careful) add", "if (false) add"),
    ("special: lost in prefill", SPECIAL, "if (special && sees[r])", "if (special && sees[r] && key < 0)"),
)
