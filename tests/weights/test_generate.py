"""Batched greedy answers are Hugging Face's own, one prompt at a time, token for token.

The networks are random with initializer_range 0.1: the two likeliest tokens differ by far more than float noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import ALL, ARCHITECTURES, network_of

from luthier.layers.kv_cache import CacheSlots
from luthier.layers.module_readers import UnsupportedModuleError
from luthier.weights import greedy
from luthier.weights.generate import GeneratedTokens, generate
from luthier.weights.lora import Adapter, attach_adapter
from luthier.weights.lora_targets import linear_layer_names
from luthier.weights.model import Model
from luthier.weights.row_limit import RowLimit

PAD = 3
POSITIONS = 48


def model_of(architecture: str, adapted: bool = False) -> Model:
    model = Model(network_of(architecture, seed=1, positions=POSITIONS), torch.float32, torch.device("cpu"))
    if not adapted:
        return model
    targets = linear_layer_names(model.hf_model)[:2]
    model = attach_adapter(model, Adapter(r=4, alpha=32, dropout=0.1, target_modules=targets), seed=0)
    torch.manual_seed(2)
    for name, parameter in model.trainable_parameters().items():
        if "lora_B" in name:  # zero at first: the adapter would change nothing
            torch.nn.init.normal_(parameter, std=0.2)
    model.network.eval()
    return model


def prompts_of(lengths: Sequence[int]) -> list[list[int]]:
    torch.manual_seed(5)
    return [torch.randint(4, 320, (length,)).tolist() for length in lengths]


def alone(model: Model, prompt: list[int], stop_ids: list[int], max_new_tokens: int, beams: int = 1) -> GeneratedTokens:
    """One prompt by Hugging Face's generate, within the context."""
    network: Any = model.network
    room = max_new_tokens if model.is_encoder_decoder else min(max_new_tokens, model.context_length - len(prompt))
    ids = torch.tensor([prompt])
    found = network.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False, num_beams=beams,
        eos_token_id=stop_ids, pad_token_id=PAD,
    )[0, 1 if model.is_encoder_decoder else len(prompt) :].tolist()  # fmt: skip
    if beams > 1:  # a beam search fills up what ended early
        found = found[: next((place + 1 for place, token in enumerate(found) if token in stop_ids), len(found))]
    return GeneratedTokens(found[:-1], False) if found[-1] in stop_ids else GeneratedTokens(found, True)


def ours(model: Model, prompts: list[list[int]], stop_ids: list[int], most: int, **more: Any) -> list[GeneratedTokens]:
    return generate(model, prompts, stop_ids=stop_ids, pad_id=PAD, max_new_tokens=most, **more)


def stops_of(model: Model, prompts: list[list[int]]) -> list[int]:
    """Tokens that some answers reach early and others late or never."""
    free = [alone(model, prompt, [0], 12).ids for prompt in prompts]
    seen = [{token: ids.index(token) for token in reversed(ids)} for ids in free]
    spread = {
        token: len({first.get(token, 12) for first in seen}) for ids in free for token in ids
        if any(token not in first for first in seen)
    }  # fmt: skip
    return [0, max(spread, key=lambda token: spread[token])]


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("architecture", ALL)
def test_a_batch_answers_as_each_prompt_alone(architecture: str, adapted: bool) -> None:
    model = model_of(architecture, adapted)
    prompts = prompts_of([9, 1, 23, 4, 17, 4, 30])
    stop_ids = stops_of(model, prompts)
    expected = [alone(model, prompt, stop_ids, 12) for prompt in prompts]
    assert len({len(answer.ids) for answer in expected}) > 1
    assert {answer.truncated for answer in expected} == {True, False}
    assert ours(model, prompts, stop_ids, 12, batch_size=4) == expected
    assert ours(model, prompts, stop_ids, 12) == expected


@pytest.mark.parametrize("architecture", ["t5", "llama", "gpt_neox"])
def test_beams_are_hugging_faces_own_and_find_other_answers(architecture: str) -> None:
    model = model_of(architecture)
    prompts = prompts_of([9, 3, 14, 6, 20, 8])
    expected = [alone(model, prompt, [0], 8, beams=4) for prompt in prompts]
    assert ours(model, prompts, [0], 8, beams=4) == expected
    assert ours(model, prompts, [0], 8) != expected


def test_the_adapter_changes_the_answers() -> None:
    prompts = prompts_of([5, 6])
    assert ours(model_of("llama"), prompts, [0], 8) != ours(model_of("llama", adapted=True), prompts, [0], 8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_long_prompt_shortens_no_other_answer(architecture: str) -> None:
    model = model_of(architecture)
    lengths = [POSITIONS - 1, 2, POSITIONS - 3, POSITIONS - 12, 20, POSITIONS - 3]
    prompts = prompts_of(lengths)
    found = ours(model, prompts, [0], 12)
    assert [len(answer.ids) for answer in found] == [1, 12, 3, 12, 12, 3]
    assert found == [alone(model, prompt, [0], 12) for prompt in prompts]


def test_no_room_no_token() -> None:
    found = ours(model_of("gpt2"), [*prompts_of([POSITIONS, POSITIONS + 5, 3]), []], [0], 4)
    assert [len(answer.ids) for answer in found] == [0, 0, 4, 0]
    assert all(answer.truncated for answer in found)


def test_a_stop_token_first_is_an_empty_answer() -> None:
    model = model_of("llama")
    (prompt,) = prompts_of([7])
    first = alone(model, prompt, [0], 1).ids[0]
    assert ours(model, [prompt], [first], 5) == [GeneratedTokens([], False)]


def test_the_base_models_own_generation_settings_do_not_apply() -> None:
    model = model_of("llama")
    prompts = prompts_of([6, 9])
    expected = [alone(model, prompt, [0], 10) for prompt in prompts]
    settings = model.hf_model.generation_config
    assert settings is not None
    settings.update(repetition_penalty=9.0, do_sample=True, temperature=3.0, eos_token_id=expected[0].ids[2])
    assert [alone(model, prompt, [0], 10) for prompt in prompts] != expected
    assert ours(model, prompts, [0], 10) == expected
    assert model.hf_model.generation_config is settings


def test_nothing_asked_nothing_answered() -> None:
    assert ours(model_of("llama"), [], [0], 4) == []


FAST = ("llama", "mistral", "gemma", "qwen2", "qwen3", "gpt_neox")


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("architecture", FAST)
def test_rows_that_come_and_go_answer_as_each_prompt_alone(architecture: str, adapted: bool) -> None:
    """More prompts than slots, of one token and of nearly the whole context, that end at different times."""
    model = model_of(architecture, adapted)
    assert not isinstance(model.cached_decoding_parts(), UnsupportedModuleError)
    prompts = prompts_of([1, 5, 30, 2, POSITIONS - 1, 11, 1, 40, 17, 3, POSITIONS - 4, 26, 8, 19])
    stop_ids = stops_of(model, [prompt for prompt in prompts if len(prompt) < 36])
    expected = [alone(model, prompt, stop_ids, 12) for prompt in prompts]
    assert len({len(answer.ids) for answer in expected}) > 4
    for slots in (1, 3, 16):
        assert ours(model, prompts, stop_ids, 12, batch_size=slots) == expected


@pytest.mark.parametrize("architecture", ALL)
def test_which_models_the_engines_own_layers_answer_for(architecture: str) -> None:
    assert isinstance(model_of(architecture).cached_decoding_parts(), UnsupportedModuleError) == (
        architecture not in FAST
    )


def test_a_model_in_training_or_with_angles_that_depend_on_the_length_goes_to_transformers() -> None:
    model = model_of("llama")
    model.network.train()
    assert "training" in str(model.cached_decoding_parts())
    model.network.eval()
    network: Any = model.hf_model
    network.base_model.rotary_emb.rope_type = "dynamic"
    assert "angles" in str(model.cached_decoding_parts())


@pytest.mark.parametrize("architecture", FAST)
def test_weights_left_where_they_are_give_the_same_answers(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = model_of(architecture, adapted=True), prompts_of([9, 1, 23, 30])
    expected = ours(model, prompts, [0], 12)
    monkeypatch.setattr(greedy, "PREPACKED_BYTES", 0)
    assert ours(model, prompts, [0], 12) == expected


def test_answers_that_do_not_fit_are_begun_again_fewer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = model_of("llama"), prompts_of([4, 30, 9, 14, 22, 7, 3])
    stop_ids = stops_of(model, prompts)
    expected = ours(model, prompts, stop_ids, 12)
    tried: list[int] = []
    real = CacheSlots.attend

    def attend(self: CacheSlots, *others: Any) -> torch.Tensor:
        tried.append(len(self.lengths))
        if len(self.lengths) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, *others)

    monkeypatch.setattr(CacheSlots, "attend", attend)
    said: list[str] = []
    limit = RowLimit(work="answering", say=said.append)
    assert ours(model, prompts, stop_ids, 12, batch_size=5, limit=limit) == expected
    assert limit.rows == 2
    assert max(tried) == 5
    assert len(said) == 2


def test_ranks_share_the_rows_and_get_all_answers() -> None:
    model, prompts = model_of("llama"), prompts_of([4, 30, 9, 14, 22])
    expected = ours(model, prompts, [0], 6)
    dealt: list[list[int]] = []

    class Shared(Model):
        world_size = 2

        def map(self, work: Any, items: Any) -> Any:
            dealt.extend(items)
            return map(work, items)

    shared = Shared(model.network, model.dtype, model.device)
    assert ours(shared, prompts, [0], 6) == expected
    assert sorted(map(len, dealt)) == [2, 3]
    assert ours(shared, prompts[:1], [0], 6) == expected[:1]


@pytest.mark.parametrize("architecture", FAST)
def test_in_bf16_almost_every_token_is_the_one_of_transformers(architecture: str) -> None:
    """Rounding may turn a near tie, and from there on an answer is another one: most must still be the same."""
    network: Any = network_of(architecture, seed=1, positions=POSITIONS)
    model = Model(network.to(torch.bfloat16), torch.bfloat16, torch.device("cpu"))
    prompts = prompts_of([9, 1, 23, 4, 17, 30])
    found = ours(model, prompts, [0], 6, batch_size=3)
    assert sum(answer == alone(model, prompt, [0], 6) for answer, prompt in zip(found, prompts, strict=True)) >= 3
