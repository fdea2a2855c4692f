"""Whether Luthier computes what plain Hugging Face computes: the loss and every gradient of a step, in fp32.

A figure of speed counts for nothing without it, so it is checked in the run that measures, on the measured shape and
rows. The gradients are those that reach the optimizer in Luthier's own step, packed rows and all; the reference runs
transformers' (and PEFT's) own modules row by row. `python -m bench.field.agreement CASE`, a JSON file.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from bench.field import rows
from bench.field.line import Line
from luthier.data.batches import Layout, collate
from luthier.data.prepare import Dataset
from luthier.data.tokenize import Tokenizer
from luthier.training.process_group import ProcessGroup
from luthier.training.step import MicroBatches, take_step
from luthier.weights.load import load_model
from luthier.weights.lora import Adapter, attach_adapter
from luthier.weights.lora_targets import resolve_lora_targets
from luthier.weights.model import Model

LIMIT = 1e-5  # relative, of the loss and of each gradient's norm
_NEGLIGIBLE = 1e-6  # of the whole gradient's norm: below it, a tensor's relative error is rounding


class DisagreementError(Exception):
    """Luthier's loss or a gradient is not Hugging Face's."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Relative errors: of the loss, and of the gradient that is worst off."""

    loss: float
    gradient: float
    worst: str
    tensors: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Recorder(torch.optim.Optimizer):
    """An optimizer that keeps the gradients it is given and changes no weight."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(list(parameters.values()), {"lr": 0.0})
        self._names = dict(parameters)
        self.found: dict[str, Tensor] = {}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.found = {name: parameter.grad.clone() for name, parameter in self._names.items()
                      if parameter.grad is not None}  # fmt: skip


def compare(
    loss: float, gradients: Mapping[str, Tensor], expected_loss: float, expected: Mapping[str, Tensor], count: int
) -> Agreement:
    """Compare; DisagreementError where a gradient is missing, is one too many, or anything differs by over LIMIT."""
    if gradients.keys() != expected.keys():
        odd = sorted(gradients.keys() ^ expected.keys())
        raise DisagreementError(f"{len(odd)} gradients are on one side only (first: {odd[0]})")
    whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm().item()
    errors = {
        name: ((gradients[name] - gradient).norm() / max(gradient.norm().item(), _NEGLIGIBLE * whole)).item()
        for name, gradient in expected.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    found = Agreement(abs(loss - expected_loss) / abs(expected_loss), errors[worst], worst, len(errors), count)
    for what, error in (("the loss", found.loss), (f"the gradient of {worst}", found.gradient)):
        if not error <= LIMIT:
            raise DisagreementError(f"{what} differs from plain Hugging Face's by {error:.1e} (limit {LIMIT:.0e})")
    return found


def check(model: Path, prepared: Dataset, lora: bool, chosen: list[int]) -> Agreement:
    """One step of Luthier against plain modules, on the rows `chosen`."""
    own = load_model(model, torch.device("cpu"), torch.float32, frozen=lora)
    if lora:
        own = attach_adapter(
            own,
            Adapter(r=16, alpha=32, dropout=0.0, target_modules=resolve_lora_targets("all-linear", own).modules),
            seed=0,
        )
        torch.manual_seed(1)
        for name, parameter in own.trainable_parameters().items():
            if "lora_B" in name:  # zero at birth: the gradients of A would be zero, too
                nn.init.normal_(parameter, std=0.02)
    start = {name: parameter.detach().clone() for name, parameter in own.trainable_parameters().items()}
    loss, found = _own_step(own, prepared, Tokenizer.load(model), chosen)
    expected_loss, expected = _plain_step(_reference(model, lora, start), prepared, chosen, own.is_encoder_decoder)
    return compare(loss, found, expected_loss, expected, len(chosen))


def _own_step(
    own: Model, prepared: Dataset, tokenizer: Tokenizer, chosen: list[int]
) -> tuple[float, dict[str, Tensor]]:
    layout = Layout(own.supports_packing, tokenizer.pad_id, own.decoder_start_token_id)
    own.network.eval()  # as the reference is: T5 has dropout of its own
    recorder = Recorder(own.trainable_parameters())
    micro_batches = MicroBatches([collate(prepared.tokens, chosen, layout)], "0:0", ProcessGroup())
    result = take_step(own, recorder, micro_batches, 0.0, 0.0)
    return result.loss, recorder.found


def _reference(folder: Path, lora: bool, start: Mapping[str, Tensor]) -> Any:
    """The same weights in plain modules."""
    pairs = json.loads((folder / "config.json").read_text("utf-8")).get("is_encoder_decoder")
    family: Any = AutoModelForSeq2SeqLM if pairs else AutoModelForCausalLM
    plain: Any = family.from_pretrained(folder, dtype=torch.float32)
    if lora:
        config = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear",
                                 task_type="SEQ_2_SEQ_LM" if pairs else "CAUSAL_LM")  # fmt: skip
        with warnings.catch_warnings():  # PEFT 0.21 asks transformers 5.23 for an attribute by its old name
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            plain = peft.get_peft_model(plain, config)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(start[name])
    # Dropout of the base (T5 has some) is drawn anew on each side and would be compared, too.
    return plain.eval()


def _plain_step(plain: Any, prepared: Dataset, chosen: list[int], pairs: bool) -> tuple[float, dict[str, Tensor]]:
    labels_in_all = int(sum(prepared.tokens.row(number)[1].sum() for number in chosen))
    total = 0.0
    for number in chosen:
        ids, trained = (torch.from_numpy(array) for array in prepared.tokens.row(number))
        if pairs:
            cut = int(trained.int().argmax())
            logits, labels = plain(input_ids=ids[None, :cut], labels=ids[None, cut:]).logits[0], ids[cut:]
        else:
            logits = plain(input_ids=ids[None], use_cache=False).logits[0, :-1][trained[1:]]
            labels = ids[1:][trained[1:]]
        loss = F.cross_entropy(logits, labels, reduction="sum") / labels_in_all
        loss.backward()
        total += loss.item()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    return total, gradients


def main() -> None:
    """Answer with the agreement, or with what disagrees."""
    line = Line()
    case = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    model = Path(case["model"])
    prepared = rows.tokenize(Path(case["channel"]), model, Path(case["cache"]))
    chosen = prepared.split.train[:4].tolist()
    try:
        line.say(**check(model, prepared, case["method"] == "lora", chosen).to_json())
    except DisagreementError as error:
        line.say(disagrees=str(error))


if __name__ == "__main__":
    main()
