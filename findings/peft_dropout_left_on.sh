#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13: the mode of an adapter that is loaded to be trained further.
#
# Guess:      from_pretrained returns a model in evaluation mode, and PeftModel.from_pretrained keeps it: the loss before the
#             first step is the tuned model's own, and the same each time.
# Behaviour:  with is_trainable=True the base stays in evaluation mode (its dropout is off), but the wrapper and the adapter's
#             dropout modules are new and in training mode. A first loss, or a reference that is computed to check another
#             program's gradient, differs from run to run. Without is_trainable everything is in evaluation mode.
# Seen:       "is_trainable=True: model.training True, base.training False, dropout modules in training mode: 14 of 14; two
#             forwards equal: False"; "is_trainable=False: model.training False, base.training False, dropout modules in
#             training mode: 0 of 14; two forwards equal: True".
# Way out:    call model.eval() or model.train() on the whole after loading.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
AutoModelForCausalLM.from_config(config).save_pretrained("base")
trained = get_peft_model(AutoModelForCausalLM.from_pretrained("base"),
                         LoraConfig(target_modules="all-linear", lora_dropout=0.3))
for name, parameter in trained.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter)
trained.save_pretrained("adapter")
ids = torch.arange(16)[None]


def look(trainable):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "adapter", is_trainable=trainable)
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    on = sum(module.training for module in dropouts)
    equal = torch.equal(model(ids).logits, model(ids).logits)
    print(f"is_trainable={trainable}: model.training {model.training}, base.training {model.base_model.model.training}, "
          f"dropout modules in training mode: {on} of {len(dropouts)}; two forwards equal: {equal}")
    return model.base_model.model.training, on, len(dropouts), equal


base, on, all_, equal = look(True)
_, off, _, same = look(False)
sys.exit(0 if not base and on == all_ and not equal and off == 0 and same else 1)
PY
