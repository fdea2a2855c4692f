"""The table of hyperparameters: every name a job may set, with its type, range, default and meaning.

Names are JumpStart's (Llama, Gemma, Mistral, FLAN-T5 and Neuron families), else those of transformers and PEFT.
"""

from __future__ import annotations

from typing import Any

from luthier.catalog.hyperparameter import Hyperparameter, Kind, Value


def _row(name: str, type: Kind, default: Value, group: str, help: str, **options: Any) -> Hyperparameter:
    return Hyperparameter(name=name, type=type, default=default, group=group, help=help, **options)


_ROWS = [
    # Data
    _row("instruction_tuned", "bool", False, "data",
         "train on prompt/completion rows; if unset, detected from the data"),
    _row("chat_dataset", "bool", False, "data", "train on conversations; if unset, detected from the data"),
    _row("train_on_turns", "choice", "assistant", "data",
         "turns of a conversation that carry loss: every assistant turn, the last one only, or all turns",
         choices=("assistant", "last", "all")),
    _row("reasoning", "choice", "refuse", "data",
         "reasoning_content of conversations whose chat template does not read it: refuse the row, write it inline "
         "between the template's own markers, or drop it",
         choices=("refuse", "inline", "drop")),
    _row("max_input_length", "int", -1, "data",
         "maximum tokens of a row; -1: the smaller of 1024 and the model's limit", minimum=1, sentinel=-1),
    _row("max_output_length", "int", 128, "data", "encoder-decoder models: maximum tokens of a completion", minimum=1,
         maximum=1_000_000),
    _row("pad_to_max_length", "bool", False, "data", "pad every row to the maximum length where rows are not packed"),
    _row("append_eod", "bool", True, "data", "domain adaptation: an end-of-text token after each document"),
    _row("validation_split_ratio", "float", 0.2, "data",
         "fraction of the training rows held out for validation, which chooses the checkpoint", minimum=0, maximum=1),
    _row("test_split_ratio", "float", 0.0, "data", "fraction of the training rows held out for the final score only",
         minimum=0, maximum=1),
    _row("train_data_split_seed", "int", 0, "data", "seed of the split", minimum=0),
    _row("max_train_samples", "int", -1, "data", "maximum number of training rows; -1: all", minimum=1, sentinel=-1),
    _row("max_val_samples", "int", -1, "data", "maximum number of validation rows; -1: all", minimum=1, sentinel=-1,
         aliases=("max_eval_samples",)),
    _row("max_test_samples", "int", -1, "data", "maximum number of test rows; -1: all", minimum=1, sentinel=-1),
    _row("add_input_output_demarcation_key", "bool", True, "data",
         "insert '\\n\\n### Response:\\n' between prompt and completion, as JumpStart does"),
    _row("completion_only_loss", "bool", True, "data",
         "compute loss on completion tokens only; False: on the prompt too"),
    _row("group_near_duplicates", "bool", False, "data", "keep near-duplicate rows in the same split"),
    _row("parse_special_tokens", "bool", False, "data",
         "convert special-token strings in the rows to control tokens (for trusted text only); False: keep them as "
         "text"),
    _row("preprocessing_num_workers", "optional_int", None, "data", "tokenizer threads; None: all cores", minimum=1),
    # Run
    _row("epoch", "int", 3, "run", "number of passes over the training rows", minimum=1, maximum=1000,
         aliases=("epochs", "num_train_epochs")),
    _row("max_steps", "int", -1, "run", "stop after this many steps; -1: no limit besides epoch", minimum=1,
         sentinel=-1),
    _row("per_device_train_batch_size", "int", 4, "run", "rows of a micro-batch, packed or not", minimum=1,
         maximum=1024, aliases=("batch_size",)),
    _row("per_device_eval_batch_size", "int", 8, "run", "rows scored in one batch", minimum=1, maximum=1024),
    _row("gradient_accumulation_steps", "int", 1, "run", "micro-batches of each rank per optimizer step", minimum=1,
         maximum=65536),
    _row("global_train_batch_size", "optional_int", None, "run",
         "rows per optimizer step over all ranks; sets gradient_accumulation_steps", minimum=1, maximum=1_000_000),
    _row("auto_find_batch_size", "bool", False, "run",
         "start with all rows of a step in one micro-batch and halve it until it fits in memory; the step stays "
         "the same"),
    _row("dataloader_drop_last", "bool", False, "run", "drop the last micro-batch of an epoch if it is not full"),
    _row("packing", "bool", True, "run",
         "pack rows into one sequence without padding where attention does not cross rows"),
    _row("bf16", "choice", "auto", "run", "bfloat16 compute; auto: on GPUs that support it",
         choices=("auto", "True", "False")),
    _row("fp16", "bool", False, "run", "float16 compute with loss scaling, for GPUs without bfloat16"),
    _row("mixed_precision", "bool", True, "run", "False: float32 compute regardless of bf16 and fp16"),
    _row("gradient_checkpointing", "bool", False, "run", "recompute activations in the backward pass to save memory"),
    _row("seed", "int", 10, "run", "seed of row order, dropout and weight initialization", minimum=0,
         maximum=2**31 - 1),
    _row("train_from_scratch", "bool", False, "run", "start from random weights instead of the base model's"),
    # Method
    _row("peft_type", "choice", "lora", "method", "lora: train an adapter; none: train all weights",
         choices=("lora", "none")),
    _row("continue_as", "choice", "adapter", "method",
         "a run or adapter as the model: adapter: train the same adapter further; merged: merge it into its base, then "
         "train as the other settings say (the result is a whole model)",
         choices=("adapter", "merged")),
    _row("lora_r", "int", 8, "method", "rank of the adapter", minimum=1, maximum=1000),
    _row("lora_alpha", "int", 32, "method", "scale of the adapter (alpha / r)", minimum=1, maximum=100000),
    _row("lora_dropout", "float", 0.05, "method", "dropout before the adapter", minimum=0, maximum=1,
         exclusive_maximum=True),
    _row("lora_target_modules", "text", "default", "method",
         "names of linear layers, comma separated, or all-linear, experts; default: the entry's, else all-linear"),
    _row("use_rslora", "bool", False, "method", "scale the adapter by alpha / sqrt(r) (rank-stabilized LoRA)"),
    _row("use_dora", "bool", False, "method", "train magnitude and direction of the weights separately (DoRA)"),
    _row("int8_quantization", "bool", False, "method", "8-bit base weights under the adapter (bitsandbytes)"),
    _row("bits", "int", 16, "method", "bits of the base weights under the adapter; 16: not quantized",
         choices=("4", "8", "16")),
    _row("quant_type", "choice", "nf4", "method", "4-bit number format", choices=("nf4", "fp4")),
    _row("double_quant", "bool", True, "method", "4-bit: quantize the scales too"),
    _row("enable_fsdp", "bool", False, "method",
         "shard weights, gradients and optimizer state over the ranks (FSDP2)"),
    # Optimizer
    _row("optim", "choice", "adamw", "optimizer",
         "adamw: float32 master weights; adamw_bf16: all weights, gradients and moments in bfloat16 with "
         "stochastic rounding", choices=("adamw", "adamw_bf16")),
    _row("learning_rate", "float", 1e-4, "optimizer", "peak learning rate of AdamW", minimum=0, maximum=1,
         exclusive_minimum=True),
    _row("lr_scheduler_type", "choice", "linear", "optimizer", "learning-rate schedule after warm-up",
         choices=("linear", "cosine", "constant", "constant_with_warmup", "CosineAnnealing")),
    _row("min_learning_rate", "float", 0.0, "optimizer", "final learning rate of cosine, CosineAnnealing and linear",
         minimum=0, maximum=1),
    _row("constant_steps", "int", 0, "optimizer", "number of last steps at min_learning_rate", minimum=0),
    _row("warmup_ratio", "float", 0.0, "optimizer", "fraction of the steps used for warm-up", minimum=0, maximum=1),
    _row("warmup_steps", "int", 0, "optimizer", "number of warm-up steps; overrides warmup_ratio if above 0",
         minimum=0),
    _row("weight_decay", "float", 0.0, "optimizer", "decoupled weight decay of matrices", minimum=0, maximum=1),
    _row("adam_beta1", "float", 0.9, "optimizer", "beta1 of AdamW", minimum=0, maximum=1, exclusive_maximum=True),
    _row("adam_beta2", "float", 0.999, "optimizer", "beta2 of AdamW", minimum=0, maximum=1, exclusive_maximum=True),
    _row("adam_epsilon", "float", 1e-8, "optimizer", "epsilon of AdamW", minimum=0, maximum=1),
    _row("max_grad_norm", "float", 1.0, "optimizer",
         "maximum gradient norm; larger gradients are clipped; 0: no clipping", minimum=0),
    _row("label_smoothing_factor", "float", 0.0, "optimizer",
         "fraction of the target distribution spread over the whole vocabulary", minimum=0, maximum=1,
         exclusive_maximum=True),
    # Validation and checkpoints
    _row("evaluation_strategy", "choice", "epoch", "validation", "when the validation rows are scored",
         choices=("epoch", "steps", "no"), aliases=("evalaution_strategy", "eval_strategy")),
    _row("eval_steps", "int", 20, "validation",
         "steps between validations; setting it implies evaluation_strategy=steps", minimum=1),
    _row("save_strategy", "choice", "epoch", "validation",
         "when a checkpoint is written; each best one is always written", choices=("epoch", "steps", "no")),
    _row("save_steps", "int", 500, "validation", "steps between checkpoints; setting it implies save_strategy=steps",
         minimum=1),
    _row("save_total_limit", "int", 2, "validation", "maximum number of checkpoints besides the best one", minimum=1),
    _row("load_best_model_at_end", "bool", True, "validation",
         "the artifact is the best checkpoint by validation loss; False: the last"),
    _row("early_stopping_patience", "int", 3, "validation",
         "validations without improvement before stopping; -1: never", minimum=1, sentinel=-1),
    _row("early_stopping_threshold", "float", 0.0, "validation",
         "minimum decrease of the loss that counts as improvement", minimum=0),
    _row("answer_pattern", "pattern", None, "validation",
         "regular expression whose last match (its first group, if it has one) is the answer of a text, such as "
         "'#### (.+)'; scored as answer match"),
    _row("logging_strategy", "choice", "steps", "validation",
         "when a line of metrics.jsonl is written; the last step always writes one",
         choices=("steps", "epoch", "no")),
    _row("logging_steps", "int", 1, "validation", "steps between lines of metrics.jsonl", minimum=1),
    _row("logging_first_step", "bool", False, "validation", "write a line of metrics.jsonl for the first step too"),
    # Sent by SageMaker's clients, without effect in Luthier
    _row("logging_nan_inf_filter", "fixed", True, "fixed",
         "a loss that is not finite stops the run, so none is ever logged", choices=("True",)),
    _row("dataloader_num_workers", "fixed", "0", "fixed", "rows are read from a memory map without loader processes",
         choices=("0",)),
    _row("eval_accumulation_steps", "fixed", "None", "fixed",
         "scores are reduced after each batch, nothing accumulates", choices=("None",)),
    _row("deepspeed", "fixed", False, "fixed", "sharding is done by FSDP2: use enable_fsdp=True", choices=("False",)),
    _row("layer_norm_epilson", "fixed", "1e-05", "fixed", "the base model defines it",
         choices=("1e-05", "1e-5", "0.00001"), aliases=("layer_norm_epsilon",)),
    _row("tensor_parallel_degree", "fixed", "8", "fixed", "a setting of Neuron devices; see enable_fsdp",
         choices=("8", "1")),
    _row("pipeline_parallel_degree", "fixed", "1", "fixed", "a setting of Neuron devices; see enable_fsdp",
         choices=("1", "4")),
]

TABLE: dict[str, Hyperparameter] = {row.name: row for row in _ROWS}
