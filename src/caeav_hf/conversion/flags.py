"""Command-line flags of the authors' programs, as the namespace of a run holds them."""

import argparse
import difflib
from collections.abc import Mapping
from typing import Any

from ..errors import CaeAvError


# Flags that shape the model, with the types that the authors' parsers give them.
SHAPING: Mapping[str, type] = {
    **dict.fromkeys(("num_skip", "num_multimodal_experts", "num_singlemodal_experts", "num_tokens"), int),
    **dict.fromkeys(("Adapter_downsample", "num_conv_group", "is_bn", "is_gate", "is_before_layernorm"), int),
    **dict.fromkeys(("is_post_layernorm", "is_self_attention", "is_cmbs", "is_temporal_att", "avqa_fc_class"), int),
    **dict.fromkeys(("dim", "depth_aud", "depth_vis", "depth_av"), int),
    "self_attention_version": str,
}

_ALL = {
    *("lr", "gpu", "num_workers", "model_name", "wandb", "audio_length", "root_path", "backbone_type", "accum_itr"),
    *("Adapter_downsample", "num_conv_group", "num_multimodal_experts", "num_singlemodal_experts", "num_tokens"),
    *("is_bn", "is_gate", "is_multimodal", "is_before_layernorm", "is_post_layernorm", "is_vit_ln"),
    "is_fusion_before",
}
# In all programs except segmentation's.
_CLASSIFYING = _ALL | {
    *("audio_dir", "video_dir", "st_dir", "label_train", "label_val", "label_test", "batch_size", "epochs", "model"),
    *("mode", "seed", "log_interval", "model_save_dir", "checkpoint", "adapter_kind", "is_audio_adapter_p1"),
    *("is_audio_adapter_p2", "is_audio_adapter_p3"),
}
_FRAMES = {
    *("audio_folder", "video_folder", "qkv_fusion", "start_tune_layers", "start_fusion_layers", "vis_encoder_type"),
}
_SEGMENTATION = _ALL | {
    *("session_name", "visual_backbone", "train_batch_size", "val_batch_size", "max_epoches", "wt_dec", "weights"),
    *("sa_loss_flag", "lambda_1", "sa_loss_stages", "mask_pooling_type", "tpavi_stages", "tpavi_vv_flag"),
    *("tpavi_va_flag", "log_dir", "early_stop", "is_init_from_checkpoint", "model_load_dir", "is_self_attention"),
    *("self_attention_version", "num_skip", "use_load_balacing_loss", "load_balancing_loss_weight", "visual_only"),
    # In the training and test scripts.
    *("test_batch_size", "save_pred_mask", "checkpoint_dir"),
}

# Flags of each task's programs. CAE-AV's programs are built on AVMoE's, and AVMoE's on DG-SCT's, so a namespace may
# hold flags of all three.
FLAGS: Mapping[str, frozenset[str]] = {
    "ave": frozenset(
        _CLASSIFYING
        | _FRAMES
        | {
            *("lr_mlp", "lr_v", "occ_dim", "init_epoch", "is_v_ori", "is_a_ori", "tsne", "early_stop", "threshold"),
            *("tmp", "smooth", "margin1", "alpha", "beta", "delta", "gamma", "decay", "decay_epoch", "aug_type"),
            *("pos_pool", "neg_pool", "exp", "ybloss", "num_layer", "num_head", "prob_drop", "prob_drop_occ"),
            *("forward_dim", "epoch_remove", "audio_enc", "num_remove", "model_size", "is_init_best_checkpoint"),
            *("is_inter_in_cmbs", "is_cmbs", "is_temporal_att", "num_skip", "is_self_attention"),
        }
    ),
    "avvp": frozenset(
        _CLASSIFYING
        | _FRAMES
        | {
            *("warmup_epochs", "weight_decay", "unimodal_assign", "crossmodal_assign", "dim", "depth_aud"),
            *("depth_vis", "depth_av", "is_router", "checkpoint_path", "is_load_checkpoint", "model_load_dir"),
            "use_load_balacing_loss",
        }
    ),
    "avs_s4": frozenset(_SEGMENTATION),
    "avs_ms3": frozenset(
        _SEGMENTATION
        | {
            *("gamma", "model_size", "is_init_best_checkpoint", "masked_av_flag", "masked_av_stages"),
            *("threshold_flag", "norm_fea_flag", "closer_flag", "euclidean_flag", "kl_flag", "load_s4_params"),
            "trained_s4_model_path",
        }
    ),
    "avqa": frozenset(
        _CLASSIFYING
        | {
            *("video_res14x14_dir", "early_stop", "lr_block", "tmp_av", "tmp_tv", "coff_av", "coff_tv"),
            *("is_init_from_checkpoint", "model_load_dir", "is_self_attention", "num_skip", "avqa_fc_class"),
        }
    ),
    # DG-SCT's few-shot program is built on that of event localization.
    **dict.fromkeys(
        ("ave_few_shot", "ave_few_shot_classification", "avvp_few_shot_classification"),
        frozenset(_CLASSIFYING | _FRAMES | {"gamma", "early_stop", "decay", "decay_epoch"}),
    ),
}


def shaping_flags(
    options: Mapping[str, Any] | argparse.Namespace | None, task: str, shaping_types: Mapping[str, type] = SHAPING
) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Split the authors' flags into those that shape a task's model and those without effect.

    Args:
        options: Flags under the authors' names, with dashes or underscores, or the namespace of a run.
        task: Task of the checkpoint.
        shaping_types: Flags that shape the method's models, with the types of the authors' parsers.

    Returns:
        The values of the flags that shape the model, converted as the authors' parsers do; and for each other flag the
        reason why it has no effect.

    Raises:
        CaeAvError: None of the authors' programs has the flag, or its parser would reject the value.
    """
    given = vars(options) if isinstance(options, argparse.Namespace) else dict(options or {})
    shaping: dict[str, Any] = {}
    without_effect: dict[str, str] = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        tasks = [other for other, names in FLAGS.items() if name in names]
        if not tasks:
            near = difflib.get_close_matches(name, set().union(*FLAGS.values()), n=1, cutoff=0)
            raise CaeAvError(f"option {key!r} is in none of the authors' parsers; the nearest is {near[0]!r}")
        if task not in tasks:
            without_effect[name] = f"not a flag of {task}, only of {', '.join(tasks)}"
        elif name in shaping_types:
            shaping[name] = _typed(name, value, shaping_types[name])
        elif name in ("unimodal_assign", "crossmodal_assign") and value != "soft":
            raise CaeAvError(f"option {name!r} is {value!r}, but this package supports only 'soft'")
        else:
            without_effect[name] = "no size of the model depends on it"
    return shaping, without_effect


def _typed(name: str, value: Any, kind: type) -> Any:
    """Convert a value from a namespace, a shell script or YAML as the authors' parser does."""
    if kind is str:
        return str(value)
    if kind is float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise CaeAvError(f"option {name!r} must be a number, as in the authors' parsers, got {value!r}") from None
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = None
    if number is None or (isinstance(value, float) and number != value):
        raise CaeAvError(f"option {name!r} must be an integer, as in the authors' parsers, got {value!r}")
    return number
