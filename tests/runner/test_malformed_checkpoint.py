"""Weights from somebody else: an index that points elsewhere, shards that contradict it, damaged files, wrong sizes."""

import json
import os
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from checkpoints import CONFIG, QUANTIZATION, fuse_qkv, hub_names, random_parameters, write

from swa_attn.__main__ import main
from swa_attn.runner import CheckpointError, ConfigError, demo, load_model

save_file = pytest.importorskip("safetensors.torch", reason="checkpoints are safetensors files").save_file

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def tensors():
    return hub_names(random_parameters())


def refused(folder, message, error=CheckpointError):
    with pytest.raises(error, match=message) as caught:
        load_model(folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 4000


def write_index(folder, files, **more):
    (folder / INDEX).write_text(json.dumps({"weight_map": files, **more}))


@pytest.fixture
def outside(tmp_path, tensors):
    """A folder without weights, beside a file with them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, tmp_path / "elsewhere.safetensors")
    (folder / "below").mkdir()
    save_file(tensors, folder / "below" / "x.safetensors")
    return folder


ELSEWHERE = {
    "above": "../elsewhere.safetensors",
    "above, the long way": "below/../../elsewhere.safetensors",
    "above, in Windows' words": "..\\elsewhere.safetensors",
    "absolute": "{above}/elsewhere.safetensors",
    "a drive": "C:elsewhere.safetensors",
    "below": "below/x.safetensors",
    "itself": "./model.safetensors",
    "the folder": ".",
    "empty": "",
    "a device": "/dev/zero",
    "another kind": "config.json",
    "a pickle": "pytorch_model.bin",
    "NUL": "a\0.safetensors",
    "half a surrogate pair": "\ud800.safetensors",
    "a new line": "a\n.safetensors",
    "longer than names are": "a" * 300 + ".safetensors",
    "a number": 1,
    "null": None,
    "a list": ["model.safetensors"],
    "an object": {"file": "model.safetensors"},
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_the_index_names_files_of_its_folder_only(outside, tensors, case):
    file = ELSEWHERE[case]
    if isinstance(file, str):
        file = file.replace("{above}", str(outside.parent))
    write_index(outside, dict.fromkeys(tensors, file))
    refused(outside, r"weight_map must name \*.safetensors files of this folder itself, got ")


def test_one_bad_name_among_good_ones(tmp_path, tensors):
    write(tmp_path, tensors)
    files = dict.fromkeys(tensors, "model.safetensors")
    write_index(tmp_path, files)
    load_model(tmp_path)
    write_index(tmp_path, {**files, "lm_head.weight": "../model.safetensors"})
    refused(tmp_path, r"of this folder itself, got '../model.safetensors'")


def test_symlinks_of_the_folder_are_followed(outside, tensors):
    """As a Hugging Face cache has them: snapshots/REVISION/FILE -> ../../blobs/HASH."""
    (outside / "model.safetensors").symlink_to("../elsewhere.safetensors")
    load_model(outside)
    write_index(outside, dict.fromkeys(tensors, "model.safetensors"))
    load_model(outside)


@pytest.mark.parametrize("indexed", [False, True])
def test_only_regular_files_are_opened(outside, tensors, indexed):
    file = outside / "model.safetensors"
    if indexed:
        write_index(outside, dict.fromkeys(tensors, file.name))
    for make in (os.mkfifo, Path.mkdir, lambda f: f.symlink_to("/dev/zero")):
        make(file)
        refused(outside, r"model.safetensors is not a regular file")
        file.rmdir() if file.is_dir() else file.unlink()
    file.symlink_to(file.name)  # a loop
    refused(outside, "the index names files that are missing" if indexed else "holds neither")


BROKEN_INDEX = {
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "no map": "{}",
    "an empty map": '{"weight_map": {}}',
    "a list for a map": '{"weight_map": ["model.safetensors"]}',
    "a word for a map": '{"weight_map": "model.safetensors"}',
    "a tensor twice": '{"weight_map": {"a": "model.safetensors", "a": "model.safetensors"}}',
    "deep": '{"weight_map":' * 100_000,
    "NaN": '{"metadata": {"total_size": NaN}, "weight_map": {"a": "model.safetensors"}}',
}


@pytest.mark.parametrize("case", BROKEN_INDEX)
def test_a_malformed_index_names_itself(tmp_path, tensors, case):
    write(tmp_path, tensors)
    (tmp_path / INDEX).write_text(BROKEN_INDEX[case])
    refused(tmp_path, f"{INDEX}:? (is not JSON|must hold|names the field|holds 'NaN'|weight_map must be an object)")


def test_an_index_is_read_in_bounded_memory(tmp_path, tensors, monkeypatch):
    write(tmp_path, tensors)
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(1 << 40)
    refused(tmp_path, f"{INDEX} has more than {64 << 20} bytes")


def test_index_and_shards_name_the_same_tensors(tmp_path, tensors):
    write(tmp_path, tensors, shards=2)
    files = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    first, second = sorted(set(files.values()))
    write_index(tmp_path, {**files, "model.extra.weight": first})
    refused(tmp_path, f"{first} does not hold model.extra.weight, as the index says")
    write_index(tmp_path, {n: f for n, f in files.items() if n != "lm_head.weight"})
    refused(tmp_path, "tensors that the shards hold and the index does not name: lm_head.weight$")
    write_index(tmp_path, files)
    both = {n: x for n, x in tensors.items() if files[n] == first} | {"model.norm.weight": tensors["model.norm.weight"]}
    save_file(both, tmp_path / first)
    own = {n: x for n, x in tensors.items() if files[n] == second} | {"model.norm.weight": tensors["model.norm.weight"]}
    save_file(own, tmp_path / second)
    refused(tmp_path, "tensors that the shards hold several times: model.norm.weight$")


def test_pickles_are_named_and_not_read(outside):
    torch.save({}, outside / "pytorch_model.bin")
    refused(outside, "holds neither .*, only pytorch_model.bin: pickles are not read, convert them to safetensors")
    refused(outside / "config.json", "config.json", OSError)
    refused(outside / "nothing", "No such file", OSError)


def header_of(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_damaged_safetensors(tmp_path, tensors):
    write(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    header, data = header_of(path)
    name = "model.embed_tokens.weight"
    start, stop = header[name]["data_offsets"]

    def with_tensor(**changes):
        return {**header, name: {**header[name], **changes}}

    for damaged in (b"", whole[:4], whole[:8], whole[:100], whole[:-1], whole + b"\0", b"\xff" * 8 + whole[8:]):
        path.write_bytes(damaged)
        refused(tmp_path, "model.safetensors cannot be read: ")
    for bad in (
        b"",
        b"[]",
        b"{",
        b'{"a":' * 10_000,
        b"\xff" * 100,
        with_tensor(data_offsets=[start, stop - 4]),
        with_tensor(data_offsets=[start - 4, stop - 4]),
        with_tensor(data_offsets=[start, 1 << 60]),
        with_tensor(data_offsets=[stop, start]),
        with_tensor(data_offsets=[0, stop - start]),  # another tensor's bytes
        with_tensor(shape=[1 << 40, 1 << 40]),
        with_tensor(shape=[-1, 32]),
        with_tensor(shape="abc"),
        with_tensor(dtype="F31"),
        with_tensor(dtype=None),
        {**header, name: None},
        {**header, "model.extra": {"dtype": "F32", "shape": [1 << 62, 0, 1 << 62], "data_offsets": [0, 0]}},
    ):
        write_header(path, bad, data)
        refused(tmp_path, "model.safetensors cannot be read: |unexpected: model.extra")
    for dtype, shape in (("I32", [40, 32]), ("U8", [40, 128]), ("F64", [20, 32]), ("BOOL", [160, 32])):
        write_header(path, with_tensor(dtype=dtype, shape=shape), data)
        refused(tmp_path, f"unreadable dtype: {name} \\({dtype}\\)")
    for shape in ([32, 40], [1280], [40, 32, 1], [1, 40, 32], [2] * 7 + [10]):
        write_header(path, with_tensor(shape=shape), data)
        refused(tmp_path, f"wrong shape: {name}")


def test_names_of_tensors_are_shown_in_one_line(tmp_path, tensors):
    strange = {"model.\n\x1b[31m": torch.zeros(1), "x" * 10_000: torch.zeros(1)}
    strange |= {"model.layers.0.mlp.experts.99999999999999999999.up_proj.weight": torch.zeros(1)}
    strange |= {"model.layers.1.mlp.experts.٣.up_proj.weight": torch.zeros(1)}  # a digit of another script
    strange |= {f"model.layers.{'9' * 5000}.self_attn.qkv_proj.weight": torch.zeros(1)}
    write(tmp_path, {**tensors, **strange})
    refused(tmp_path, "unexpected: ")


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size"])
def test_sizes_are_compared_with_the_files_before_memory_is_taken(tmp_path, tensors, field):
    write(tmp_path, tensors, **{field: 1 << 20})
    tracemalloc.start()
    refused(tmp_path, r"does not fit the model: .*\[1048576, 32\]|does not fit the model: .*1048576")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, field: 10**12}))
    refused(tmp_path, f"{field} must be at most", ConfigError)


def test_float8_scales_fit_before_anything_is_read(tmp_path, tensors):
    quantised = {**tensors, "lm_head.weight": tensors["lm_head.weight"].to(torch.float8_e4m3fn)}
    scale = "lm_head.weight_scale_inv"
    for wrong, message in (
        (torch.zeros(3), r"must be of shape \[3, 2\] for blocks of \[16, 16\], got \[3\]"),
        (torch.zeros(3, 3), r"must be of shape \[3, 2\] .* got \[3, 3\]"),
        (torch.zeros(3, 2, dtype=torch.int32), "F8_E4M3 with lm_head.weight_scale_inv of I32"),
    ):
        write(tmp_path, {**quantised, scale: wrong}, quantization_config=QUANTIZATION)
        refused(tmp_path, message)
    write(tmp_path, {**quantised, scale: torch.ones(3, 2)}, quantization_config=QUANTIZATION)
    assert torch.equal(load_model(tmp_path).lm_head.weight, quantised["lm_head.weight"].float())
    norm = {"model.norm.weight": tensors["model.norm.weight"].to(torch.float8_e4m3fn)}
    write(tmp_path, {**tensors, **norm, "model.norm.weight_scale_inv": torch.ones(2)}, quantization_config=QUANTIZATION)
    refused(tmp_path, r"a float8 weight must be a matrix, got a tensor of shape \[32\]")
    huge = {
        **QUANTIZATION,
        "weight_block_size": [1 << 60, 1 << 60],
    }  # one block, whatever the size: nothing is repeated
    write(tmp_path, {**quantised, scale: torch.full((1, 1), 2.0)}, quantization_config=huge)
    assert torch.equal(load_model(tmp_path).lm_head.weight, 2 * quantised["lm_head.weight"].float())


@pytest.mark.parametrize("shape", [(), (136,), (136, 0), (1, 136, 32), (135, 32), (136, 31)], ids=str)
def test_fused_projections_of_other_shapes(tmp_path, tensors, shape):
    fused = fuse_qkv(tensors, 2)
    write(tmp_path, {**fused, "model.layers.0.self_attn.qkv_proj.weight": torch.zeros(shape)})
    refused(tmp_path, r"wrong shape: model.layers.0.self_attn.qkv_proj.weight")


def test_nan_weights_are_weights(tmp_path, tensors):
    broken = {**tensors, "model.norm.weight": torch.full((32,), float("nan"))}
    write(tmp_path, broken)
    assert load_model(tmp_path).model.norm.weight.isnan().all()


def fuzz(folder, tensors, seeds):
    """Mutations of the header, and of the first bytes, of one of two shards: loaded, or one of the two errors."""
    write(folder, tensors, shards=2)
    path = min(folder.glob("*.safetensors"))
    header, data = header_of(path)
    whole, length = path.read_bytes(), len(path.read_bytes()) - len(data)
    loaded = 0
    for seed in seeds:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            changed = bytearray(whole)
            for _ in range(chance.choice((1, 1, 3))):
                start = chance.randrange(chance.choice((16, length)))
                changed[start : start + chance.choice((0, 1, 1, 4))] = chance.randbytes(chance.choice((0, 1, 1, 4)))
            path.write_bytes(changed[: chance.choice((None, None, None, length, chance.randrange(len(changed))))])
        else:
            name = chance.choice(sorted(header))
            entry = dict(header[name])
            entry[chance.choice(("dtype", "shape", "data_offsets"))] = chance.choice(
                (
                    "F32",
                    "BF16",
                    "F8_E4M3",
                    "I64",
                    1,
                    None,
                    [],
                    [0, 0],
                    [1 << 63, 2],
                    [32],
                    [8],
                    [4, 5],
                    {},
                    [0, 1 << 40],
                )
            )
            text = json.dumps({**header, chance.choice((name, name + "_scale_inv")): entry}).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        try:
            load_model(folder)
            loaded += 1
        except (CheckpointError, ConfigError) as error:
            assert str(error).isprintable() and len(str(error)) < 4000, seed
    return loaded


def test_mutated_safetensors_are_loaded_or_refused(tmp_path, tensors):
    assert 0 < fuzz(tmp_path, tensors, range(150)) < 100


@pytest.mark.slow
def test_mutated_safetensors_for_longer(tmp_path, tensors):
    fuzz(tmp_path, tensors, range(1000, 7000))


COMMAND_LINES = {
    "no folder": (lambda f: f.joinpath("config.json").unlink(), "No such file or directory"),
    "no JSON": (lambda f: f.joinpath("config.json").write_text("{"), "is not JSON"),
    "no text": (lambda f: f.joinpath("config.json").write_bytes(b"\xff\xfe"), "is not JSON"),
    "a wrong field": (lambda f: write(f, {}, rms_norm_eps="abc"), "rms_norm_eps must be a number above 0, got 'abc'"),
    "no weights": (lambda f: f.joinpath("model.safetensors").unlink(), "holds neither"),
    "no tensors": (lambda f: write(f, {}), "does not fit the model: missing: "),
    "damaged weights": (lambda f: f.joinpath("model.safetensors").write_bytes(b"\0" * 99), "cannot be read"),
    "an index that leaves": (lambda f: write_index(f, {"lm_head.weight": "/dev/zero"}), "of this folder itself"),
    "a wrong generation config": (
        lambda f: f.joinpath("generation_config.json").write_text('{"top_p": 2}'),
        "generation_config.json: top_p must be a number above 0 and at most 1, got 2",
    ),
    "too few tokens": (lambda f: None, "--model must know the 256 bytes as tokens, got 40 tokens"),
}


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_the_demo_ends_in_one_line(tmp_path, tensors, capsys, case):
    damage, message = COMMAND_LINES[case]
    write(tmp_path, tensors)
    damage(tmp_path)
    assert demo.main(["--model", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("swa_attn demo: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("command", [["demo"], ["replay", "a_trace.jsonl"]], ids=lambda command: command[0])
@pytest.mark.parametrize(
    "text", ["{", "[]", '{"hidden_size": NaN}', "[" * 100_000, '{"\\ud800\\n": 1}', json.dumps(CONFIG)[:-9]]
)
def test_commands_that_read_a_model_end_in_one_line(tmp_path, capsys, command, text):
    (tmp_path / "config.json").write_text(text)
    assert main([*command, "--model", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"swa_attn {command[0]}: ") and err.count("\n") == 1
    assert "config.json" in err
