#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13: a Youtu model, saved and read again.
#
# Guess:      from_pretrained gives back every weight that save_pretrained wrote; only missing weights are initialized.
# Behaviour:  the class's _init_weights zeroes embed_tokens.weight.data[padding_idx]. The library's zeros_ skips weights that
#             were loaded, by a flag on the tensor, and a slice of .data does not carry the flag: the row of the padding
#             token is zero after reading. With tied embeddings (the default) its column of the logits is, too; where a
#             base uses its end-of-text token for padding, that is the token which ends an answer.
# Seen:       "row of the padding token: written 4.51, read 0.00; other rows equal: True".
# Way out:    load with a config whose pad_token_id is None, or put the stored row back.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

torch.manual_seed(0)
config = CONFIG_MAPPING["youtu"](
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    kv_lora_rank=16, q_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, pad_token_id=3, eos_token_id=3)
model = AutoModelForCausalLM.from_config(config)
with torch.no_grad():
    model.get_input_embeddings().weight.normal_()  # as training would leave it
model.save_pretrained("model")
read = AutoModelForCausalLM.from_pretrained("model")
before, after = (m.get_input_embeddings().weight.detach() for m in (model, read))
others = torch.arange(64) != 3
print(f"row of the padding token: written {before[3].norm():.2f}, read {after[3].norm():.2f}; "
      f"other rows equal: {torch.equal(before[others], after[others])}")
sys.exit(0 if before[3].norm() > 0 and after[3].norm() == 0 and torch.equal(before[others], after[others]) else 1)
PY
