"""Mistakes to plant in sm90_decode: (name, file below csrc/cuda, what it says, what it shall say)."""

DECODE, LOADER, MAPS = "kernels/sm90_decode.cuh", "attention/slice_loader.cuh", "kernels/tensor_maps.h"
COMBINE, BOX = "kernels/smxx_combine.cuh", "attention/page_box.cuh"

SM90_DECODE_MUTATIONS = (
    # synchronization
    (
        "sm90_decode: nobody waits for TMA",
        DECODE,
        "    ptx::mbarrier_wait(landed(use), uint32_t(use / schedule_.depth & 1));\n",
        "",
    ),
    ("sm90_decode: every use is the first of its slot", DECODE, "uint32_t(use / schedule_.depth & 1)", "0u"),
    ("sm90_decode: copies a slice too early", DECODE, "wait_for_copies(schedule_.depth - 1)", "wait_for_copies(3)"),
    ("sm90_decode: groups are not counted", DECODE, "return ptx::cp_async_commit();  // wait", "return;  // wait"),
    ("sm90_decode: slots are loaded while read", DECODE, "    ptx::fence_proxy_async();\n    meet();\n", ""),
    ("sm90_decode: no fence before TMA", DECODE, "    ptx::fence_proxy_async();\n", ""),
    ("sm90_decode: lanes do not meet before TMA", DECODE, "async();\n    meet();", "async();"),
    (
        "sm90_decode: lanes do not meet before use",
        DECODE,
        "row_warp(), kRowWarps);\n    meet();",
        "row_warp(), kRowWarps);",
    ),
    ("sm90_decode: barriers in use before they are there", DECODE, "  ptx::sync_threads();\n}", "}"),
    ("sm90_decode: TMA does not know of the barriers", DECODE, "    ptx::fence_mbarrier_init();\n", ""),
    (
        "sm90_decode: K's bytes are not announced",
        LOADER,
        "(Slice::kKeyRowBytes + Slice::kValueRowBytes)",
        "Slice::kValueRowBytes",
    ),
    (
        "sm90_decode: nobody arrives for rows",
        LOADER,
        "      if (warp == 0 && ptx::lane_id() == 0) ptx::mbarrier_arrive(landed);\n",
        "",
    ),
    (
        "sm90_decode: every lane arrives for rows",
        LOADER,
        "warp == 0 && ptx::lane_id() == 0) ptx::mbarrier",
        "warp == 0) ptx::mbarrier",
    ),
    ("sm90_decode: the second round's uses are the first's", DECODE, "      use += slices.count();\n", ""),
    # what comes by TMA, and where it goes
    (
        "sm90_decode: nothing comes by TMA",
        LOADER,
        "  SWA_DEVICE bool boxed(int index) const {",
        "  SWA_DEVICE bool boxed(int index) const {\n    if (index >= 0) return false;",
    ),
    ("sm90_decode: keys before the range come by TMA", LOADER, "first < rows_.first_key() || ", ""),
    ("sm90_decode: keys beyond the range come by TMA", LOADER, " || end > rows_.end_key()", ""),
    ("sm90_decode: the first host page comes by TMA", LOADER, ">= p_.k.num_device_pages", "> p_.k.num_device_pages"),
    (
        "sm90_decode: one box decides for a slice",
        LOADER,
        "for (int key = first; key < end; key += keys_per_box_)",
        "for (int key = first; key < first + 1; ++key)",
    ),
    ("sm90_decode: one page for all boxes", LOADER, "page = rows_.page_of(key)", "page = rows_.page_of(first)"),
    ("sm90_decode: boxes start at their page", LOADER, "page_slot = key % p_.page_size", "page_slot = 0"),
    ("sm90_decode: boxes in the slice's first rows", LOADER, "(key - first) * Slice", "0 * Slice"),
    ("sm90_decode: V over K", LOADER, "box + uint32_t(Slice::kValueOffset)", "box"),
    ("sm90_decode: panels over each other", BOX, "i * kPanelBytes", "0 * kPanelBytes"),
    ("sm90_decode: the first panel of all", BOX, "landed, i * kPanelElements", "landed, 0 * kPanelElements"),
    ("sm90_decode: head 0 of all", BOX, "i * kPanelElements, kv_head,", "i * kPanelElements, 0,"),
    (
        "sm90_decode: no factors for float8 by TMA",
        LOADER,
        "if (warp == 0) rows_.load_scales(index, slot);",
        "if (warp > 1) rows_.load_scales(index, slot);",
    ),
    # two warps that share a key warp's slots
    ("sm90_decode: row warps meet at one barrier", DECODE, "1 + ptx::warp_id() % kKeyWarps, 32", "1, 32"),
    ("sm90_decode: row warps do not meet", DECODE, "if constexpr (kRowWarps == 1)", "if constexpr (true)"),
    (
        "sm90_decode: both row warps ask for boxes",
        DECODE,
        "if (boxed && row_warp() == 0) loader_",
        "if (boxed) loader_",
    ),
    (
        "sm90_decode: both row warps refill a slot",
        DECODE,
        "boxed && row_warp() == 0 && ptx::lane_id()",
        "boxed && ptx::lane_id()",
    ),
    ("sm90_decode: both row warps arrive", LOADER, "if (warp == 0 && ptx::lane_id() == 0)", "if (ptx::lane_id() == 0)"),
    (
        "sm90_decode: one row warp's share of rows",
        LOADER,
        "rows_.load(index, slot, warp, num",
        "rows_.load(index, slot, 0, num",
    ),
    (
        "sm90_decode: one row warp clears its share",
        DECODE,
        "special_values(slot(use), row_warp()",
        "special_values(slot(use), 0",
    ),
    (
        "sm90_decode: both row warps have the first rows",
        DECODE,
        "ptx::warp_id() / kKeyWarps * kWarpRows",
        "0 * kWarpRows",
    ),
    ("sm90_decode: every CTA has the first rows", DECODE, "first_row = row_block * kRows", "first_row = 0 * row_block"),
    ("sm90_decode: a CTA too few for the rows", DECODE, "(rows + cta_rows - 1) / cta_rows", "rows / cta_rows"),
    # what is chained to it
    ("combine: not chained", COMBINE, "  ptx::wait_for_grid();\n", ""),
    ("sm90_decode: float8 swizzled as 16-bit pools", MAPS, "KvPanel<1>::kSwizzle", "KvPanel<2>::kSwizzle"),
    (
        "sm90_decode: float8 as 16-bit elements",
        MAPS,
        "  if (dtype == DType::kFloat8) return ptx::ElementType::kByte;\n",
        "",
    ),
    ("sm90_decode: slots of a warp are one", DECODE, "use % schedule_.depth * kKeyWarps", "0"),
    (
        "sm90_decode: a warp's slices are another's",
        DECODE,
        "first_ + i * kKeyWarps;",
        "first_ + i * kKeyWarps + (i > 0);",
    ),
    ("sm90_decode: special values stay", DECODE, "if (careful) loader_.rows()", "if (false) loader_.rows()"),
    (
        "sm90_decode: the second pass trusts cleared slices",
        DECODE,
        "      SoftmaxState state;\n",
        "      SoftmaxState state;\n      if (first_row > 0) careful = false;\n",
    ),
    # which cases, and how much room
    (
        "sm90_decode: a slot too few",
        DECODE,
        "(visible + kSliceKeys - 2) / kSliceKeys + 1,",
        "(visible + kSliceKeys - 2) / kSliceKeys,",
    ),
    ("sm90_decode: on every card", DECODE, "device.compute_capability / 10 != 9 || ", ""),
    ("sm90_decode: pages of any size", DECODE, "box == 0 || ", ""),
    ("sm90_decode: strides of K that TMA cannot describe", DECODE, "!mappable(p.k) || ", ""),
    ("sm90_decode: strides of V that TMA cannot describe", DECODE, " || !mappable(p.v)", ""),
    ("sm90_decode: boxes as for prefill", DECODE, "keys_per_box(p.page_size, kSliceKeys)", "keys_per_box(p.page_size)"),
    ("sm90_decode: maps without device pages", DECODE, "return on_host ? ptx::TensorMap{} :", "return"),
)
