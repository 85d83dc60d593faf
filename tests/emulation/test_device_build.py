"""The device half of csrc/cuda/ptx, as far as it can be checked without a card: the PTX of each primitive, and that the
test and page kernels compile without warnings, spills or local memory."""

import itertools
import re
import struct

import pytest
from device_build import CSRC, KERNELS, disassemble, find_disassembler, load

PTX = CSRC / "cuda" / "ptx"


WIDE = ("LDG.E.128.CONSTANT", "STG.E.128")  # SASS of 16-byte accesses
PAGE_KERNELS = ("smxx_append_kv.cu", "smxx_copy_pages.cu", "smxx_merge_states.cu")
ATTENTION = ("LDGSTS", "LDSM", "HMMA", "MUFU.EX2")
ATTENTION_KERNELS = [f"{op}_{dim}.cu" for op in ("prefill", "decode") for dim in (64, 128, 192, 256)]
DEVICE_BUILDS = [
    ("attention.cu", "sm_80", ()),
    ("decode_64.cu", "sm_80", ATTENTION),
    *(
        pytest.param(source, arch, ATTENTION, marks=pytest.mark.slow)
        for source in ATTENTION_KERNELS
        for arch in ("sm_80", "sm_100", "sm_120")
    ),
    *(  # prefill_192.cu and decode_192.cu: test_hopper_sass.py
        pytest.param(source, "sm_90a", (*ATTENTION, "UTMALDG.4D"), marks=pytest.mark.slow)
        for source in ATTENTION_KERNELS
    ),
    *((source, "sm_80", WIDE) for source in PAGE_KERNELS),
    *(
        pytest.param(source, arch, WIDE if arch == "sm_90a" else (), marks=pytest.mark.slow)
        for source in PAGE_KERNELS
        for arch in ("sm_90a", "sm_100", "sm_120")
    ),
    ("device_sm80.cu", "sm_80", ("LDGSTS", "LDSM", "HMMA.16816.F32.BF16", "MUFU.EX2")),
    ("device_sm90.cu", "sm_90a", ("HGMMA.64x128x16.F32", "UTMALDG.4D", "UBLKCP", "SYNCS", "USETMAXREG")),
    pytest.param("device_sm80.cu", "sm_100", ("LDGSTS", "LDSM", "HMMA"), marks=pytest.mark.slow),
    pytest.param("device_sm80.cu", "sm_120", ("LDGSTS", "LDSM", "HMMA"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("source, arch, instructions", DEVICE_BUILDS)
def test_kernels_compile_without_warnings_spills_or_local_memory(nvcc, source, arch, instructions):
    folder = CSRC / "cuda" / "kernels" if (CSRC / "cuda" / "kernels" / source).exists() else KERNELS
    cubin, log = nvcc(folder / source, arch, "-cubin", "-Xptxas", "-Werror,-v")
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert frames and all(frame == ("0", "0", "0") for frame in frames), log
    assert "serialized" not in log  # wgmma that ptxas could not keep asynchronous
    if find_disassembler() is None:
        return
    sass = disassemble(cubin)
    assert all(name in sass for name in instructions), [name for name in instructions if name not in sass]


# What each kernel of golden_sm80.cu and golden_sm90.cu must contain, in this order. Constants and parameters stand for
# the registers that hold them; A to D are registers, the same ones where the same letter is used.
GOLDEN_80 = {
    "cp_async_4": ["cp.async.ca.shared.global [256], [in], 4, 3;"],
    "cp_async_8": ["cp.async.ca.shared.global [256], [in], 8, 5;"],
    "cp_async_16": ["cp.async.cg.shared.global.L2::128B [256], [in], 16, 9;"],
    "cp_async_commit": ["cp.async.commit_group;"],
    "cp_async_wait": ["cp.async.wait_group 3;"],
    "ldg_4": ["ld.global.nc.b32 A, [in];", "st.global.u32 [out], A;"],
    "ldg_8": ["ld.global.nc.v2.b32 {A, B}, [in];", "st.global.v2.u32 [out], {A, B};"],
    "ldg_16": ["ld.global.nc.v4.b32 {A, B, C, D}, [in];", "st.global.v4.u32 [out], {A, B, C, D};"],
    "stg_4": ["st.global.b32 [out], 1;"],
    "stg_8": ["st.global.v2.b32 [out], {1, 2};"],
    "stg_16": ["st.global.v4.b32 [out], {1, 2, 3, 4};"],
    "lds_4": ["ld.shared.b32 A, [256];", "st.global.u32 [out], A;"],
    "lds_8": ["ld.shared.v2.b32 {A, B}, [256];", "st.global.v2.u32 [out], {A, B};"],
    "lds_16": ["ld.shared.v4.b32 {A, B, C, D}, [256];", "st.global.v4.u32 [out], {A, B, C, D};"],
    "sts_4": ["st.shared.b32 [256], 1;"],
    "sts_8": ["st.shared.v2.b32 [256], {1, 2};"],
    "sts_16": ["st.shared.v4.b32 [256], {1, 2, 3, 4};"],
    "ldmatrix_x1": ["ldmatrix.sync.aligned.m8n8.x1.shared.b16 {A}, [256];", "st.global.u32 [out], A;"],
    "ldmatrix_x2": ["ldmatrix.sync.aligned.m8n8.x2.shared.b16 {A, B}, [256];", "[out], {A, B};"],
    "ldmatrix_x4": ["ldmatrix.sync.aligned.m8n8.x4.shared.b16 {A, B, C, D}, [256];", "[out], {A, B, C, D};"],
    "ldmatrix_x2_trans": ["ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {A, B}, [256];", "[out], {A, B};"],
    "ldmatrix_x4_trans": [
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {A, B, C, D}, [256];",
        "[out], {A, B, C, D};",
    ],
    "mma_m16n8k16_bf16": [
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {1.0, 2.0, 3.0, 4.0}, {5, 6, 7, 8}, {9, 10}, "
        "{1.0, 2.0, 3.0, 4.0};",
        "[out], {1.0, 2.0, 3.0, 4.0};",
    ],
    "mma_m16n8k16_fp16": [
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {1.0, 2.0, 3.0, 4.0}, {5, 6, 7, 8}, {9, 10}, "
        "{1.0, 2.0, 3.0, 4.0};",
        "[out], {1.0, 2.0, 3.0, 4.0};",
    ],
    "pack_half_bf16": ["cvt.rn.bf16x2.f32 A, y, x;", "[out], A;"],  # the second operand is the low half
    "pack_half_fp16": ["cvt.rn.f16x2.f32 A, y, x;", "[out], A;"],
    "half_low_bf16": ["shl.b32 A, i, 16;", "[out], A;"],
    "half_high_bf16": ["and.b32 A, i, -65536;", "[out], A;"],
    "half_low_fp16": ["cvt.f32.f16 A, ", "[out], A;"],
    "half_high_fp16": ["cvt.f32.f16 A, ", "[out], A;"],
    "ex2": ["ex2.approx.ftz.f32 A, x;", "[out], A;"],
    "lg2": ["lg2.approx.ftz.f32 A, x;", "[out], A;"],
    "tanh_approx": ["tanh.approx.f32 A, x;", "[out], A;"],
    "shfl_xor": ["shfl.sync.bfly.b32 A|B, x, 5, 31, 65535;", "[out], A;"],
    "shfl": ["shfl.sync.idx.b32 A|B, x, 5, 31, 65535;", "[out], A;"],
    "ballot": ["vote.sync.ballot.b32 A, B, 65535;", "[out], A;"],
    "any": ["vote.sync.any.pred A, B, 65535;"],
    "all": ["vote.sync.all.pred A, B, 65535;"],
    "lane_id": ["and.b32 A, %tid.x, 31;", "[out], A;"],
    "warp_id": ["shr.u32 A, %tid.x, 5;", "[out], A;"],
    "sync_warp": ["bar.warp.sync 65535;"],
    "sync_threads": ["bar.sync 0;"],
    "barrier_sync": ["bar.sync 3, 64;"],
    "barrier_arrive": ["bar.arrive 3, 64;"],
}
TMA = "cp.async.bulk.tensor.{}d.shared::cluster.global.mbarrier::complete_tx::bytes"
GOLDEN_90 = {
    "mbarrier_init": ["mbarrier.init.shared::cta.b64 [256], 3;"],
    "mbarrier_inval": ["mbarrier.inval.shared::cta.b64 [256];"],
    "mbarrier_arrive": ["mbarrier.arrive.shared::cta.b64 _, [256];"],
    "mbarrier_arrive_remote": [
        "mapa.shared::cluster.u32 a, 256, 1;",
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [a];",
    ],
    "mbarrier_arrive_expect_tx": ["mbarrier.arrive.expect_tx.shared::cta.b64 _, [256], 512;"],
    "mbarrier_try_wait": [
        "mbarrier.try_wait.parity.shared::cta.b64 P, [256], 1;",
        "selp.b32 A, 1, 0, P;",
    ],
    "mbarrier_wait": ["mbarrier.try_wait.parity.shared::cta.b64 P, [256], 1;", "selp.b32 A, 1, 0, P;", "bra"],
    "cp_async_mbarrier_arrive_noinc": ["cp.async.mbarrier.arrive.noinc.shared::cta.b64 [256];"],
    "fence_proxy_async": ["fence.proxy.async.shared::cta;"],
    "fence_mbarrier_init": ["fence.mbarrier_init.release.cluster;"],
    "bulk_load": ["cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [256], [in], 512, [768];"],
    "bulk_store": ["cp.async.bulk.global.shared::cta.bulk_group [out], [256], 512;"],
    "bulk_commit": ["cp.async.bulk.commit_group;"],
    "bulk_wait": ["cp.async.bulk.wait_group 2;"],
    "tma_load_2d": [TMA.format(2) + " [256], [in, {1, 2}], [768];"],
    "tma_load_3d": [TMA.format(3) + " [256], [in, {1, 2, 3}], [768];"],
    "tma_load_4d": [TMA.format(4) + " [256], [in, {1, 2, 3, 4}], [768];"],
    "tma_load_2d_multicast": [TMA.format(2) + ".multicast::cluster [256], [in, {1, 2}], [768], 5;"],
    "tma_store_3d": ["cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [in, {1, 2, 3}], [256];"],
    "bulk_wait_read": ["cp.async.bulk.wait_group.read 2;"],
    "launch_dependents": ["griddepcontrol.launch_dependents;"],
    "wait_for_grid": ["griddepcontrol.wait;"],
    "e4m3_to_fp16": ["cvt.rn.f16x2.e4m3x2 A, ", "[out], A;"],
    "cluster_rank": ["mov.u32 A, %cluster_ctarank;", "[out], A;"],
    "cluster_arrive": ["barrier.cluster.arrive.release.aligned;"],
    "cluster_wait": ["barrier.cluster.wait.acquire.aligned;"],
    "elect_one": ["elect.sync _|P, 0xffffffff;", "selp.b32 A, 1, 0, P;"],
    "stmatrix_x4": ["stmatrix.sync.aligned.m8n8.x4.shared.b16 [256], {1, 2, 3, 4};"],
    "stmatrix_x4_trans": ["stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [256], {1, 2, 3, 4};"],
    "set_max_registers_up": ["setmaxnreg.inc.sync.aligned.u32 240;"],
    "set_max_registers_down": ["setmaxnreg.dec.sync.aligned.u32 24;"],
}


def golden_wgmma() -> dict[str, list[str]]:
    expected = {}
    variants = [(n, major, kind) for n in (64, 128) for major in ("k", "mn") for kind in ("ss", "rs")]
    variants += [(n, "k", "ss") for n in (16, 32, 48)]
    for (n, major, kind), (dtype, name) in itertools.product(variants, (("bf16", "bf16"), ("f16", "fp16"))):
        transposed = int(major == "mn")
        operands = {"ss": f"11, 12, p, 1, 1, 0, {transposed};", "rs": f"{{5, 6, 7, 8}}, 12, p, 1, 1, {transposed};"}
        expected[f"wgmma_{kind}_{n}_{name}_{major}"] = [
            "wgmma.fence.sync.aligned;",
            f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{dtype}.{dtype} {{",
            "}, " + operands[kind],
            "wgmma.commit_group.sync.aligned;",
            "wgmma.wait_group.sync.aligned 1;",
        ]
    return expected


GOLDEN_90 |= golden_wgmma()


def readable(body: str, parameters: dict[str, str]) -> list[str]:
    """The instructions of a PTX kernel, with constants, parameters and special registers in place of registers."""
    lines = [" ".join(line.split("//")[0].split()) for line in body.splitlines()]
    values: dict[str, str] = {}
    result = []
    for line in filter(None, lines):
        line = re.sub(r"%(?:r|rd|rs|f|p|fd)\d+\b", lambda m: values.get(m[0], m[0]), line)
        if move := re.fullmatch(r"mov\.\w+ (%\w+), (-?\d+|%tid\.x);", line):
            values[move[1]] = move[2]
        elif move := re.fullmatch(r"mov\.\w+ (%\w+), 0f([0-9A-F]{8});", line):
            values[move[1]] = str(load_float(move[2]))
        elif parameter := re.fullmatch(r"ld\.param\.\w+ (%\w+), \[\w+_param_(\d+)\];", line):
            values[parameter[1]] = parameters[parameter[2]]
        elif move := re.fullmatch(r"cvta\.to\.global\.u64 (%\w+), (\w+);", line):
            values[move[1]] = move[2]
        result.append(line)
    return result


def load_float(hexadecimal: str) -> float:
    return struct.unpack(">f", bytes.fromhex(hexadecimal))[0]


def pattern(expected: list[str]) -> str:
    seen: set[str] = set()

    def register(match: re.Match) -> str:
        first = match[0] not in seen
        seen.add(match[0])
        return f"(?P<{match[0]}>%\\w+)" if first else f"(?P={match[0]})"

    return ".*".join(re.sub(r"(?<![\w:.])[A-D](?!\w)", register, re.escape(text)) for text in expected)


@pytest.fixture(scope="session")
def golden(nvcc):
    """Kernel name -> readable instructions, per file."""

    def kernels(source: str, arch: str, parameters: str) -> dict[str, list[str]]:
        text = nvcc(KERNELS / source, arch, "-ptx")[0].read_text()
        names = {str(i): name for i, name in enumerate(parameters.split())}
        parts = re.split(r"\.visible \.entry golden_(\w+)\(", text)[1:]
        return {name: readable(body.split("{", 1)[1], names) for name, body in zip(parts[::2], parts[1::2])}

    return {
        80: kernels("golden_sm80.cu", "compute_80", "out in x y i"),
        90: kernels("golden_sm90.cu", "compute_90a", "out in i"),
    }


@pytest.mark.parametrize(
    "arch, name", [*((80, name) for name in GOLDEN_80), *((90, name) for name in GOLDEN_90)], ids=lambda v: str(v)
)
def test_golden_ptx(golden, arch, name):
    expected = (GOLDEN_80 if arch == 80 else GOLDEN_90)[name]
    text = "\n".join(golden[arch][name])
    assert re.search(pattern(expected), text, re.DOTALL), f"expected {expected} in\n{text}"
    if name.startswith("wgmma"):
        n = int(name.split("_")[2])
        instruction = next(line for line in golden[arch][name] if line.startswith("wgmma.mma_async"))
        registers = re.search(r"\{(.*?)\}", instruction)[1].split(", ")
        assert len(set(registers)) == n // 2


def test_every_golden_kernel_is_checked(golden):
    assert set(golden[80]) == set(GOLDEN_80) and set(golden[90]) == set(GOLDEN_90)


# Not instructions of their own.
HELPERS = {"bit_cast", "thread_idx", "block_idx", "block_dim", "grid_dim", "min", "max", "wgmma_descriptor"}
HELPERS |= {"pin_registers", "claim_registers", "recomputed", "shared_storage", "smem_u32"}


def test_every_primitive_has_a_golden_kernel():
    sources = [*PTX.glob("*.cuh"), *PTX.glob("*.inc")]
    headers = "\n".join(file.read_text() for file in sources)
    primitives = set(re.findall(r"^SWA_DEVICE [\w<>&: ]*?(\w+)[<(]", headers, re.MULTILINE))
    assert {"cp_async", "mma_m16n8k16", "tma_load_4d", "wgmma_ss", "mbarrier_wait"} <= primitives
    text = (KERNELS / "golden_sm80.cu").read_text() + (KERNELS / "golden_sm90.cu").read_text()
    missing = {name for name in primitives - HELPERS if not re.search(rf"\b{name}\b", text)}
    assert not missing


def test_generated_wgmma_shapes_are_up_to_date():
    generator = load(PTX / "wgmma_generate.py")
    assert generator.OUTPUT.read_text() == generator.generate()


def test_kernels_use_primitives_only():
    """No raw CUDA in what runs in both worlds: it would not be emulated."""
    raw = re.compile(r"\basm\b|__shared__|__syncthreads|__shfl|__ballot|<<<|\bthreadIdx\b|\bblockIdx\b|__ldg")
    files = [f for f in (CSRC / "cuda").rglob("*.cuh") if PTX not in f.parents] + list(KERNELS.glob("*.cuh"))
    wrong = [f"{f.name}: {m[0]}" for f in files for m in raw.finditer(re.sub(r"//.*", "", f.read_text()))]
    assert not wrong
