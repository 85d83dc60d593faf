"""Which tests of which library are run, and what is expected of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """A test file: its path in the checkout, the compute capability that it should believe in, a sample's longest length."""

    path: str
    capability: str = "9.0"
    longest: int = 600


@dataclass(frozen=True)
class Expected:
    """Failures that are known: tests whose id has `part`, on a backend and CPU level, off by at most `within`.

    A comparison that is further off, or one more failure than `at_most`, is a new fault and not one of these.
    """

    part: str
    backend: str
    level: str  # "" for a backend without levels
    at_most: int
    within: float
    why: str


@dataclass(frozen=True)
class Suite:
    """`marks` are files that only this library's checkout has; `roots` its importable names, which stand-ins take over."""

    name: str
    marks: tuple[str, ...]
    adapter: str
    roots: tuple[str, ...]
    files: tuple[File, ...]
    paths: tuple[str, ...] = (".",)  # folders of the checkout to import helpers from
    expected: tuple[Expected, ...] = ()
    outside: tuple[
        tuple[str, str], ...
    ] = ()  # (part of a test's name, why): not run, because it tests no attention of ours


FLASH_ATTENTION = Suite(
    name="FlashAttention",
    marks=("hopper/flash_attn_interface.py", "tests/test_flash_attn.py"),
    adapter="flash_attention",
    roots=("flash_attn", "flash_attn_interface", "flash_attn_3"),
    files=(
        File("tests/test_flash_attn.py"),
        File("hopper/test_flash_attn.py"),
        File("tests/cute/test_flash_attn.py", "10.0"),
        File("tests/cute/test_flash_attn_fast.py", "10.0"),
        File("tests/cute/test_flash_attn_varlen.py", "10.0"),
        File("tests/cute/test_flash_attn_combine.py", "10.0"),
    ),
    paths=("hopper",),
    outside=(
        ("_mla_", "scores from qv"),
        ("test_flash3_bw_compatibility", "its own registration with PyTorch"),
        ("test_flash_attn_generator_arg_must_be_none", "its own registration with PyTorch"),
        ("reuses_fwd_cache", "its own kernel cache"),
        ("cache_separates_broadcast_layouts", "its own kernel cache"),
        ("test_splitkv_forwards_explicit_arch", "its own kernel cache"),
        ("test_flash_attn_combine_dynamic_splits", "its own kernel cache"),
        ("varlen_cumsum_metadata_paths", "its own scheduler's metadata"),
        ("test_flash_attn_lse_grad", "gradients"),
        ("sink_backward", "gradients"),
        ("bwd", "gradients"),
        ("race_condition", "a thousand runs to provoke a race on a card"),
    ),
)
FLASH_INFER_FILES = (  # name, longest length of a sample
    ("sliding_window", 600),
    ("logits_cap", 600),
    ("batch_decode_kernels", 600),
    ("batch_prefill_kernels", 600),
    ("single_prefill", 600),
    ("non_contiguous_decode", 600),
    ("non_contiguous_prefill", 600),
    ("decode_prefill_lse", 600),
    ("shared_prefix_kernels", 600),
    ("page", 600),
    ("tensor_cores_decode", 600),
    ("attention_sink", 600),
    ("batch_attention", 600),
    ("hopper", 600),
    ("decode_fp8_calibration_scale", 600),
    ("batch_invariant_fa2", 5000),  # it has no shorter ones
)
FLASH_INFER = Suite(
    name="FlashInfer",
    marks=("flashinfer/decode.py", "tests/attention"),
    adapter="flash_infer",
    roots=("flashinfer",),
    files=tuple(File(f"tests/attention/test_{name}.py", longest=longest) for name, longest in FLASH_INFER_FILES),
)
GPT_OSS = Suite(
    name="gpt-oss",
    marks=("gpt_oss/triton/attention.py",),
    adapter="gpt_oss",
    roots=(),
    files=(File("gpt_oss/triton/attention.py"),),
    expected=(
        Expected(
            "test_eq", "cpu", "avx512_bf16", 12, 0.005, "the bfloat16 instructions take softmax weights in bfloat16"
        ),
    ),
)
SUITES = (FLASH_ATTENTION, FLASH_INFER, GPT_OSS)
