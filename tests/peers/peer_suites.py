"""Which tests of which library are run, and what is expected of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """A test file, by its path in the checkout, and the compute capability that it should believe in."""

    path: str
    capability: str = "9.0"


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
)
FLASH_INFER = Suite(
    name="FlashInfer",
    marks=("flashinfer/decode.py", "tests/attention"),
    adapter="flash_infer",
    roots=("flashinfer",),
    files=tuple(
        File(f"tests/attention/test_{name}.py")
        for name in (
            "sliding_window",
            "logits_cap",
            "batch_decode_kernels",
            "batch_prefill_kernels",
            "single_prefill",
            "non_contiguous_decode",
            "non_contiguous_prefill",
            "decode_prefill_lse",
            "shared_prefix_kernels",
            "page",
            "tensor_cores_decode",
            "attention_sink",
            "batch_attention",
            "batch_invariant_fa2",
            "hopper",
            "decode_fp8_calibration_scale",
        )
    ),
)
GPT_OSS = Suite(
    name="gpt-oss",
    marks=("gpt_oss/triton/attention.py",),
    adapter="gpt_oss",
    roots=(),
    files=(File("gpt_oss/triton/attention.py"),),
)
SUITES = (FLASH_ATTENTION, FLASH_INFER, GPT_OSS)
