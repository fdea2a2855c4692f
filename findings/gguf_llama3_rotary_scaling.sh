#!/usr/bin/env bash
# transformers 5.23.0 reads a Llama 3.1 or 3.2 GGUF file without its rotary scaling.
#
# Guess:     from_pretrained(..., gguf_file=...) gives the model that was converted: config.rope_parameters says llama3.
# Behaviour: llama.cpp's converter stores Llama 3's scaling as the tensor rope_freqs.weight, not as metadata; transformers
#            skips tensors it has no parameter for, so rope_type is "default" and the logits differ from the original's, at
#            every position after the first, without a message. The same file with all factors 1 loads exactly.
# Seen:      rope_type default; largest difference of logits 8.6 with factors, 0 without.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 gguf==0.19.0 torch==2.13.0 accelerate==1.15.0
cd "$work"
cat > check.py <<'PY'
import math
import numpy as np, torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging
logging.set_verbosity_error()

def model(factor):
    rotary = {"rope_type": "default", "rope_theta": 10000.0}
    if factor > 1:
        rotary = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": factor, "low_freq_factor": 1.0,
                  "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        rope_parameters=rotary)).float().eval()
    for parameter in made.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made

NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}

def write(made, factor):
    out = GGUFWriter("m.gguf", "llama")
    out.add_context_length(128); out.add_embedding_length(64); out.add_block_count(2); out.add_feed_forward_length(96)
    out.add_head_count(4); out.add_head_count_kv(2); out.add_layer_norm_rms_eps(made.config.rms_norm_eps)
    out.add_rope_freq_base(10000.0); out.add_rope_dimension_count(16); out.add_vocab_size(64)
    waves = [2 * math.pi * 10000.0 ** (pair / 8) for pair in range(8)]
    smooth = [min(max((32 / wave - 1) / 3, 0), 1) for wave in waves]
    out.add_tensor("rope_freqs.weight", np.array([1 / ((1 - s) / factor + s) for s in smooth], np.float32))
    for name, value in made.state_dict().items():
        value = value.numpy()
        for projection, heads in (("q_proj", 4), ("k_proj", 2)):
            if f".{projection}." in name:
                value = value.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(value.shape)
        if name == "lm_head.weight":
            continue
        fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
        if name not in fixed:
            _, _, layer, part = name.split(".", 3)
            fixed[name] = f"blk.{layer}.{NAMES[part.removesuffix('.weight')]}.weight"
        out.add_tensor(fixed[name], np.ascontiguousarray(value))
    out.write_header_to_file(); out.write_kv_data_to_file(); out.write_tensors_to_file(); out.close()

seen = {}
for factor in (1.0, 8.0):
    made = model(factor)
    write(made, factor)
    read = AutoModelForCausalLM.from_pretrained(".", gguf_file="m.gguf", dtype=torch.float32)
    ids = torch.arange(64).unsqueeze(0)
    with torch.no_grad():
        seen[factor] = float((made(input_ids=ids).logits - read(input_ids=ids).logits).abs().max())
    print(f"factor {factor}: rope_type {read.config.rope_parameters['rope_type']}, difference {seen[factor]:.2g}")
    assert read.config.rope_parameters["rope_type"] == "default"
assert seen[1.0] < 1e-5 and seen[8.0] > 1e-2, seen
PY
"$work/venv/bin/python" check.py 2>/dev/null
