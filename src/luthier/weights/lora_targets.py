"""Which layers of a loaded model LoRA adapts: all linear layers, those named by the user, or a catalogue entry's.

A linear layer can be adapted if an adapter beside it would train. Class names do not say so: some classes read a
layer's weight without calling the layer, compute more than x W + b in it, or cut the gradient behind it. Therefore the
model runs a few tokens forward and backward, and each layer's calls are observed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import SettingError, did_you_mean
from luthier.weights.model import Model
from luthier.weights.quantize import LIBRARY, is_quantized

EXPERTS = "experts"  # the target name of the fused expert matrices of a mixture of experts
ALL_LINEAR = "all-linear"
# Kernels of state-space layers (mamba-ssm) read the weights of the projections behind their input, so there an adapter
# would train on one machine and not on another; PEFT forbids some of them by name.
STATE_SPACE_PARAMETER = "A_log"
STATE_SPACE_INPUTS = ("in_proj",)


@dataclass(frozen=True, slots=True)
class LoraTargets:
    """What an adapter is attached to, as PEFT names it: ends of module names, and ends of parameter names.

    `parameters` are weights that PEFT adapts without a layer of their own: it computes the adapted weight, so they take
    no dropout.
    """

    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The layers as text for users: an index that differs between layers is written `*`."""
        names = (re.sub(r"(^|\.)\d+(?=\.)", r"\1*", name) for name in (*self.modules, *self.parameters))
        return ", ".join(dict.fromkeys(name.removesuffix(".weight") for name in names))


def resolve_lora_targets(setting: str, model: Model, entry_targets: tuple[str, ...] = ()) -> LoraTargets:
    """The layers that the `lora_target_modules` setting names.

    `setting` is default (`entry_targets`, or all-linear without them), all-linear, or comma-separated ends of names of
    linear layers, and EXPERTS for the fused experts of a mixture, which the other two leave out. SettingError for a
    name that no linear layer has, for a layer whose adapter would not train, and for the output head.
    """
    network = model.hf_model
    layers = observe_linear_layers(model)
    trainable = {name for name, reason in layers.items() if reason is None}
    experts = expert_parameters(network)
    if setting == "default":
        names = tuple(name for name in entry_targets if _ending_in(name, layers) or (name == EXPERTS and experts))
    else:
        names = tuple(name.strip() for name in setting.split(",") if name.strip())
        if not names:
            raise SettingError(f"lora_target_modules={setting}: no layer is named; use default, all-linear, or names")
    targets: list[str] = []
    for name in names or (ALL_LINEAR,):
        if name == ALL_LINEAR:
            targets += [layer for layer in layers if layer in trainable]
        elif name != EXPERTS or not experts:
            targets += _named_layers(name, layers, network, (EXPERTS,) if experts else ())
    modules, parameters = _peft_names(dict.fromkeys(targets), network)
    return LoraTargets(modules, (*parameters, *experts) if EXPERTS in names else parameters)


def describe_adapted_layers(model: Model) -> str:
    """The layers under a model's adapter as text, in the order of the model."""
    config: Any = model.network.peft_config["default"]
    if isinstance(config.target_modules, str):  # a pattern, in an adapter from elsewhere
        return str(config.target_modules)
    trained = [f".{name}." for name in model.trainable_parameters()]
    order = {name: next((place for place, each in enumerate(trained) if f".{name}." in each), len(trained))
             for name in config.target_modules}  # fmt: skip
    return str(LoraTargets(tuple(sorted(order, key=order.__getitem__)), tuple(config.target_parameters or ())))


def linear_layer_names(network: PreTrainedModel) -> tuple[str, ...]:
    """Last name parts of all linear layers except the output head, in order of first appearance."""
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in _linear_layers(network)))


def expert_parameters(network: PreTrainedModel) -> tuple[str, ...]:
    """Ends of the names of a mixture's fused expert matrices (experts, out, in); empty for other models."""
    parameters = dict(network.named_parameters())
    fused = [name for name, parameter in parameters.items() if parameter.ndim == 3 and _is_of_experts(name, network)]
    return _shortest_ends(fused, parameters, parts=2)


def _is_of_experts(name: str, network: PreTrainedModel) -> bool:
    owner = name.rpartition(".")[0]
    return (
        "expert" in owner.rpartition(".")[2].lower() or "experts" in type(network.get_submodule(owner)).__name__.lower()
    )


def _linear_layers(network: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers by name, except the output head."""
    head = network.get_output_embeddings()
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def _ending_in(end: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name == end or name.endswith(f".{end}")]


def _named_layers(
    name: str, layers: Mapping[str, str | None], network: PreTrainedModel, others: tuple[str, ...]
) -> list[str]:
    """The layers whose name ends in `name` and whose adapter would train."""
    matches = _ending_in(name, layers)
    if trainable := [layer for layer in matches if layers[layer] is None]:
        return trainable
    kind = type(network).__name__
    if matches:
        raise SettingError(f"lora_target_modules={name}: {kind} {layers[matches[0]]}; leave it out, or use all-linear")
    known = (*dict.fromkeys(layer.rpartition(".")[2] for layer in layers), *others)
    raise SettingError(
        f"lora_target_modules={name}: {kind} has no such linear layer{did_you_mean(name, known)}; "
        f"it has {', '.join(known)}, or use all-linear"
    )


def _peft_names(targets: Iterable[str], network: PreTrainedModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The module and the parameter names by which PEFT finds exactly these layers.

    PEFT reads some names as those of a mixture's experts in transformers 4 (down_proj of DeepSeek's dense layers): such
    a layer is named by its weight instead, which a quantized model cannot have adapted.
    """
    names = [name for name, _ in network.named_modules()]
    modules = _shortest_ends(targets, names)
    reserved = {module for module in modules if _is_reserved(module, network)}
    by_weight = () if is_quantized(network) else tuple(f"{name}.weight" for name in modules if name in reserved)
    return tuple(name for name in modules if name not in reserved), by_weight


def _is_reserved(name: str, network: PreTrainedModel) -> bool:
    """Whether PEFT takes this module name for that of experts."""
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, cast(Any, network), None)
    except ValueError:  # one of two matrices that are fused now
        return True
    return name not in (config.target_modules or ())


def _shortest_ends(targets: Iterable[str], names: Iterable[str], parts: int = 1) -> tuple[str, ...]:
    """The shortest ends, of at least so many parts, by which `targets` and no other of `names` are found."""
    own = dict.fromkeys(targets)
    other_ends = {end for name in names if name not in own for end in _ends(name)}
    ends = (
        next(end for end in _ends(name) if (end.count(".") + 1 >= parts and end not in other_ends) or end == name)
        for name in own
    )
    return tuple(dict.fromkeys(ends))


def _ends(name: str) -> Iterator[str]:
    """The ends of a dotted name, the last part first."""
    split = name.split(".")
    return (".".join(split[-count:]) for count in range(1, len(split) + 1))


# Observation


@dataclass(slots=True)
class _Observation:
    """What was seen of one linear layer."""

    is_called: bool = False
    is_linear: bool = True
    is_read_by_kernels: bool = False
    has_gradient: bool = False

    @property
    def reason(self) -> str | None:
        """Why an adapter on it would not train, after the model's name; None if it would."""
        if not self.is_called:
            return "does not call this layer, so an adapter on it would have no effect"
        if self.is_read_by_kernels:
            return "reads this layer's weight in kernels of its state-space layers, which would ignore an adapter"
        if not self.is_linear:
            return "computes more than a matrix product in this layer"
        return None if self.has_gradient else "passes no gradient to this layer, so an adapter on it would not train"


def observe_linear_layers(model: Model) -> dict[str, str | None]:
    """Every linear layer except the output head, with the reason why an adapter on it would not train, or None.

    Runs six tokens forward and backward in training mode; the model's state and the random numbers stay as they were.
    """
    network = model.hf_model
    layers = _linear_layers(network)
    observations = {name: _Observation() for name in layers}
    with (
        _observed(network, {module: observations[name] for name, module in layers.items()}),
        _training_state_kept(model),
    ):
        ids = torch.arange(4, 10, device=model.device)[None] % network.config.get_text_config().vocab_size
        decoder_input = {"decoder_input_ids": ids} if model.is_encoder_decoder else {}
        with model.autocast(), torch.enable_grad():
            logits = network(input_ids=ids, use_cache=False, **decoder_input).logits
        logits.float().sum().backward()
    _complete_experts(observations)
    for name in layers:
        owner = network.get_submodule(name.rpartition(".")[0])
        if hasattr(owner, STATE_SPACE_PARAMETER) and name.rpartition(".")[2] not in STATE_SPACE_INPUTS:
            observations[name].is_read_by_kernels = True
    lost = "has a layer here whose adapter PEFT would not find again when it reads the artifact"
    reasons = {name: observation.reason for name, observation in observations.items()}
    return reasons | dict.fromkeys(_lost_layers(layers, network), lost)


def _lost_layers(layers: Iterable[str], network: PreTrainedModel) -> set[str]:
    """The layers whose adapter PEFT 0.21 renames wrongly when it reads it (the shared expert of Laguna)."""
    keys = {f"base_model.model.{name}.lora_A.weight": name for name in layers}
    state = {key: torch.empty(0, 0) for key in keys}
    read = convert_peft_adapter_state_dict_for_transformers(network, LoraConfig(target_modules=["all"]), state)
    return {name for key, name in keys.items() if key not in read}


def _complete_experts(observations: Mapping[str, _Observation]) -> None:
    """Six tokens reach few of the experts that are layers of their own: the others are like those that were called."""

    def kind(name: str) -> str:
        return re.sub(r"\.\d+(?=\.)", ".*", name)

    called = {kind(name): observation for name, observation in observations.items() if observation.is_called}
    for name, observation in observations.items():
        twin = called.get(kind(name)) if "expert" in name else None
        if twin is not None and not observation.is_called:
            observation.is_called, observation.is_linear = True, twin.is_linear
            observation.has_gradient = twin.has_gradient


@contextmanager
def _observed(network: PreTrainedModel, layers: Mapping[nn.Module, _Observation]) -> Iterator[None]:
    """Record the calls of `layers` inside the context. Gradients start at the embeddings: weights are frozen."""

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        observation = layers[module]
        observation.is_called = True
        observation.is_linear &= _is_product(module, inputs, output)
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda _: setattr(observation, "has_gradient", True))

    def start_gradient(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)

    handles = [module.register_forward_hook(record) for module in layers]
    embeddings = {network.get_input_embeddings(), *(m for m in network.modules() if isinstance(m, nn.Embedding))}
    handles += [module.register_forward_hook(start_gradient) for module in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _is_product(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> bool:
    """Whether `output` is the layer's matrix product of its only input. A quantized product is taken for one."""
    if len(inputs) != 1 or not isinstance(output, Tensor):
        return False
    if type(module).__module__.startswith(LIBRARY):
        return True
    weight, bias = cast(Tensor, module.weight), cast(Tensor | None, module.bias)
    expected = F.linear(inputs[0], weight.T if isinstance(module, Conv1D) else weight, bias)
    if expected.shape != output.shape:
        return False
    tolerance = 1e-3 if output.dtype is torch.float32 else 0.05
    return bool((expected.float() - output.float()).abs().max() <= tolerance * expected.abs().max().float())


@contextmanager
def _training_state_kept(model: Model) -> Iterator[None]:
    """Training mode inside the context, with random numbers of its own."""
    network, was_training = model.network, model.network.training
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        network.train()
        try:
            yield
        finally:
            network.train(was_training)
            network.zero_grad()
