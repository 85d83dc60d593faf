"""What a request may be: everything is checked when it is added, and a refusal harms nobody."""

import math
from array import array

import numpy as np
import pytest
import torch
from chain_model import ChainModel

from swa_attn.runner import Engine, FinishReason, SamplingParams
from swa_attn.runner.scheduler import RequestTooLarge

VOCAB = 61
PROMPT = [5, 0, 60, 7]
PARAMS = SamplingParams(max_tokens=4)


class StatingModel(ChainModel):
    vocab_size = VOCAB
    max_position_embeddings = 40


def make_engine(model=StatingModel, **options) -> Engine:
    built = model((None, 9))
    return Engine(built, built.groups, page_size=4, num_pages={"full": 100, "swa9": 100}, **options)


GOOD = {
    "list": PROMPT,
    "tuple": tuple(PROMPT),
    "bytes": bytes(PROMPT),
    "bytearray": bytearray(PROMPT),
    "numpy int64": np.array(PROMPT),
    "numpy uint8": np.array(PROMPT, np.uint8),
    "numpy integers in a list": [np.int32(t) for t in PROMPT],
    "array": array("i", PROMPT),
    "memoryview": memoryview(bytes(PROMPT)),
    "int64 tensor": torch.tensor(PROMPT),
    "int32 tensor": torch.tensor(PROMPT, dtype=torch.int32),
    "strided tensor": torch.tensor([PROMPT, PROMPT]).T[:, 1],
}


@pytest.mark.parametrize("prompt", GOOD.values(), ids=GOOD)
def test_every_way_to_write_a_prompt_gives_the_same_answer(prompt):
    expected = make_engine().generate([PROMPT], PARAMS)[0].tokens
    engine = make_engine()
    assert engine.generate([prompt], PARAMS)[0].tokens == expected
    assert [*engine.stream(prompt, PARAMS)] == expected


def test_a_range_is_a_prompt_up_to_the_vocabulary():
    engine = make_engine(context_limit=100)
    assert engine.generate([range(VOCAB)], PARAMS)[0].tokens == engine.generate([[*range(VOCAB)]], PARAMS)[0].tokens
    with pytest.raises(ValueError, match=r"prompt\[61\] must be a token id from 0 to 60, got 61"):
        engine.add_request(range(VOCAB + 1))
    for endless in (range(10**12), range(10**30)):
        with pytest.raises(RequestTooLarge, match=f"a prompt of {endless.stop} tokens"):
            engine.add_request(endless)


BAD = {
    "at the vocabulary": ([1, 2, 61], ValueError, r"prompt\[2\] must be a token id from 0 to 60, got 61"),
    "huge": ([3, 5279552648203111001], ValueError, r"prompt\[1\] must be .* got 5279552648203111001"),
    "negative": ([4, -1], ValueError, r"prompt\[1\] must be a token id from 0 to 60, got -1"),
    "beyond int64": ([5, 2**70], ValueError, r"prompt\[1\] must be a token id"),
    "numpy beyond int64": (np.array([1, 2**64 - 1], np.uint64), ValueError, r"prompt\[1\] must be a token id"),
    "bytes above": (bytes([1, 200]), ValueError, r"prompt\[1\] must be a token id from 0 to 60, got 200"),
    "string": ("hello", TypeError, r"prompt must be a sequence of token ids, got 'hello' \(str\)"),
    "strings": (["a"], TypeError, r"prompt\[0\] must be an integer, got 'a' \(str\)"),
    "floats": ([1, 2.0], TypeError, r"prompt\[1\] must be an integer, got 2\.0 \(float\)"),
    "nan": ([math.nan], TypeError, r"prompt\[0\] must be an integer, got nan"),
    "bools": ([1, True], TypeError, r"prompt\[1\] must be an integer, got True \(bool\)"),
    "numpy bools": ([np.True_], TypeError, r"prompt\[0\] must be an integer"),
    "None inside": ([1, None], TypeError, r"prompt\[1\] must be an integer, got None"),
    "nested": ([[1, 2]], TypeError, r"prompt\[0\] must be an integer, got \[1, 2\] \(list\)"),
    "tensors inside": ([torch.tensor(1)], TypeError, r"prompt\[0\] must be an integer, got tensor"),
    "None": (None, TypeError, "prompt must be a sequence of token ids, got None"),
    "a number": (7, TypeError, "prompt must be a sequence of token ids, got 7"),
    "a set": ({1, 2}, TypeError, "prompt must be a sequence of token ids"),
    "a dict": ({1: 2}, TypeError, "prompt must be a sequence of token ids"),
    "a generator": ((t for t in [1]), TypeError, "prompt must be a sequence of token ids"),
    "2-D tensor": (torch.ones(1, 3).long(), ValueError, r"prompt must have one dimension, got shape \[1, 3\]"),
    "0-D tensor": (torch.tensor(3), ValueError, r"prompt must have one dimension, got shape \[\]"),
    "2-D array": (np.ones((2, 2), int), ValueError, r"prompt must have one dimension, got shape \[2, 2\]"),
    "float tensor": (torch.ones(3), TypeError, "prompt must hold integers, got torch.float32"),
    "bool tensor": (torch.ones(3, dtype=torch.bool), TypeError, "prompt must hold integers, got torch.bool"),
    "float array": (np.ones(3), TypeError, "prompt must hold integers, got float64"),
    "bool array": (np.ones(3, bool), TypeError, "prompt must hold integers, got bool"),
    "object array": (np.array([1, None]), TypeError, "prompt must hold integers, got object"),
    "nothing": ([], ValueError, "tokens must hold at least one token, got none"),
    "an empty tensor": (torch.empty(0, dtype=torch.int64), ValueError, "tokens must hold at least one token"),
    "an empty array": (np.empty(0, int), ValueError, "tokens must hold at least one token"),
    "an empty range": (range(5, 5), ValueError, "tokens must hold at least one token"),
}  # fmt: skip


@pytest.mark.parametrize(("prompt", "kind", "message"), BAD.values(), ids=BAD)
def test_what_is_no_prompt_is_refused_and_the_one_beside_it_does_not_notice(prompt, kind, message):
    expected = make_engine().generate([PROMPT], PARAMS)[0].tokens
    engine = make_engine()
    other = engine.add_request(PROMPT, PARAMS)
    for add in (engine.add_request, engine.stream):
        with pytest.raises(kind, match=message) as error:
            add(prompt, PARAMS)
        assert "\n" not in str(error.value)
    with pytest.raises(kind, match=message.replace("prompt", r"prompts\[1\]").replace("promptss", "prompts")):
        engine.generate([PROMPT, prompt], PARAMS)
    assert list(engine._requests) == [other]
    while engine.has_work:
        engine.step()
    assert engine.take(other).tokens == expected


def test_generate_names_what_is_no_list_of_prompts():
    engine = make_engine()
    with pytest.raises(TypeError, match=r"prompts must be prompts of token ids, got 'hello' \(str\)"):
        engine.generate("hello")
    with pytest.raises(TypeError, match=r"prompts\[0\] must be a sequence of token ids, got 1 \(int\)"):
        engine.generate([1, 2])
    with pytest.raises(TypeError, match=r"stream must be callable or None, got 5 \(int\)"):
        engine.generate([PROMPT], stream=5)
    with pytest.raises(TypeError, match=r"params\[1\] must be SamplingParams or None, got 'x'"):
        engine.generate([PROMPT, PROMPT], [PARAMS, "x"])
    assert engine.generate([]) == [] and engine.model.num_forwards == 0 and not engine.has_work


def test_a_model_that_states_nothing_limits_nothing():
    engine = make_engine(ChainModel)
    (completion,) = engine.generate([[10**9, 2**62, *range(60)]], PARAMS)
    assert completion.finish_reason is FinishReason.LENGTH
    with pytest.raises(ValueError, match=r"prompt\[0\] must be a token id from 0 to 9223372036854775807, got 92233"):
        engine.add_request([2**63])
    limited = make_engine(ChainModel, vocab_size=8, context_limit=6)
    with pytest.raises(ValueError, match="from 0 to 7, got 8"):
        limited.add_request([8], PARAMS)
    with pytest.raises(RequestTooLarge):
        limited.add_request([7] * 4, PARAMS)


@pytest.mark.parametrize("overridden", [None, 10])
def test_the_last_position_of_the_model_can_be_used_and_none_behind_it(overridden):
    limit = overridden or 40
    engine = make_engine(context_limit=overridden)
    (completion,) = engine.generate([[1] * (limit - 3)], PARAMS)  # the last of 4 new tokens is not computed on
    assert len(completion.tokens) == 4
    with pytest.raises(RequestTooLarge, match=f"needs {limit + 1} positions, and the model has {limit}"):
        engine.add_request([1] * (limit - 2), PARAMS)
    (whole,) = engine.generate([[1] * limit], SamplingParams(max_tokens=1))
    assert len(whole.tokens) == 1


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"vocab_size": 0}, ValueError, "vocab_size must be at least 1, got 0"),
        ({"vocab_size": 2.5}, TypeError, "vocab_size must be an integer or None, got 2.5"),
        ({"context_limit": -1}, ValueError, "context_limit must be at least 1, got -1"),
        ({"context_limit": True}, TypeError, "context_limit must be an integer or None, got True"),
        ({"max_tokens_per_step": 2.5}, TypeError, "max_tokens_per_step must be an integer, got 2.5"),
        ({"max_num_seqs": "8"}, TypeError, "max_num_seqs must be an integer, got '8'"),
        ({"eos_token_ids": 5}, TypeError, "eos_token_ids must be an iterable of token ids, got 5"),
        ({"eos_token_ids": [1, 2.0]}, TypeError, r"eos_token_ids\[1\] must be an integer, got 2.0"),
        ({"dtype": torch.float8_e4m3fn}, ValueError, "dtype must be float32, bfloat16 or float16, got torch.float8_e4m3fn"),
        ({"dtype": torch.float64}, ValueError, "dtype must be float32, bfloat16 or float16, got torch.float64"),
    ],
    ids=str,
)  # fmt: skip
def test_the_engine_s_own_arguments_are_checked(options, kind, message):
    with pytest.raises(kind, match=message):
        make_engine(**options)


@pytest.mark.parametrize("salt", [None, 5, b"team", ["a"]])
def test_a_salt_is_a_string(salt):
    with pytest.raises(TypeError, match="salt must be a string, got"):
        make_engine().add_request(PROMPT, salt=salt)


def test_the_prompt_is_the_engine_s_own_once_it_is_added():
    expected = make_engine().generate([PROMPT], PARAMS)[0].tokens
    for prompt in (list(PROMPT), torch.tensor(PROMPT), np.array(PROMPT)):
        engine = make_engine()
        stream = engine.stream(prompt, PARAMS)
        prompt[1] = 9
        assert [*stream] == expected
