"""What a run leaves behind: it loads without Luthier, says where it comes from, and is packed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import EVERY_RUN, PROBE, FinishedRuns
from safetensors.torch import load_file
from tiny_models import CONTROLS, network_of
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from luthier.data.template import Template
from luthier.errors import UserError
from luthier.jobfolder import FORMAT_VERSION, PROVENANCE
from luthier.supervisor.archive import unpack
from luthier.weights.artifact import read_provenance, save_hf_model, write_archive
from luthier.weights.fingerprint import weights_hash

# What any user of transformers or peft would write; argv: a JSON object of name -> folder, and the file for logits.
PLAIN_LOADER = """
import json, sys, warnings
import torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import AutoPeftModelForCausalLM
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
folders, out, probe = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
found = {}
for name, folder in folders.items():
    adapter = (Path(folder) / "adapter_config.json").is_file()
    kind = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    model = kind.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": "cat"}]
    chat = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert chat == "<|im_start|>user\\ncat<|im_end|>\\n<|im_start|>assistant\\n", chat
    assert tokenizer.eos_token == "<|endoftext|>"
    with torch.no_grad():
        found[name] = model(input_ids=torch.tensor(probe), use_cache=False).logits.clone()
assert "luthier" not in sys.modules and not any(name.startswith("luthier.") for name in sys.modules)
save_file(found, out)
"""


def load_plainly(folders: dict[str, Path], scratch: Path) -> dict[str, Tensor]:
    """Logits of PROBE from folders loaded by transformers and peft in a process that never imports Luthier."""
    named = json.dumps({name: str(folder) for name, folder in folders.items()})
    out = scratch / "logits.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_LOADER, named, str(out), json.dumps(PROBE.tolist())],
        capture_output=True, text=True, check=False, cwd=scratch,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return load_file(out)


@pytest.fixture(scope="module")
def plain_logits(finished: FinishedRuns, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Of each run's model.tar.gz, unpacked."""
    scratch = tmp_path_factory.mktemp("plain")
    folders = {}
    for architecture, method in EVERY_RUN:
        name = f"{architecture}-{method}"
        folders[name] = scratch / name
        unpack(finished.get(architecture, method).folder.artifact, folders[name])
    return load_plainly(folders, scratch)


@pytest.mark.parametrize(("architecture", "method"), EVERY_RUN)
def test_the_archive_loads_plainly_and_is_the_trained_model(
    finished: FinishedRuns, plain_logits: dict[str, Tensor], architecture: str, method: str
) -> None:
    trained = finished.get(architecture, method).logits
    torch.testing.assert_close(plain_logits[f"{architecture}-{method}"], trained, rtol=0, atol=1e-6)


def test_training_changed_the_model(finished: FinishedRuns, tmp_path: Path) -> None:
    run = finished.get("llama", "lora")
    base = load_plainly({"base": run.base}, tmp_path)["base"]
    assert (base - run.logits).abs().max() > 0.01


@pytest.mark.parametrize(("architecture", "method"), EVERY_RUN)
def test_the_folder_holds_weights_tokenizer_and_provenance(
    finished: FinishedRuns, architecture: str, method: str
) -> None:
    run = finished.get(architecture, method)
    names = {path.name for path in run.folder.model.iterdir()}
    weights = {"adapter_model.safetensors", "adapter_config.json"} if method == "lora" else {
        "model.safetensors", "config.json", "generation_config.json"
    }  # fmt: skip
    texts = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "template.json", PROVENANCE}
    assert names == weights | texts
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (run.folder.model / name).read_bytes() == (run.base / name).read_bytes()
    if method == "none":
        assert json.loads((run.folder.model / "config.json").read_text())["use_cache"] is True


def test_the_archive_is_the_folder(finished: FinishedRuns, tmp_path: Path) -> None:
    folder = finished.get().folder
    unpack(folder.artifact, tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == {
        path.name: path.read_bytes() for path in folder.model.iterdir()
    }


def test_the_provenance_says_what_made_it(finished: FinishedRuns) -> None:
    run = finished.get()
    found = read_provenance(run.folder.model)
    rows = run.rows / "train.jsonl"
    assert found["data"]["files"] == {"training/train.jsonl": hashlib.sha256(rows.read_bytes()).hexdigest()}
    assert found["data"]["counts"]["total"]["rows"] == 24 if "total" in found["data"]["counts"] else True
    assert found["template"]["completion"] == "{response}"
    assert found["template"]["demarcation"] == "\n\n### Response:\n"
    assert found["settings"]["train_data_split_seed"] == 7
    assert found["settings"]["learning_rate"] == 0.05
    assert set(found["given"]) >= {"max_steps", "seed"}
    assert found["versions"].keys() >= {"luthier", "torch", "transformers", "peft", "tokenizers"}
    assert found["model"]["folder"] == str(run.base)
    assert found["model"]["weights_sha256"] == weights_hash(run.base)
    assert "revision" in found["model"]
    assert (found["steps"], found["kind"], found["dtype"]) == (3, "instruction", "float32")


def test_template_json_is_jumpstarts(finished: FinishedRuns) -> None:
    path = finished.get().folder.model / "template.json"
    stored = json.loads(path.read_text("utf-8"))
    assert list(stored) == ["prompt", "completion"]
    assert Template.read(path).to_json() == stored


def test_a_newer_or_broken_provenance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a Luthier artifact"):
        read_provenance(tmp_path)
    (tmp_path / PROVENANCE).write_text(json.dumps({"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(UserError, match="written by a newer Luthier"):
        read_provenance(tmp_path)
    (tmp_path / PROVENANCE).write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_provenance(tmp_path)


def some_folder(root: Path) -> Path:
    (root / "inner").mkdir(parents=True)
    (root / "b.txt").write_text("b" * 5000)
    (root / "inner" / "a.txt").write_text("a")
    return root


def test_the_same_content_packs_to_the_same_bytes(tmp_path: Path) -> None:
    first, second = some_folder(tmp_path / "one"), some_folder(tmp_path / "two")
    os.utime(second / "b.txt", (1, 1))
    (second / "b.txt").chmod(0o600)
    write_archive(first, tmp_path / "one.tar.gz")
    write_archive(second, tmp_path / "other-name.tar.gz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "other-name.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.gz") as tar:
        assert tar.getnames() == ["b.txt", "inner/a.txt"]
    assert [path.name for path in tmp_path.glob(".*")] == []
    unpack(tmp_path / "one.tar.gz", tmp_path / "back")
    assert (tmp_path / "back" / "inner" / "a.txt").read_text() == "a"


def test_controls_survive_in_the_stored_tokenizer(finished: FinishedRuns) -> None:
    stored = json.loads((finished.get().folder.model / "tokenizer.json").read_text("utf-8"))
    assert [token["content"] for token in stored["added_tokens"]] == CONTROLS


# Encoder-decoders: what older versions of transformers read in config.json


def t5(own_head: bool, **facts: Any) -> Any:
    """A small T5; transformers 5 begins every one with its embedding for a head."""
    shape: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
    torch.manual_seed(0)
    config: Any = AutoConfig.for_model(facts.pop("model_type", "t5"), decoder_start_token_id=0, **shape, **facts)
    network = AutoModelForSeq2SeqLM.from_config(config)
    if own_head:
        network.lm_head.weight = nn.Parameter(torch.randn_like(network.lm_head.weight) * 0.1)
    return network.eval()


@torch.no_grad()
def t5_logits(network: Any) -> Tensor:
    found: Tensor = network(input_ids=PROBE, decoder_input_ids=PROBE[:, :5]).logits
    return found


@pytest.mark.parametrize(
    ("facts", "own_head", "ties", "scales"),
    [
        ({"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}, True, False, False),  # FLAN-T5, T5 1.1
        ({"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}, False, False, False),  # one begun anew
        ({}, False, True, True),  # the first T5
        ({"model_type": "mt5"}, True, False, None),
    ],
)
def test_older_transformers_read_the_head_right(
    facts: dict[str, Any], own_head: bool, ties: bool, scales: bool | None, tmp_path: Path
) -> None:
    """They tie the head to the embedding, and scale what goes into it, exactly when config.json says tied."""
    network = t5(own_head, **facts)
    before = t5_logits(network)
    save_hf_model(network, tmp_path, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert (config["tie_word_embeddings"], config.get("scale_decoder_outputs"), config["use_cache"]) == (
        ties, scales, True
    )  # fmt: skip
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is not ties
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert torch.equal(t5_logits(again), before)
    assert again.config.use_cache is True
    assert network.config.use_cache is False


def test_a_causal_models_config_is_not_touched(tmp_path: Path) -> None:
    for architecture in ("llama", "gpt2"):  # untied, tied
        network = network_of(architecture)
        save_hf_model(network, tmp_path, tmp_path / architecture)
        config = json.loads((tmp_path / architecture / "config.json").read_text("utf-8"))
        assert config.get("tie_word_embeddings", False) is network.config.tie_word_embeddings
