"""Lines that choose each in their own way, side by side as alone; draws, penalties and beams are Hugging Face's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import ALL, network_of
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from luthier.errors import LuthierError
from luthier.weights.generate import GeneratedTokens, generate
from luthier.weights.model import Model
from luthier.weights.sample import (
    BeamSearch,
    SamplingParameters,
    StreamedPrompt,
    beam_search,
    generate_streaming,
    token_log_probabilities,
)

PAD, EOS, POSITIONS = 3, 0, 64
CHOICES = [
    SamplingParameters(),
    SamplingParameters(seed=7),
    SamplingParameters(seed=7, temperature=0.7, top_k=40, top_p=0.9),
    SamplingParameters(repetition_penalty=1.8),
    SamplingParameters(no_repeat_ngram_size=2),
    SamplingParameters(seed=2, temperature=1.5, repetition_penalty=1.3, no_repeat_ngram_size=3),
    SamplingParameters(seed=8, top_p=0.5),
]


def model_of(architecture: str, seed: int = 1) -> Model:
    return Model(network_of(architecture, seed=seed, positions=POSITIONS), torch.float32, torch.device("cpu"))


def prompts_of(lengths: Sequence[int]) -> list[list[int]]:
    torch.manual_seed(5)
    return [torch.randint(4, 320, (length,)).tolist() for length in lengths]


def run(model: Model, prompts: Sequence[list[int]], choices: Sequence[SamplingParameters], rooms: Sequence[int],
        stops: Sequence[int] = (EOS,)) -> list[list[int]]:  # fmt: skip
    """The tokens that each line was told, its stop token with them."""
    told: list[list[int]] = [[] for _ in prompts]

    def taker(place: int) -> Any:
        def take(token: int, score: float) -> bool:
            told[place].append(token)
            return token not in stops

        return take

    lines = [StreamedPrompt(prompt=prompt, max_new_tokens=room, sampling=choice, on_token=taker(place))
             for place, (prompt, room, choice) in enumerate(zip(prompts, rooms, choices, strict=True))]  # fmt: skip
    generate_streaming(model, lines, PAD)
    return told


@pytest.mark.parametrize("architecture", ALL)
def test_every_line_is_as_alone_whatever_stands_beside_it(architecture: str) -> None:
    model = model_of(architecture)
    prompts = prompts_of([9, 1, 23, 4, 17, 12, 30])
    rooms = [12, 3, 9, 12, 1, 10, 8]
    together = run(model, prompts, CHOICES, rooms)
    alone = [run(model, [prompt], [choice], [room])[0]
             for prompt, choice, room in zip(prompts, CHOICES, rooms, strict=True)]  # fmt: skip
    assert together == alone
    assert all(len(ids) <= room for ids, room in zip(together, rooms, strict=True))
    assert any(len(ids) == room for ids, room in zip(together, rooms, strict=True))


@pytest.mark.parametrize("architecture", ALL)
def test_greedy_lines_are_what_generate_says(architecture: str) -> None:
    model = model_of(architecture)
    prompts = prompts_of([9, 1, 23, 4])
    told = run(model, prompts, [SamplingParameters()] * 4, [12] * 4, stops=[EOS, 9])
    found = generate(model, prompts, stop_ids=[EOS, 9], pad_id=PAD, max_new_tokens=12)
    assert [
        GeneratedTokens(ids[:-1], False) if ids[-1] in (EOS, 9) else GeneratedTokens(ids, True) for ids in told
    ] == found


@pytest.mark.parametrize("architecture", ["llama", "t5"])
@pytest.mark.parametrize(
    "choice", [SamplingParameters(repetition_penalty=1.8), SamplingParameters(no_repeat_ngram_size=2)]
)
def test_penalties_are_hugging_faces(architecture: str, choice: SamplingParameters) -> None:
    model = model_of(architecture)
    (prompt,) = prompts_of([14])
    network: Any = model.hf_model
    ids = torch.tensor([prompt])
    expected = network.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=None,
        pad_token_id=PAD, repetition_penalty=choice.repetition_penalty,
        no_repeat_ngram_size=choice.no_repeat_ngram_size,
    )[0].tolist()  # fmt: skip
    before = 1 if model.is_encoder_decoder else len(prompt)
    (told,) = run(model, [prompt], [choice], [24], stops=())
    assert told == expected[before:]
    assert told != run(model, [prompt], [SamplingParameters()], [24], stops=())[0]


def test_draws_follow_the_probabilities_that_hugging_face_draws_from() -> None:
    model = model_of("llama")
    (prompt,) = prompts_of([6])
    with torch.no_grad():
        scores = model.hf_model(input_ids=torch.tensor([prompt])).logits[:, -1].double()
    warpers: Any = LogitsProcessorList([TemperatureLogitsWarper(0.8), TopKLogitsWarper(6), TopPLogitsWarper(0.8)])
    expected = warpers(torch.tensor([prompt]), scores).softmax(-1)[0]
    many = 1500
    choices = [SamplingParameters(seed=seed, temperature=0.8, top_k=6, top_p=0.8) for seed in range(many)]
    counts = Counter(ids[0] for ids in run(model, [prompt] * many, choices, [1] * many))
    assert set(counts) == set(expected.nonzero()[:, 0].tolist())
    assert len(counts) > 1
    for token, count in counts.items():
        share = float(expected[token])
        assert count / many == pytest.approx(share, abs=4 * (share * (1 - share) / many) ** 0.5)


def test_the_lower_the_temperature_the_greedier() -> None:
    model = model_of("llama")
    prompts = prompts_of([6, 9])
    greedy = run(model, prompts, [SamplingParameters()] * 2, [10] * 2)
    for low in (1e-4, 1e-30, 5e-324):
        assert run(model, prompts, [SamplingParameters(seed=1, temperature=low)] * 2, [10] * 2) == greedy
    assert run(model, prompts, [SamplingParameters(seed=1)] * 2, [10] * 2) != greedy
    assert run(model, prompts, [SamplingParameters(seed=1, top_k=1)] * 2, [10] * 2) == greedy


def test_a_seed_is_a_text_and_leaves_other_draws_alone() -> None:
    model = model_of("llama")
    (prompt,) = prompts_of([6])
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    texts = [run(model, [prompt], [SamplingParameters(seed=seed)], [8])[0] for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mpt", "bloom"])
def test_log_likelihood_is_the_models_own(architecture: str) -> None:
    model = model_of(architecture)
    prompt, answer = prompts_of([9, 4])
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        own = model.hf_model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    expected = own[:-1].gather(-1, ids[0, 1:, None])[:, 0].tolist()
    before, after = token_log_probabilities(model, prompt, answer)
    assert [*before, *after] == pytest.approx(expected, abs=1e-4)
    assert (len(before), len(after)) == (8, 4)
    assert token_log_probabilities(model, prompt)[0] == pytest.approx(before, abs=1e-5)
    assert token_log_probabilities(model, prompt[:1]) == ([], [])


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_lines_are_told_the_models_own_log_probabilities(architecture: str) -> None:
    model = model_of(architecture)
    prompts = prompts_of([9, 5])
    said: list[list[tuple[int, float]]] = [[], []]

    def taker(place: int) -> Any:
        def take(token: int, score: float) -> bool:
            said[place].append((token, score))
            return True

        return take

    choices = [SamplingParameters(), SamplingParameters(seed=3, temperature=2.0, repetition_penalty=1.5)]
    generate_streaming(
        model,
        [
            StreamedPrompt(
                prompt=prompts[n], max_new_tokens=6, sampling=choices[n], on_token=taker(n), with_log_probabilities=True
            )
            for n in range(2)
        ],
        PAD,
    )
    for prompt, answer in zip(prompts, said, strict=True):
        _, expected = token_log_probabilities(model, prompt, [token for token, _ in answer])
        assert [score for _, score in answer] == pytest.approx(expected, abs=1e-4)


def beam(
    model: Model, prompt: list[int], room: int, beams: BeamSearch, choice: SamplingParameters | None = None
) -> list[GeneratedTokens]:
    return beam_search(model, prompt, room, choice or SamplingParameters(), beams, stop_ids=[EOS], pad_id=PAD)


@pytest.mark.parametrize("architecture", ["llama", "t5", "gpt_neox"])
def test_beams_are_hugging_faces(architecture: str) -> None:
    model = model_of(architecture)
    for prompt in prompts_of([9, 3]):
        assert beam(model, prompt, 8, BeamSearch(4)) == generate(
            model, [prompt], stop_ids=[EOS], pad_id=PAD, max_new_tokens=8, beams=4
        )
        several = beam(model, prompt, 8, BeamSearch(4, num_return_sequences=3))
        assert several[:1] == beam(model, prompt, 8, BeamSearch(4))
        assert len({tuple(answer.ids) for answer in several}) == 3


def test_what_a_choice_says_holds_for_beams_too() -> None:
    model = model_of("llama", seed=4)
    (prompt,) = prompts_of([9])
    plain = beam(model, prompt, 16, BeamSearch(3))
    assert beam(model, prompt, 16, BeamSearch(3), SamplingParameters(no_repeat_ngram_size=2)) != plain
    assert beam(model, prompt, 16, BeamSearch(3), SamplingParameters(repetition_penalty=2.0)) != plain
    drawn = [
        beam(model, prompt, 16, BeamSearch(3), SamplingParameters(seed=seed, temperature=3.0)) for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_early_stopping_ends_a_search_sooner() -> None:
    """Among some prompts there is one whose first ended candidates are not the likeliest in the end."""
    model = model_of("llama")
    prompts = prompts_of([4, 6, 9, 12, 7, 15, 3, 8])
    stops = [EOS, *range(4, 60)]
    found = [
        [
            beam_search(
                model, prompt, 12, SamplingParameters(), BeamSearch(3, early_stopping=early), stop_ids=stops, pad_id=PAD
            )
            for early in (False, True)
        ]
        for prompt in prompts
    ]
    assert any(patient != early for patient, early in found)


def test_broken_weights_are_said() -> None:
    model = model_of("llama")
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    with pytest.raises(LuthierError, match="scores are not numbers"):
        run(model, prompts_of([3]), [SamplingParameters()], [2])
