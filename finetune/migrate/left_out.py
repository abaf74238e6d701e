"""Keys of the four tools that have no counterpart: why, and what to do instead. Unknown ones are told too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetune.migrate.account import Account, Fate
from finetune.recipe.positions import KeyPath

_PACKING = "rows are laid end to end and no padding is computed (train.layout: ragged), one row not seeing another"
_SPEED = "a kernel for speed; what there is here is chosen by itself, nothing to set"
_ONE = "one process on one device here so far: several are refused"
_PUBLISH = "training publishes nothing: `finetune publish` does, with card and licence, private by default"
_TRACK = "no such tracker here: track.wandb, track.tensorboard, and metrics.jsonl in every run folder"
_FOLDERS = "runs go to the folder of --runs, named by the recipe and a fingerprint of its inputs"
_METHOD = "this method is not here: without it training differs"
_MEMORY = "nothing to set; `finetune plan` estimates the memory beforehand"

_RULES: tuple[tuple[str, Fate, str], ...] = (
    (r"(eval_)?sample_packing.*|(eval_)?packing|packing_strategy|neat_packing|packed|pad_to_sequence_len|multipack_.*|"
     r"group_by_length|batch_flattening|padding_free|pad_to_multiple_of|.*_multipack_.*|train_sampling_strategy|"
     r"length_column_name", Fate.LEFT_OUT, _PACKING),
    (r"flash_attn.*|flash_attention|flash_optimum|(sdp|xformers|eager|flex|s2|sage)_attention|attention|"
     r"attn_implementation|use_flash_attention.*|flex_attn_.*|shift_attn", Fate.LEFT_OUT,
     "attention that fits the device is chosen by itself, without a package to build"),
    (r"unsloth_.*|use_unsloth.*|liger_.*|use_liger.*|enable_liger.*|lora_(mlp|qkv|o|embedding)_kernel|"
     r"cut_cross_entropy.*|torch_compile.*|compile|use_kernels|use_v1_kernels|tf32|fp8.*|use_kv_cache|use_cache|"
     r"optimizer_in_bwd|custom_sharded_layers", Fate.LEFT_OUT, _SPEED),
    (r"plugins", Fate.LEFT_OUT, "no plug-ins here; of those for speed nothing is lost"),
    (r"deepspeed|fsdp.*|ddp.*|local_rank|world_size|device_map|accelerator_config|tensor_parallel.*|dp_.*|"
     r"context_parallel.*|sequence_parallel.*|ring_attn_func|heads_k_stride|use_ray|ray_.*|resources_per_worker|"
     r"parallelism_config|average_tokens_across_devices|max_memory|gpu_memory_limit|qlora_sharded_model_loading|"
     r"use_mca", Fate.LEFT_OUT, _ONE),
    (r"hub_.*|push_to_hub.*|save_safetensors|hub_always_push", Fate.LEFT_OUT, _PUBLISH),
    (r"(hf_use_|use_|hf_hub_|ms_hub_|om_hub_)?(auth_)?token", Fate.LEFT_OUT,
     "log in with `hf auth login`; no token stands in a recipe"),
    (r"wandb_.*|use_wandb", Fate.LEFT_OUT,
     "of wandb a recipe has project, entity, mode and tags (track.wandb); a run is named by its stage"),
    (r"mlflow.*|use_mlflow|hf_mlflow.*|comet_.*|use_comet|use_tensorboard|swanlab.*|use_swanlab|trackio.*|"
     r"logging_dir|gradio_.*|otel_.*|use_otel.*|report_to|run_name|project", Fate.LEFT_OUT, _TRACK),
    (r"logging_.*|log_.*|plot_loss|disable_tqdm|include_(tokens|effective|num_input).*|debug|strict|"
     r"loss_watchdog_.*|print_param_status|gc_steps|torch_empty_cache_steps|num_completions_to_print", Fate.LEFT_OUT,
     "every step is written to metrics.jsonl, with speed and memory; a loss that is not finite ends the run"),
    (r"profiler.*", Fate.LEFT_OUT, "no profiler is started from a recipe"),
    (r"output_dir|overwrite_output_dir|dataset_prepared_path|overwrite_cache|tokenized_path|cache_dir|offload_folder|"
     r"dataset_cache.*|export_dir", Fate.LEFT_OUT, _FOLDERS),
    (r"resume_from_checkpoint|auto_resume_from_checkpoints|save_only_model|save_on_each_node|ignore_data_skip|"
     r"save_adapter_weights_only|save_last_epoch_only|keep_last_n_checkpoints|enable_async_checkpointing",
     Fate.LEFT_OUT, "a run that was stopped goes on by itself when the same command is given again"),
    (r"save_strategy|saves_per_epoch|save_every_.*|save_first_step", Fate.LEFT_OUT,
     "ten checkpoints in a run; train.checkpoint_every gives steps"),
    (r"eval_strategy|evaluation_strategy|evals_per_epoch|do_eval|eval_on_start|eval_delay|run_val_every_n_steps",
     Fate.LEFT_OUT, "held-out rows are measured first, last and up to ten times between; train.eval_every says steps"),
    (r"eval_batch_size|per_device_eval_batch_size|eval_accumulation_steps|batch_size_val|prediction_loss_only|"
     r"batch_eval_metrics|bf16_full_eval|fp16_full_eval", Fate.LEFT_OUT,
     "held-out rows are measured in portions of train.micro_batch_size"),
    (r"eval_table_size|eval_max_new_tokens|do_causal_lm_eval|eval_causal_lm_metrics|do_bench_eval|bench_.*|"
     r"predict_with_generate|compute_accuracy|do_predict|eval_num_beams|generate_during_eval|do_sample|num_beams|"
     r"generation_.*", Fate.LEFT_OUT, "answers are measured after training: `finetune eval` and `finetune chat`"),
    (r"load_best_model_at_end|metric_for_best_model|greater_is_better", Fate.LEFT_OUT,
     "the last step is kept; with train.early_stop, the step with the best held-out loss"),
    (r"dataset_processes|dataset_num_proc|preprocessing_.*|dataloader_.*|dataset_keep_in_memory|dataset_shard.*|"
     r"shards.*|preprocess_shards|buffer_size|skip_prepare_dataset|remove_unused_columns|ds_type|low_cpu.*|"
     r"dataset_kwargs|data_seed|num_proc|is_preprocess|label_names|use_cpu", Fate.LEFT_OUT,
     "rows are read, checked and cached by themselves"),
    (r"shuffle|shuffle_merged_datasets|shuffle_dataset|disable_shuffling|curriculum_sampling", Fate.LEFT_OUT,
     "rows are put in an order drawn with the seed, a new one in each pass"),
    (r"model_type|tokenizer_type|base_model_config|cls_model_config|tokenizer_.*|is_(llama|mistral|falcon|qwen).*_model|"
     r"use_fast_tokenizer|split_special_tokens|model_init_kwargs|processor_type|quantization_device_map|dtype|"
     r"torch_dtype|bfloat16|float16|float32|upcast_.*|pure_bf16|bnb_4bit_.*|use_bnb_nested_quant|double_quantization|"
     r"quantization_type|bnb_config_kwargs|lora_task_type|infer_.*|lora_on_cpu|lora_fan_in_fan_out|merge_lora|"
     r"rope_scaling|use_exllama.*", Fate.LEFT_OUT,
     "found from the base itself; model.load_in and model.compute say how it is held (nf4 is always double-quantised)"),
    (r"num_labels", Fate.LEFT_OUT, "a reward model gives one number"),
    (r"trust_remote_code", Fate.LEFT_OUT, "code from the hub is never run"),
    (r"special_tokens|pad_token|eos_token|bos_token|eot_tokens|fix_untrained_tokens|train_on_eos|"
     r"ignore_pad_token_for_loss", Fate.LEFT_OUT,
     "the base's family knows its stop and pad tokens; padding is never one that ends a text (docs/families.md)"),
    (r"tokens|added_tokens_overrides|add_tokens|add_special_tokens|new_special_tokens.*|init_special_tokens|"
     r"resize_.*|shrink_embeddings|mean_resizing_embeddings|embeddings_skip_upcast", Fate.DECIDE,
     "no words are added to a vocabulary here: write such marks as plain text, or start from a base that has them"),
    (r"chat_template.*|tool_format|default_system|enable_thinking|reasoning_effort|split_thinking|field_thinking|"
     r"template_thinking_key", Fate.DECIDE,
     "a chat format is one of those in docs/families.md (model.template); templates of one's own are not read"),
    (r"gradient_checkpointing_kwargs|use_reentrant_gc|activation_offloading|enable_activation_offloading|"
     r"disable_gradient_checkpointing|activation_checkpointing.*", Fate.LEFT_OUT, _MEMORY),
    (r"auto_find_batch_size|include_for_metrics|full_determinism|enable_jit_checkpoint|disable_dropout|do_train|"
     r"device|dtype_override|env|config|cudnn_deterministic_mode|use_adam_mini_.*|clip_range_.*", Fate.LEFT_OUT,
     "nothing to set here"),
    (r"precompute_ref_.*|ref_model_.*|sync_ref_model|ref_model|dpo_use_logits_to_keep|ref_checkpointer", Fate.LEFT_OUT,
     "the reference is what the stage starts from, frozen, on the same base; its values are cached where cheaper"),
    (r"max_prompt_length|max_prompt_len|max_completion_length|max_target_length|truncation_mode|min_sample_len",
     Fate.LEFT_OUT, "one limit for prompt and answer together: model.max_length; nothing of a comparison is cut"),
    (r"neftune_noise_alpha|noisy_embedding_alpha|loraplus_.*|lr_groups|relora.*|lisa_.*|use_(galore|apollo|badam|muon|"
     r"adam_mini|llama_pro|dft_loss|pose|oft|qoft)|(galore|apollo|badam|oft)_.*|optim_.*|jagged_.*|qat.*|quantizer|"
     r"pose_.*|label_smoothing_factor|lr_scheduler_kwargs|cosine_.*|lr_quadratic_warmup|lr_div_factor|num_cycles|"
     r"embedding_lr.*|unfrozen_parameters|peft_layer.*|peft_trainable.*|lora_target_parameters|diffusion|mixture_of_depths|"
     r"module_dropout|dpo_use_weighting|use_weighting|ld_alpha|f_.*divergence.*|pref_bco_weight|discopop_tau|"
     r"router_aux_loss_coef|moe_aux_loss_coef|train_from_scratch|adam_(beta3|epsilon2)|eaft_.*|loss_type|loss_weights",
     Fate.DECIDE, _METHOD),
)  # fmt: skip


def account_for_the_rest(account: Account, values: Mapping[str, Any], path: KeyPath = ()) -> None:
    """Tell the fate of every key that the import has not told. A section of which something was told is walked into."""
    for key, value in values.items():
        here = (*path, key)
        if here in account.told:
            continue
        if any(other[: len(here)] == here for other in account.told):
            _walk(account, value, here)
        else:
            fate, note = _fate(key, value)
            account.tell(here, value, fate, note)


def _walk(account: Account, value: Any, path: KeyPath) -> None:
    if isinstance(value, Mapping):
        account_for_the_rest(account, value, path)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            if isinstance(entry, Mapping):
                account_for_the_rest(account, entry, (*path, index))
            elif (*path, index) not in account.told:
                account.tell((*path, index), entry, *_fate(str(path[-1]), entry))


def _fate(key: str, value: Any) -> tuple[Fate, str]:
    if value is None or value in ("", [], {}):
        return Fate.EMPTY, ""
    for pattern, fate, note in _RULES:
        if re.fullmatch(pattern, key):
            return (Fate.EMPTY, "") if value is False or str(value).lower() == "none" else (fate, note)
    return Fate.DECIDE, "not known to this import: see what it does there, and whether docs/recipe.md has a key for it"
