"""A language model that applies its output head only at positions that have a label.

    causal            hidden = model(tokens)                           packed or padded
    encoder-decoder   hidden = decoder(targets, encoder(sources))      packed or padded
    loss              head and cross-entropy at the labels, if a probe shows that the model's head is linear

It wraps a Hugging Face model, with or without a PEFT adapter; data files, optimizers and checkpoints are elsewhere.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.errors import ModelNotFoundError
from luthier.layers.attention import PACKABLE_ARCHITECTURES, PACKED_ATTENTION
from luthier.layers.batch import Batch
from luthier.layers.decoder import run_decoder
from luthier.layers.encoder_decoder import run_t5_stack
from luthier.layers.fused_models import build_fused_stack
from luthier.layers.fused_stack import FusedStack
from luthier.layers.head_loss import OutputHead, head_loss, head_scores
from luthier.layers.module_readers import UnsupportedModuleError
from luthier.layers.varlen_attention import describe_attention

_log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Per-position results of a batch: loss in nats (N,) and whether the label was the most likely token (N,)."""

    loss_N: Tensor
    correct_N: Tensor


class Model:
    """A loaded model. `network` is the PreTrainedModel, or the PeftModel that wraps it."""

    def __init__(self, network: PreTrainedModel | PeftModel, dtype: torch.dtype, device: torch.device) -> None:
        self.network = network
        self.dtype = dtype
        self.device = device
        self._has_linear_head: bool | None = None  # probed at the first loss
        self._fused_stacks: dict[tuple[bool, bool | None], FusedStack | UnsupportedModuleError] = {}
        layers = (module for module in network.modules() if isinstance(module, BaseTunerLayer))
        self._adapter_layer = next(layers, None)  # PEFT enables and disables all layers together

    @property
    def hf_model(self) -> PreTrainedModel:
        """The Hugging Face model, with the adapter's layers in it."""
        return cast(PreTrainedModel, cast(Any, self.network).get_base_model() if self.has_adapter else self.network)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is attached."""
        return isinstance(self.network, PeftModel)

    @property
    def supports_packing(self) -> bool:
        """Whether this architecture supports packed rows."""
        return type(self.hf_model).__name__ in PACKABLE_ARCHITECTURES

    def describe_layers(self) -> str:
        """Which layers compute packed batches in the model's current state: Luthier's, or transformers' and why."""
        stack, config = self.fused_stack(), self.hf_model.config.get_text_config()
        heads = int(config.num_attention_heads)
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        attention = describe_attention(
            self.device, self.dtype, (heads, getattr(config, "num_key_value_heads", None) or heads, head_size)
        )
        is_fused = isinstance(stack, FusedStack)
        return ("Luthier's fused layers" if is_fused else f"transformers' layers ({stack})") + attention

    def cached_decoding_parts(self) -> tuple[FusedStack, OutputHead] | UnsupportedModuleError:
        """The layers and the head for generation with a KV cache, or the reason why they cannot be used."""
        stack = self.fused_stack()
        if isinstance(stack, UnsupportedModuleError):
            return stack
        if getattr(stack.rotary, "rope_type", "default") in ("dynamic", "longrope"):
            return UnsupportedModuleError("rotary angles that depend on the length")
        if self.network.training or not self.has_linear_head:
            return UnsupportedModuleError(
                "a model in training" if self.network.training else "an output head that is not linear"
            )
        return stack, self._head()

    @property
    def world_size(self) -> int:
        """Number of ranks that share the items of `map`."""
        return 1

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt and a decoder writes the completion."""
        return bool(self.hf_model.config.is_encoder_decoder)

    @property
    def decoder_start_token_id(self) -> int | None:
        """The decoder's first token; None for a causal model."""
        if not self.is_encoder_decoder:
            return None
        start = getattr(self.hf_model.config, "decoder_start_token_id", None)
        if start is None:  # mBART's kind starts with the language of each row
            raise ModelNotFoundError(
                f"{type(self.hf_model).__name__}: config.json states no decoder_start_token_id, which an "
                "encoder-decoder needs; add it to config.json, or choose another model"
            )
        return int(start)

    @property
    def context_length(self) -> int:
        """Maximum number of positions; 2**31 for models with relative positions (T5, Bloom)."""
        config = self.hf_model.config.get_text_config()
        if self.is_encoder_decoder:
            return 2**31
        names = ("max_position_embeddings", "n_positions", "max_seq_len")
        return next((int(getattr(config, name)) for name in names if getattr(config, name, None)), 2**31)

    def estimate_multiplications(self, tokens_R: np.ndarray, labels_R: np.ndarray) -> np.ndarray:
        """Estimated multiplications, int64 (R,), of a forward pass of rows with these numbers of tokens and labels.

        A token is multiplied by the layers' weights and the keys before it, a label by the head's weights.
        """
        config, network = self.hf_model.config.get_text_config(), self.hf_model
        head = cast(Tensor, network.get_output_embeddings().weight)
        tables = {module.weight for module in network.modules() if isinstance(module, nn.Embedding)}  # lookup only
        layers = sum(weight.numel() for weight in network.parameters()) - sum(map(Tensor.numel, {head, *tables}))
        attention = int(config.num_hidden_layers) * int(config.hidden_size)
        multiplications: np.ndarray = tokens_R * (layers + attention * tokens_R) + labels_R * head.numel()
        return multiplications

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that require gradients, by name."""
        return {name: parameter for name, parameter in self.network.named_parameters() if parameter.requires_grad}

    def enable_activation_checkpointing(self) -> None:
        """Recompute each layer's activations in the backward pass instead of storing them."""

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            # The backward pass runs after `_hidden` has returned: recompute with the forward pass's attention.
            return nullcontext(), self._attention_implementation(self.hf_model.config._attn_implementation)

        # transformers 5.23 deprecates the old name, the only one of earlier versions.
        enable = getattr(self.hf_model, "activation_checkpointing_enable", self.hf_model.gradient_checkpointing_enable)
        enable({"use_reentrant": False, "context_fn": contexts})
        self.forget_fused_stacks()

    def loss(self, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """Summed loss in nats over the batch's labels, differentiable in the trainable parameters.

        A mixture of experts whose config asks for router logits adds its load-balancing loss, once per label.
        """
        if not self.has_linear_head:
            logits = self._hf_logits(batch)
            return F.cross_entropy(logits, batch.labels_N, reduction="sum", label_smoothing=smoothing)
        with self.autocast():
            hidden, balancing_loss = self._hidden(batch)
        loss = head_loss(hidden, self._head(), batch.labels_N, smoothing)
        return loss if balancing_loss is None else loss + balancing_loss * batch.completion_tokens

    @torch.no_grad()
    def scores(self, batch: Batch) -> TokenScores:
        """Loss, and whether the most likely token is right, at each label, without gradients."""
        if not self.has_linear_head:
            logits = self._hf_logits(batch)
            is_correct = logits.argmax(-1) == batch.labels_N
            return TokenScores(F.cross_entropy(logits, batch.labels_N, reduction="none"), is_correct)
        with self.autocast():
            hidden, _ = self._hidden(batch)
        return TokenScores(*head_scores(hidden, self._head(), batch.labels_N))

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `work` to each item, in order; several ranks share the items."""
        return map(work, items)

    @property
    def has_linear_head(self) -> bool:
        """Whether `_head` of the hidden states equals the model's logits: probed once, on a few tokens.

        If not (an architecture with more operations after the last layer), loss and scores use the model's own logits,
        which takes memory for the whole vocabulary at every token.
        """
        if self._has_linear_head is None:
            self._has_linear_head = self._probe_head()
        return self._has_linear_head

    @torch.no_grad()
    def attends_to_later_tokens(self) -> bool:
        """Whether a token's logits change with the tokens after it, as in an encoder: probed on a few tokens."""
        if self.is_encoder_decoder:
            return False
        ids = self._probe_ids()
        other_end = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
        with self.autocast():
            logits, others = (
                self.hf_model(input_ids=text, use_cache=False).logits[:, :-1].float() for text in (ids, other_end)
            )
        tolerance = 1e-4 if self.dtype is torch.float32 else 5e-2
        return bool((logits - others).abs().max() > tolerance * logits.std().clamp(min=1e-3))

    def _probe_ids(self) -> Tensor:
        vocabulary = int(self.hf_model.config.get_text_config().vocab_size)
        return torch.arange(4, 10, device=self.device)[None] % vocabulary

    @torch.no_grad()
    def _probe_head(self) -> bool:
        ids = self._probe_ids()
        was_training, network = self.network.training, self.hf_model
        self.network.eval()
        decoder_input = {"decoder_input_ids": ids} if self.is_encoder_decoder else {}
        with self.autocast():
            expected = network(input_ids=ids, use_cache=False, **decoder_input).logits.float()
            if self.is_encoder_decoder:
                hidden = _encoder_decoder_states(network, ids, None, ids, None)
            else:
                hidden = self._body(input_ids=ids, use_cache=False).last_hidden_state
        self.network.train(was_training)
        head = network.get_output_embeddings()
        if not isinstance(head, nn.Linear) or hidden.shape[-1] != head.in_features:
            return False
        logits = self._head().logits(hidden.flatten(0, 1)).view_as(expected)
        return bool((logits - expected).abs().max() <= 1e-2 * expected.std().clamp(min=1e-3))

    def autocast(self) -> AbstractContextManager[Any]:
        """Context that runs matrix products in the model's compute type."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _hidden(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Hidden states (N, D) after the final norm at positions that predict a label, and the load-balancing loss."""
        stack = self.fused_stack() if batch.attention_mask_BT is None else None
        if isinstance(stack, FusedStack):
            return run_decoder(stack, batch, self.dtype), None
        if batch.source is not None:
            hidden_BTD, balancing_loss = self._decoder_states(batch), None
        else:
            context = self._context(batch)
            has_router = bool(getattr(self.hf_model.config, "output_router_logits", False))
            if has_router:
                context["output_router_logits"] = True
            with self._attention(batch):
                outputs = self._body(input_ids=batch.input_ids_BT, use_cache=False, **context)
            hidden_BTD = outputs.last_hidden_state
            balancing_loss = self._balancing_loss(outputs.router_logits, batch) if has_router else None
        return hidden_BTD.flatten(0, 1)[batch.positions_N], balancing_loss

    @property
    def _body(self) -> nn.Module:
        """The model without its output head."""
        body = self.hf_model.base_model
        return self.hf_model.get_submodule("model") if body is self.hf_model else body  # Llama 4

    def fused_stack(self) -> FusedStack | UnsupportedModuleError:
        """The model in Luthier's fused layers, or the reason why they do not support it.

        Decided once per state: training or evaluation, adapter enabled or not. Code that changes the modules
        themselves (hooks, activation checkpointing) after the first decision must call `forget_fused_stacks`.
        """
        layer = self._adapter_layer
        state = (self.network.training, layer.disable_adapters if layer else None)
        if state not in self._fused_stacks:
            self._fused_stacks[state] = self._build_fused_stack()
        return self._fused_stacks[state]

    def forget_fused_stacks(self) -> None:
        """Decide again whether the fused layers support the model."""
        self._fused_stacks.clear()

    def _build_fused_stack(self) -> FusedStack | UnsupportedModuleError:
        if not self.supports_packing:
            return UnsupportedModuleError("packing is not supported for this architecture")
        try:
            stack = build_fused_stack(self.hf_model, self.dtype)
        except UnsupportedModuleError as error:
            _log.debug("%s: transformers' layers: %s", type(self.hf_model).__name__, error)
            return error.with_traceback(None)
        _log.debug("%s: Luthier's fused layers", type(self.hf_model).__name__)
        return stack

    def _context(self, batch: Batch) -> dict[str, Any]:
        """Arguments that tell the model which tokens belong to one row."""
        if batch.attention_mask_BT is not None:
            return {"attention_mask": batch.attention_mask_BT}  # right padding: default positions
        return {"attention_mask": None, "position_ids": batch.position_ids_BT, "row_lengths": batch.row_lengths}

    def _decoder_states(self, batch: Batch) -> Tensor:
        source, network = batch.source, cast(Any, self.hf_model)
        assert source is not None
        with self._attention(batch):
            if batch.attention_mask_BT is None:
                encoded = run_t5_stack(network.encoder, source.input_ids_BS, source.row_lengths)
                return run_t5_stack(network.decoder, batch.input_ids_BT, batch.row_lengths, encoded, source.row_lengths)
            return _encoder_decoder_states(
                network, source.input_ids_BS, source.attention_mask_BS, batch.input_ids_BT, batch.attention_mask_BT
            )

    def _balancing_loss(self, router_logits: Any, batch: Batch) -> Tensor:
        """The model family's load-balancing loss, scaled by its config's coefficient (Fedus et al. 2021)."""
        network = cast(Any, self.hf_model)
        family = importlib.import_module(type(network).__module__)
        loss: Tensor = family.load_balancing_loss_func(
            router_logits, network.num_experts, network.num_experts_per_tok, batch.attention_mask_BT
        )
        return loss * float(network.router_aux_loss_coef)

    def _hf_logits(self, batch: Batch) -> Tensor:
        """The model's own logits at the positions that predict a label (N, V), in fp32."""
        arguments: dict[str, Any] = {"input_ids": batch.input_ids_BT, **self._context(batch)}
        if batch.source is not None:
            arguments = {
                "input_ids": batch.source.input_ids_BS, "attention_mask": batch.source.attention_mask_BS,
                "decoder_input_ids": batch.input_ids_BT, "decoder_attention_mask": batch.attention_mask_BT,
            }  # fmt: skip
        with self.autocast(), self._attention(batch):
            logits: Tensor = self.hf_model(use_cache=False, **arguments).logits
        return logits.flatten(0, 1)[batch.positions_N].float()

    def _attention(self, batch: Batch) -> AbstractContextManager[None]:
        return self._attention_implementation(PACKED_ATTENTION) if batch.attention_mask_BT is None else nullcontext()

    @contextmanager
    def _attention_implementation(self, implementation: str) -> Iterator[None]:
        """Switch to another attention implementation of transformers inside the context."""
        configs = {id(module.config): module.config for module in self._modules_with_config()}.values()
        before = [config._attn_implementation for config in configs]
        for config in configs:
            config._attn_implementation = implementation
        try:
            yield
        finally:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation = name

    def _modules_with_config(self) -> list[Any]:
        """The modules that may have a config of their own: three in an encoder-decoder."""
        network = cast(Any, self.hf_model)
        return [network, network.get_encoder(), network.get_decoder()] if self.is_encoder_decoder else [network]

    def _head(self) -> OutputHead:
        head, config = self.hf_model.get_output_embeddings(), self.hf_model.config.get_text_config()
        assert isinstance(head, nn.Linear)
        scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
        if getattr(config, "scale_decoder_outputs", False):  # T5 with tied embeddings
            scale = config.d_model**-0.5
        softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        return OutputHead(weight_VD=head.weight, bias_V=head.bias, dtype=self.dtype, scale=scale, softcap=softcap)


def _encoder_decoder_states(
    network: Any, source_BS: Tensor, source_mask_BS: Tensor | None, ids_BT: Tensor, mask_BT: Tensor | None
) -> Tensor:
    """The decoder's hidden states (B, T, D) of an encoder-decoder, computed by transformers."""
    if network.base_model is not network:  # BART's kind: a body under the head; T5 has none
        states: Tensor = network.base_model(
            input_ids=source_BS, attention_mask=source_mask_BS, decoder_input_ids=ids_BT,
            decoder_attention_mask=mask_BT, use_cache=False,
        ).last_hidden_state  # fmt: skip
        return states
    encoded = network.encoder(input_ids=source_BS, attention_mask=source_mask_BS).last_hidden_state
    states = network.decoder(
        input_ids=ids_BT, attention_mask=mask_BT, encoder_hidden_states=encoded,
        encoder_attention_mask=source_mask_BS, use_cache=False,
    ).last_hidden_state  # fmt: skip
    return states
