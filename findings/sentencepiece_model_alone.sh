#!/usr/bin/env bash
# transformers 5.23.0, sentencepiece 0.2.3: a folder with tokenizer.model and no tokenizer.json.
#
# Guess:      AutoTokenizer converts a SentencePiece BPE model without changing its ids.
# Behaviour:  it leaves out the space that SentencePiece puts before a text (the model's own add_dummy_prefix): the first word
#             of a text gets another id. tokenizer_config.json states add_bos_token, as published models do, and no class.
# Seen:       SentencePiece ['▁the', '▁cat'], AutoTokenizer ['the', '▁cat'].
# Way out:    compare with sentencepiece before using the ids; put Prepend('▁') before the replacement of spaces.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json, pathlib, sys
import sentencepiece
from transformers import AutoTokenizer

pathlib.Path("corpus.txt").write_text("\n".join(["the cat and the dog", "a cat, a dog, the end", "12 cats  and 3 dogs"] * 20))
model = pathlib.Path("model"); model.mkdir()
sentencepiece.SentencePieceTrainer.train(
    input="corpus.txt", model_prefix="made", model_type="bpe", vocab_size=330, byte_fallback=True, character_coverage=1.0,
    normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2)
pathlib.Path("made.model").rename(model / "tokenizer.model")
(model / "config.json").write_text(json.dumps({"model_type": "mistral"}))
(model / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}))
reference = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
converted = AutoTokenizer.from_pretrained(model)
text = "the cat"
theirs = converted.convert_ids_to_tokens(converted(text, add_special_tokens=False)["input_ids"])
print("SentencePiece", reference.encode(text, out_type=str), "AutoTokenizer", theirs)
sys.exit(0 if reference.encode(text, out_type=str)[0].startswith("▁") and not theirs[0].startswith("▁") else 1)
PY
