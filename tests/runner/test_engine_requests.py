"""What a request may be: everything is checked when it is added, and a refusal harms nobody."""

import itertools
import math
from array import array
from collections.abc import Sequence

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
    return Engine(built, built.groups, **{"page_size": 4, "num_pages": {"full": 100, "swa9": 100}, **options})


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
    "memoryview, big-endian": memoryview(np.array(PROMPT, ">i4")),
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


class Lying(Sequence):
    """Its length has nothing to do with what it yields."""

    def __init__(self, length, values):
        self.length, self.values = length, values

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        raise AssertionError("not indexed")

    def __iter__(self):
        return iter(self.values)


class Lines:
    def __repr__(self):
        return "two\nlines"


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
BAD |= {
    "2-D memoryview": (
        memoryview(np.ones((2, 3), np.uint8)),
        ValueError,
        r"prompt must have one dimension, got shape \[2, 3\]",
    ),
    "0-D memoryview": (memoryview(np.array(3)), ValueError, r"prompt must have one dimension, got shape \[\]"),
    "float memoryview": (memoryview(np.ones(3)), TypeError, "prompt must hold integers, got float64"),
    "meta tensor": (
        torch.ones(3, dtype=torch.int64, device="meta"),
        TypeError,
        "prompt must be a dense tensor with values, got one on the meta device",
    ),
    "sparse tensor": (
        torch.ones(3).long().to_sparse(),
        TypeError,
        "prompt must be a dense tensor with values, got one of layout torch.sparse_coo",
    ),
    "longer than it says": (
        Lying(2, [1] * 500),
        ValueError,
        "prompt must hold as many token ids as its length says, 2, got more",
    ),
    "endless": (
        Lying(2, itertools.repeat(1)),
        ValueError,
        "prompt must hold as many token ids as its length says, 2, got more",
    ),
    "shorter than it says": (
        Lying(3, [1, 2]),
        ValueError,
        "prompt must hold as many token ids as its length says, 3, got 2",
    ),
    "empty but says 3": (Lying(3, []), ValueError, "prompt must hold as many token ids as its length says, 3, got 0"),
    "too long to write": (
        [1, 10**5000],
        ValueError,
        r"prompt\[1\] must be a token id from 0 to 60, got an integer of 16610 bits",
    ),
    "too long to write, negative": (
        [-(10**5000)],
        ValueError,
        r"prompt\[0\] must be a token id .* got an integer of 16610 bits",
    ),
    "a range too long to write": (
        range(10**5000),
        RequestTooLarge,
        "of an integer of 16610 bits tokens .* and the model has 40",
    ),
    "lines": ([Lines()], TypeError, r"prompt\[0\] must be an integer, got two lines \(Lines\)"),
}


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


TOO_MUCH = [1] * 50
NAMED = {
    "prompts None": ((None,), TypeError, "prompts must be prompts of token ids, got None (NoneType)"),
    "prompts 5": ((5,), TypeError, "prompts must be prompts of token ids, got 5 (int)"),
    "params 5": (([[1]], 5), TypeError, "params must be SamplingParams or None, or one per prompt, got 5 (int)"),
    "params too few": (([[1], [2]], [PARAMS]), ValueError, "params must be one, or one per prompt: 1 for 2"),
    "params[1]": (([[1], [2]], [PARAMS, 5]), TypeError, "params[1] must be SamplingParams or None, got 5 (int)"),
    "beyond the model": (
        ([[1], TOO_MUCH], PARAMS),
        RequestTooLarge,
        "prompts[1]: a prompt of 50 tokens with max_tokens=4 needs 53 positions, and the model has 40",
    ),
    "the only prompt": (([[1, 61]],), ValueError, "prompts[0][1] must be a token id from 0 to 60, got 61"),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), NAMED.values(), ids=NAMED)
def test_generate_says_which_argument_is_wrong(arguments, kind, message):
    engine = make_engine()
    with pytest.raises(kind) as error:
        engine.generate(*arguments)
    assert str(error.value) == f"Engine.generate: {message}" and not engine.has_work


def test_what_prompts_raise_themselves_is_left_alone():
    def prompts():
        yield PROMPT
        raise TypeError("of its own")

    with pytest.raises(TypeError, match=r"^of its own$"):
        make_engine().generate(prompts())


def test_a_prompt_beyond_the_cache_is_named():
    engine = make_engine(ChainModel, num_pages={"full": 5, "swa9": 5})
    with pytest.raises(RequestTooLarge, match=r"^Engine.generate: prompts\[1\]: a prompt of 50 tokens .* does not fit"):
        engine.generate([[1], TOO_MUCH])
    with pytest.raises(RequestTooLarge, match=r"^Engine.stream: prompt: a prompt of 50 tokens .* does not fit"):
        engine.stream(TOO_MUCH)
    with pytest.raises(RequestTooLarge, match=r"^Engine.add_request: prompt: a prompt of 1 tokens .* does not fit"):
        engine.add_request([1], SamplingParams(max_tokens=2**63 - 1))


def test_errors_name_the_call_that_was_made():
    engine = make_engine()
    calls = {
        "add_request": engine.add_request,
        "stream": engine.stream,
        "generate": lambda p, *a, **k: engine.generate([p], *a, **k),
    }
    for call, ask in calls.items():
        with pytest.raises(TypeError, match=rf"^Engine.{call}: salt must be a string, got 5 \(int\)$"):
            ask(PROMPT, salt=5)
    for call in ("add_request", "stream"):
        with pytest.raises(TypeError, match=rf"^Engine.{call}: params must be SamplingParams or None, got 5 \(int\)$"):
            calls[call](PROMPT, 5)
        with pytest.raises(TypeError, match=rf"^Engine.{call}: prompt must be a sequence of token ids, got 5 \(int\)$"):
            calls[call](5)


def test_an_id_of_no_request_is_named():
    engine = make_engine()
    running = engine.add_request(PROMPT, PARAMS)
    for call, state, request_id in (
        ("cancel", "unfinished", 99),
        ("take", "finished", 99),
        ("take", "finished", running),
        ("cancel", "unfinished", np.int64(-1)),
    ):
        with pytest.raises(KeyError) as error:
            getattr(engine, call)(request_id)
        assert error.value.args == (f"Engine.{call}: no {state} request {request_id}",)
    for call in (engine.cancel, engine.take):
        for wrong in ([], "0", None, 0.0, False):
            with pytest.raises(TypeError, match="request_id must be an integer, got"):
                call(wrong)
    assert engine.cancel(np.int8(running)).finish_reason is FinishReason.CANCELLED


def test_numpy_integers_become_python_s():
    expected = make_engine().generate([PROMPT * 5], PARAMS)[0].tokens
    engine = make_engine(
        page_size=np.int8(16),
        num_pages={"full": np.uint8(200), "swa9": np.uint8(200)},
        max_tokens_per_step=np.int8(8),
        max_num_seqs=np.int8(100),
        context_limit=np.uint8(40),
        vocab_size=np.int8(61),
        enable_prefix_cache=np.True_,
    )
    kept = (
        engine.cache.page_size,
        *(pool.num_pages for pool in engine.cache.pools.values()),
        engine.scheduler.max_tokens_per_step,
        engine.scheduler.max_num_seqs,
        engine._limits.context,
        engine._limits.vocab_size,
    )
    assert kept == (16, 200, 200, 8, 100, 40, 61) and {*map(type, kept)} == {int}
    assert [c.tokens for c in engine.generate([PROMPT * 5] * 20, PARAMS)] == [expected] * 20
    by_bytes = make_engine(
        num_pages=None, cache_bytes=np.int32(2**31 - 1), page_size=np.int16(4), max_num_seqs=np.int8(8)
    )
    assert by_bytes.generate([PROMPT * 5], PARAMS)[0].tokens == expected


def by_bytes(cache_bytes=1 << 20, **options):
    return {"num_pages": None, "cache_bytes": cache_bytes, **options}


OPTIONS = {
    "cache_bytes of text": (by_bytes("x"), TypeError, "cache_bytes must be an integer, got 'x' (str)"),
    "cache_bytes of float": (by_bytes(1.5e6), TypeError, "cache_bytes must be an integer, got 1500000.0 (float)"),
    "cache_bytes of bool": (by_bytes(True), TypeError, "cache_bytes must be an integer, got True (bool)"),
    "cache_bytes 0": (by_bytes(0), ValueError, "cache_bytes must be at least 1, got 0"),
    "max_num_seqs": (by_bytes(max_num_seqs="64"), TypeError, "max_num_seqs must be an integer, got '64' (str)"),
    "max_tokens_per_step": (
        by_bytes(max_tokens_per_step=None),
        TypeError,
        "max_tokens_per_step must be an integer, got None (NoneType)",
    ),
    "page_size": (by_bytes(page_size=0), ValueError, "page_size must be at least 1, got 0"),
    "page_size too long to write": (
        {"page_size": -(10**5000)},
        ValueError,
        "page_size must be at least 1, got an integer of 16610 bits",
    ),
    "num_pages a list": ({"num_pages": [1]}, TypeError, "num_pages must be pages by names of groups, got [1] (list)"),
    "num_pages of -1": (
        {"num_pages": {"full": 4, "swa9": -1}},
        ValueError,
        "num_pages['swa9'] must be at least 1, got -1",
    ),
    "num_pages of float": (
        {"num_pages": {"full": 4.0, "swa9": 1}},
        TypeError,
        "num_pages['full'] must be an integer, got 4.0 (float)",
    ),
    "both": (
        by_bytes(5, num_pages={"full": 1}),
        ValueError,
        "give one of num_pages and cache_bytes, got num_pages={'full': 1}, cache_bytes=5",
    ),
    "policy": ({"policy": 5}, TypeError, "policy must be SnapshotPolicy or None, got 5 (int)"),
    "planner": ({"planner": 5}, TypeError, "planner must be Planner or None, got 5 (int)"),
    "falsy planner": ({"planner": 0}, TypeError, "planner must be Planner or None, got 0 (int)"),
    "lower": ({"lower": 5}, TypeError, "lower must be LowerTiers or None, got 5 (int)"),
    "enable_prefix_cache": (
        {"enable_prefix_cache": "no"},
        TypeError,
        "enable_prefix_cache must be True or False, got 'no' (str)",
    ),
    "vocab_size": ({"vocab_size": "abc"}, TypeError, "vocab_size must be an integer or None, got 'abc' (str)"),
}


@pytest.mark.parametrize(("options", "kind", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options_are_checked_before_anything_is_computed_of_them(options, kind, message):
    with pytest.raises(kind) as error:
        make_engine(**options)
    assert str(error.value) == f"Engine: {message}"


def test_a_bad_secret_s_error_says_whose_it_is():
    with pytest.raises(TypeError, match=r"^KVCache: hash_key: expected bytes or None, got str$"):
        make_engine(hash_key="a" * 16)


@pytest.mark.parametrize("attribute", ["vocab_size", "max_position_embeddings"])
@pytest.mark.parametrize(
    ("value", "kind", "expected"), [("abc", TypeError, "an integer or None"), (0, ValueError, "at least 1")]
)
def test_what_the_model_states_is_named_as_the_model_s(attribute, value, kind, expected):
    model = type("Wrong", (StatingModel,), {attribute: value})
    with pytest.raises(kind, match=f"^Engine: model.{attribute} must be {expected}, got {value!r}"):
        make_engine(model)
    argument = {"vocab_size": "vocab_size", "max_position_embeddings": "context_limit"}[attribute]
    make_engine(model, **{argument: 40})  # given, so that what the model states does not count


def test_a_cause_of_several_lines_is_one_in_a_completion(monkeypatch):
    engine = make_engine()
    ended = engine.add_request(PROMPT, PARAMS)

    def torn(*_):
        raise RuntimeError("first line\n  second line")

    monkeypatch.setattr(engine.scheduler, "schedule", torn)
    with pytest.raises(RuntimeError, match="first line"):
        engine.step()
    monkeypatch.undo()
    error = engine.take(ended).error
    assert "RuntimeError(first line second line)" in error and "\n" not in error


def test_a_prompt_s_own_code_runs_before_the_turn():
    """It may use the engine, and takes its time alone."""
    engine = make_engine()

    class Asking(Lying):
        def __iter__(self):
            engine.stats()
            return super().__iter__()

    expected = make_engine().generate([PROMPT], PARAMS)[0].tokens
    assert engine.generate([Asking(4, PROMPT)], PARAMS)[0].tokens == expected


def test_a_prompt_is_checked_again_if_the_model_changed_meanwhile():
    engine = make_engine()

    class Smaller(StatingModel):
        vocab_size = 60

    class Changing(Lying):
        def __iter__(self):
            engine.update_weights(Smaller((None, 9)))
            return super().__iter__()

    with pytest.raises(ValueError, match=r"^Engine.add_request: prompt\[2\] must be a token id from 0 to 59, got 60"):
        engine.add_request(Changing(4, PROMPT), PARAMS)
    assert not engine.has_work


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
