"""Inference of the adapters' options from an official checkpoint, one function per family of methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CaeAvError
from ..towers.evidence import Evidence


@dataclass
class AdapterEvidence:
    """
    What an official checkpoint says about its adapters.

    Attributes:
        evidence: The tensors; values of the authors' flags are recorded there.
        task: The task.
        adapters: Prefixes of the visual stream's first adapters, in the order of the blocks.
        stages: Stages with adapters, from 1.
        num_stages: Number of stages.
        flags: The authors' flags that shape the model, as the caller gave them.
        overrides: Fields of the configuration, as the caller gave them.
        without_effect: Reasons for flags without effect; the reading functions add to it.
    """

    evidence: Evidence
    task: str
    adapters: list[str]
    stages: list[int]
    num_stages: int
    flags: Mapping[str, Any]
    overrides: Mapping[str, Any]
    without_effect: dict[str, str]

    def record_flag(self, name: str, key: str) -> None:
        """Record a flag that is 1 if the checkpoint has a key."""
        self.evidence.record(name, int(key in self.evidence.state), key)

    def record_bottleneck(self, adapter: str, expert: str) -> None:
        """Record reduction and groups of an expert of an adapter, or of the adapter itself, given their prefixes."""
        down = f"{expert}down_sampler.weight"
        bottleneck, group_width = self.evidence.shape(down)[:2]
        width = self.evidence.shape(f"{adapter}fc.weight")[0]
        self.evidence.record("Adapter_downsample", width // bottleneck, down)
        self.evidence.record("num_conv_group", width // group_width, down)

    def check_flags(self, exempt: Mapping[str, str] | None = None) -> None:
        """
        Check the flags against the recorded values. Flags that no tensor can contradict, and those of `exempt`, are
        added to `without_effect`.

        Raises:
            CaeAvError: A flag contradicts a tensor.
        """
        checked = {}
        for name, value in self.flags.items():
            if name in (exempt or {}):
                self.without_effect[name] = (exempt or {})[name]
            elif name in self.evidence.values:
                checked[name] = value
            else:
                self.without_effect[name] = "the checkpoint has no tensor that it shapes"
        self.evidence.merge("option", checked, set(checked))


def read_avmoe(found: AdapterEvidence) -> dict[str, Any]:
    """Infer the fields of AVMoE's adapters, CAE-AV's too, from the first adapter of each stream."""
    evidence, task, adapters = found.evidence, found.task, found.adapters
    first, audio = adapters[0], adapters[0].replace("vis", "audio", 1)
    experts = {
        name: evidence.count(rf"^{first.replace('.', '[.]')}{name}_experts\.(\d+)\.")
        for name in ("multimodal", "singlemodal")
    }
    expert = f"{first}multimodal_experts.0." if experts["multimodal"] else f"{first}singlemodal_experts.0."
    own = f"{first}singlemodal_experts.0."
    evidence.record("num_multimodal_experts", experts["multimodal"], f"{first}router.4.weight")
    evidence.record("num_singlemodal_experts", experts["singlemodal"], f"{first}router.4.weight")
    found.record_bottleneck(first, expert)
    latents = next((key for key in (f"{expert}my_tokens", f"{own}my_tokens") if key in evidence.state), None)
    if latents is not None:
        evidence.record("num_tokens", evidence.shape(latents)[0], latents)

    audio_expert = expert.replace("vis", "audio", 1)
    found.record_flag("is_bn", f"{expert}bn1.weight")
    found.record_flag("is_gate", f"{audio_expert}gate")
    found.record_flag("is_before_layernorm", f"{expert}ln_before.weight")
    found.record_flag("is_post_layernorm", f"{expert}ln_post.weight")
    attention, key = "none", f"{own}down_sampler.weight"
    for kind, name in (("self", "self_attention.in_proj_weight"), ("latent", "gate_self"), ("dot", "gate_av")):
        if f"{own}{name}" in evidence.state:
            attention, key = kind, f"{own}{name}"
    if task != "avvp":
        evidence.record("is_self_attention", int(attention != "none"), key)
    if attention in ("self", "latent"):
        evidence.record("self_attention_version", "v1" if attention == "self" else "v2", key)
    record_head(evidence, task)
    exempt = {}
    if task.startswith("avs"):
        # It always has 87 latents.
        exempt["num_tokens"] = "the authors' segmentation ignores it"
    if "num_skip" in found.flags:
        _check_skip(found)
    found.check_flags(exempt)
    values = {
        "num_cross_modal_experts": experts["multimodal"],
        "num_unimodal_experts": experts["singlemodal"],
        "adapter_reduction": evidence.values["Adapter_downsample"],
        "adapter_groups": evidence.values["num_conv_group"],
        "adapter_batch_norm": bool(evidence.values["is_bn"]),
        "adapter_gate": bool(evidence.values["is_gate"]),
        "visual_adapter_gate": f"{expert}gate" in evidence.state,
        "adapter_norm_before": bool(evidence.values["is_before_layernorm"]),
        "adapter_norm_after": bool(evidence.values["is_post_layernorm"]),
        "unimodal_attention": attention,
    }
    if latents is not None:
        values["num_latent_tokens"] = evidence.values["num_tokens"]
    if f"{audio}fc.weight" not in evidence.state:
        raise CaeAvError(f"the checkpoint has {first + 'fc.weight'!r}, but no {audio + 'fc.weight'!r}")
    return values


def _check_skip(found: AdapterEvidence) -> None:
    """Check that the stages with adapters are those that `num_skip` leaves, and record it."""
    skip = found.flags["num_skip"]
    by_skip = [stage for stage in range(1, found.num_stages + 1) if skip <= 1 or stage % skip]
    key = found.adapters[-1] + "fc.weight"
    if by_skip != found.stages:
        raise CaeAvError(
            f"option 'num_skip' is {skip}, which puts adapters into stages {by_skip}, but the tensors up to "
            f"{key!r} belong to stages {found.stages}"
        )
    found.evidence.record("num_skip", skip, key)


def read_dg_sct(found: AdapterEvidence) -> dict[str, Any]:
    """Infer DG-SCT's options from the first adapter of each stream. Its weights alpha and beta are in no tensor."""
    evidence, task = found.evidence, found.task
    first = found.adapters[0]
    audio = first.replace("vis", "audio", 1)
    if f"{audio}fc.weight" not in evidence.state:
        raise CaeAvError(f"the checkpoint has {first + 'fc.weight'!r}, but no {audio + 'fc.weight'!r}")
    found.record_bottleneck(first, first)
    latents = f"{first}my_tokens"
    evidence.record("num_tokens", evidence.shape(latents)[0], latents)
    found.record_flag("is_multimodal", latents)
    found.record_flag("is_bn", f"{first}bn1.weight")
    found.record_flag("is_gate", f"{audio}gate")
    found.record_flag("is_post_layernorm", f"{first}ln_post.weight")
    options: dict[str, Any] = {
        "reduction": evidence.values["Adapter_downsample"],
        "groups": evidence.values["num_conv_group"],
        "num_latent_tokens": evidence.values["num_tokens"],
        "batch_norm": bool(evidence.values["is_bn"]),
        "gated_streams": "both" if evidence.values["is_gate"] else "visual",
    }
    values: dict[str, Any] = {"method": "dg_sct"}
    exempt = {}
    if task.startswith("avs"):
        exempt["is_before_layernorm"] = "the authors' segmentation builds this norm but never runs it"
        # In their segmentation, frames have the size of the masks.
        if "mask_size" in found.overrides:
            values["frame_size"] = found.overrides["mask_size"]
    else:
        found.record_flag("is_before_layernorm", f"{first}ln_before.weight")
        options["norm_before"] = bool(evidence.values["is_before_layernorm"])
    if "gamma" in found.flags:
        if task == "avs_ms3":
            values["head_gate_scale"] = found.flags["gamma"]
            evidence.record("gamma", found.flags["gamma"], "gamma")  # not determined by a tensor
        else:
            exempt["gamma"] = "only the authors' segmentation of several sources reads it"
    record_head(evidence, task)
    found.check_flags(exempt)
    return {**values, "interaction_options": options}


def record_head(evidence: Evidence, task: str) -> None:
    """Record the authors' flags that the tensors of the task head tell."""
    if task == "ave":
        evidence.record(
            "is_cmbs", int(evidence.find(r"^CMBS\.") is not None), evidence.find(r"^(CMBS|mlp_class)\.") or "CMBS."
        )
        if evidence.values["is_cmbs"]:
            relation = evidence.find(r"^(?:temporal_attn\.)?v_fc\.") or "temporal_attn.v_fc.weight"
            evidence.record("is_temporal_att", int(relation.startswith("temporal_attn.")), relation)
    if task == "avqa":
        evidence.record("avqa_fc_class", evidence.shape("fc_ans.weight")[0], "fc_ans.weight")
    if task == "avvp":
        evidence.record("dim", evidence.shape("fc_a.weight")[0], "fc_a.weight")
        for name, blocks in (("depth_aud", "audio_cug"), ("depth_vis", "visual_cug"), ("depth_av", "av_mcg")):
            number = evidence.count(rf"^{blocks}\.blocks\.(\d+)\.")
            evidence.record(name, number, f"{blocks}.blocks.{number - 1}")
