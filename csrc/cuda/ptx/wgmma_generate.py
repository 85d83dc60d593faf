"""Writes wgmma_shapes.inc: the device side of wgmma_ss and wgmma_rs, whose operand lists depend on the shape.

Run it after changing SHAPES; a test checks that the file is up to date. The emulated side is one template in wgmma.cuh.
"""

from pathlib import Path

EDGES, SHAPES = (16, 32, 48), (64, 128)  # the instruction's N; edges: keys at a window's ends, for scores alone
TYPES = {"kBf16": "bf16", "kFp16": "f16"}
MAJORS = {"kK": 0, "kMn": 1}  # of B; the value is the instruction's transpose bit
WIDTH = 116
OUTPUT = Path(__file__).with_name("wgmma_shapes.inc")


def wrap(items: list[str], indent: str) -> str:
    """Joins items with commas, breaking lines before WIDTH columns."""
    lines, line = [], indent
    for i, item in enumerate(items):
        piece = item + (", " if i + 1 < len(items) else "")
        if len(line) + len(piece) > WIDTH:
            lines.append(line.rstrip())
            line = indent
        line += piece
    return "\n".join([*lines, line])


def quoted(items: list[str], indent: str) -> str:
    """A comma-separated operand list as adjacent C string literals."""
    lines = wrap(items, indent + "  ").split("\n")
    return "\n".join(f'{indent}"{line.strip()}{" " if i + 1 < len(lines) else ""}"' for i, line in enumerate(lines))


def specialization(kind: str, n: int, type_name: str, major: str) -> str:
    registers = n // 2
    if kind == "ss":
        parameters = "uint64_t a_descriptor, uint64_t b_descriptor"
        operands = f"%{registers}, %{registers + 1}"
        inputs = '"l"(a_descriptor), "l"(b_descriptor)'
        immediates = f"1, 1, 0, {MAJORS[major]}"  # scale-a, scale-b, A is K-major, B
        scale = registers + 2
    else:
        parameters = "const uint32_t (&a)[4], uint64_t b_descriptor"
        operands = "{" + ", ".join(f"%{registers + i}" for i in range(4)) + f"}}, %{registers + 4}"
        inputs = ", ".join(f'"r"(a[{i}])' for i in range(4)) + ', "l"(b_descriptor)'
        immediates = f"1, 1, {MAJORS[major]}"
        scale = registers + 5
    ptx_type = TYPES[type_name]
    return f"""template <>
SWA_DEVICE void wgmma_{kind}<{n}, Half::{type_name}, Major::{major}>(float (&d)[{registers}], {parameters},
    bool accumulate) {{
  asm volatile(
      "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{scale}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{ptx_type}.{ptx_type} {{"
{quoted([f"%{i}" for i in range(registers)], "      ")}
      "}}, {operands}, p, {immediates};\\n}}"
      : {wrap([f'"+f"(d[{i}])' for i in range(registers)], "        ").lstrip()}
      : {inputs}, "r"(int(accumulate)));
}}"""


def generate() -> str:
    parts = ["// Written by wgmma_generate.py."]
    for type_name in TYPES:
        parts += [specialization("ss", n, type_name, "kK") for n in EDGES]
    for n in SHAPES:
        for type_name in TYPES:
            for major in MAJORS:
                parts += [specialization(kind, n, type_name, major) for kind in ("ss", "rs")]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(generate())
