#!/usr/bin/env bash
# transformers 5.23.0 builds tokenizers from GGUF files that give other ids than llama.cpp's own test vocabularies state.
#
# Guess:     AutoTokenizer.from_pretrained(..., gguf_file=...) gives the ids that the file's model was trained with.
# Behaviour: the name of the pre-tokenizer (tokenizer.ggml.pre) is looked up in a short table; smollm, starcoder, refact,
#            command-r, falcon, deepseek-llm and deepseek-coder are not in it and get GPT-2's pattern; llama-bpe has its
#            pattern, but merges are not ignored for whole tokens; a SentencePiece vocabulary (llama) is read with
#            Metaspace, which swallows a leading space. llama.cpp's repository has 14 vocabularies of such kinds as GGUF
#            files with texts (.inp) and their ids (.out).
# Seen:      9 of 14 vocabularies differ, in 1 to 15 of 47 texts each; in three, an added token gets an id beyond the
#            vocabulary (deepseek-llm: 102401 tokens instead of 102400).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0
"$work/venv/bin/pip" download -q --no-deps --no-binary :all: -d "$work" llama-cpp-python==0.3.36
tar xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"
cd "$work"/llama_cpp_python-*/vendor/llama.cpp/models
cat > "$work/check.py" <<'PY'
from pathlib import Path
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

differing, sizes = [], {}
files = [path.with_suffix("") for path in sorted(Path(".").glob("*.gguf.inp")) if "bert" not in path.name]
for file in files:
    architecture, fields, _ = get_gguf_tokenizer(str(file))
    tokenizer, _ = convert_gguf_tokenizer(architecture, fields)
    texts = Path(f"{file}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    ids = [[int(number) for number in line.split()] for line in Path(f"{file}.out").read_text().split("\n")]
    wrong = sum(tokenizer.encode(text, add_special_tokens=False).ids != expected for text, expected in zip(texts, ids))
    if tokenizer.get_vocab_size() > len(fields["tokens"]):
        sizes[file.stem] = tokenizer.get_vocab_size() - len(fields["tokens"])
    if wrong:
        differing.append(file.stem)
        print(f"{file.stem}: {wrong} of {len(texts)} texts get other ids")
print(f"{len(differing)} of {len(files)} vocabularies differ; beyond the vocabulary: {sizes}")
assert len(files) == 14 and len(differing) == 9 and "ggml-vocab-deepseek-llm" in sizes
PY
"$work/venv/bin/python" "$work/check.py" 2>/dev/null
