// The kernels' host side. Each launching function returns 0, CUDA's error code or kNoRoom; the
// caller has checked the arguments and set the device.
#pragma once

#include "cuda/params.h"

namespace swa::cuda {

using Stream = void*;  // a cudaStream_t; here without CUDA's headers

constexpr int kNoRoom = -1;  // the device has too little shared memory for this case

int prefill(const AttentionParams& params, const Device& device, Stream stream);
int decode(const AttentionParams& params, const Device& device, Stream stream);
int append_kv(const AppendParams& params, Stream stream);
int copy_pages(const CopyParams& params, const Device& device, Stream stream);
int merge_states(const MergeParams& params, Stream stream);

// How many pieces decode cuts the keys into: depends on shapes only, so that a CUDA graph stays
// valid when lengths change. params.partial_out and partial_lse must have room for them if > 1.
int decode_splits(const AttentionParams& params);

// Why prefill and decode have no kernel for such a layer, or null.
const char* attention_lacks(int group_size, int head_dim, int v_head_dim, DType dtype,
                            DType kv_dtype);

// What CUDA says about device `index`; returns 0 or an error.
int query_device(int index, Device* device);

const char* error_text(int error);

}  // namespace swa::cuda
