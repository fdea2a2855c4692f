#!/usr/bin/env bash
# transformers 5.23.0 removes `content: null` from messages before a chat template sees them; the templates of DeepSeek
# R1's distilled models, which handle it, then fail on tool calls.
#
# Guess:     apply_chat_template renders the template on the messages that it is given, so a call in OpenAI's own form
#            ({"content": null, "tool_calls": [...]}) is written by templates that test `content is none`.
# Behaviour: keys whose value is None are dropped first. In these templates `message['content'] is none` is then false
#            (undefined is not none), and the branch for plain answers fails. With content "" (Llama 8B's template) the
#            call is left out without an error. The template alone, through transformers' own renderer, writes the call.
# Seen:      UndefinedError with null for both templates in llama.cpp's collection; with "" one writes no call.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 jinja2==3.1.6
"$work/venv/bin/pip" download -q --no-deps --no-binary :all: -d "$work" llama-cpp-python==0.3.36
tar xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"
cd "$work"/llama_cpp_python-*/vendor/llama.cpp/models/templates
cat > "$work/check.py" <<'PY'
from pathlib import Path

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
names = {"bos_token": "<s>", "eos_token": "</s>"}
files = sorted(Path(".").glob("deepseek-ai-DeepSeek-R1-Distill-*.jinja"))
for file in files:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **names)
    tokenizer.chat_template = file.read_text("utf-8")
    for content in (None, ""):
        messages = [
            {"role": "user", "content": "Rain in Bern?"},
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "no"},
        ]
        alone = render_jinja_template([messages], chat_template=tokenizer.chat_template, **names)[0][0]
        try:
            shown = "call written" if "weather" in tokenizer.apply_chat_template(messages, tokenize=False) else "no call"
        except jinja2.UndefinedError as error:
            shown = f"UndefinedError: {error}"
        print(f"{file.stem}, content {content!r}: apply_chat_template: {shown}; the template: {'weather' in alone}")
        if content is None:
            assert "weather" in alone and shown == "UndefinedError: 'dict object' has no attribute 'content'"
        else:
            assert shown == ("no call" if "Llama" in file.stem else "call written")
assert len(files) == 2
PY
"$work/venv/bin/python" "$work/check.py" 2>/dev/null
