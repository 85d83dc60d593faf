#include "cuda/kernels/decode_dims.cuh"

template int swa::cuda::decode_dims<128, 128>(const AttentionParams&, const Device&, Stream);
