#include "cuda/kernels/decode_dims.cuh"

template int swa::cuda::decode_dims<64, 64>(const AttentionParams&, const Device&, Stream);
