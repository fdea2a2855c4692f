"""A causal language model as the engine uses it: hidden states once, the head only where a label is.

It wraps a plain Hugging Face model, with or without a PEFT adapter; it knows nothing of data files, optimizers or
checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.layers.attention import PACKED, PACKS_CLEANLY
from luthier.layers.batch import Batch
from luthier.layers.head_loss import head_loss, head_scores


@dataclass(frozen=True, slots=True)
class Scores:
    """Per-position results of a batch: loss in nats (N,) and whether the label was the most likely token (N,)."""

    loss_N: Tensor
    hit_N: Tensor


class Model:
    """One loaded model. `network` is the PreTrainedModel, or the PeftModel round it."""

    def __init__(self, network: PreTrainedModel | PeftModel, dtype: torch.dtype, device: torch.device) -> None:
        self.network = network
        self.dtype = dtype
        self.device = device

    @property
    def plain(self) -> PreTrainedModel:
        """The Hugging Face model itself, adapter layers inside it if there are any."""
        return cast(PreTrainedModel, cast(Any, self.network).get_base_model() if self.adapted else self.network)

    @property
    def adapted(self) -> bool:
        """Whether an adapter is attached."""
        return isinstance(self.network, PeftModel)

    @property
    def packs(self) -> bool:
        """Whether rows may be laid side by side in this architecture."""
        return type(self.plain).__name__ in PACKS_CLEANLY

    @property
    def context_length(self) -> int:
        """Positions the model was built for."""
        config = self.plain.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0) or 2**31)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: parameter for name, parameter in self.network.named_parameters() if parameter.requires_grad}

    def recompute_activations(self) -> None:
        """From now on keep no layer's activations for the backward pass, but run the layer again there."""

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            # The backward pass comes after `_hidden` has returned: a layer must attend then as it did in the forward.
            return nullcontext(), self._attention(self.plain.config._attn_implementation)

        # Its newer name; transformers before 5.23 has only the old one, and from then on warns of it.
        enable = getattr(self.plain, "activation_checkpointing_enable", self.plain.gradient_checkpointing_enable)
        enable({"use_reentrant": False, "context_fn": contexts})

    def loss(self, batch: Batch) -> Tensor:
        """Summed loss in nats over the batch's labels, differentiable in the trainable parameters."""
        with self.computing():
            hidden = self._hidden(batch)
        head = self._head()
        return head_loss(hidden, head.weight, head.bias, batch.labels_N, self.dtype)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Scores:
        """Loss and hits at each label, without gradients."""
        with self.computing():
            hidden = self._hidden(batch)
        head = self._head()
        return Scores(*head_scores(hidden, head.weight, head.bias, batch.labels_N, self.dtype))

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The base model: the adapter switched off for the duration. Only for a model with an adapter."""
        assert isinstance(self.network, PeftModel)
        with self.network.disable_adapter():
            yield

    def computing(self) -> AbstractContextManager[Any]:
        """Context in which matrix products run in the model's compute type."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden states after the final norm at the positions that predict a label: (N, D)."""
        context: dict[str, Any] = {}
        if batch.attention_mask_BT is None:
            context["row_lengths"] = batch.row_lengths
        with self._attention(PACKED if batch.attention_mask_BT is None else "sdpa"):
            hidden_BTD: Tensor = self.plain.base_model(
                input_ids=batch.input_ids_BT,
                position_ids=batch.position_ids_BT,
                attention_mask=batch.attention_mask_BT,
                use_cache=False,
                **context,
            ).last_hidden_state
        return hidden_BTD.flatten(0, 1)[batch.positions_N]

    @contextmanager
    def _attention(self, implementation: str) -> Iterator[None]:
        config = self.plain.config
        before = config._attn_implementation
        config._attn_implementation = implementation
        try:
            yield
        finally:
            config._attn_implementation = before

    def _head(self) -> nn.Linear:
        head = self.plain.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return head
