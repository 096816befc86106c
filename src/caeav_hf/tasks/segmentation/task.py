"""The records of segmentation: of single and of multiple sources."""

from dataclasses import replace

from ...task import FRAMES, Card, Target, Task


_HERE = __package__

_CARD = Card(
    title="audio-visual segmentation of single sources",
    hub_task="image-segmentation",
    knowledge="kinds of scenes",
    metric_note="""\
`j` is the mean overlap of masks. `f` is the mean over clips of the F-measure at the threshold that is best for the
clip, as AVSBench's evaluation has it; `f_whole_set` has one threshold for all clips.""",
)

# The presets hold the sizes of the authors' training scripts.
_SINGLE_SOURCE = Task(
    name="avs_s4",
    model=f"{_HERE}.modeling:CaeAvForSegmentation",
    rows=f"{_HERE}.rows:SegmentationRows",
    metric=f"{_HERE}.metric:clip_sums",
    targets={"labels": Target(axis=FRAMES, reader="loss", is_image=True)},
    label_column="masks",
    best_metric="j",
    preset={
        "num_labels": 1,
        "num_frames": 5,
        "adapter_stages": (1, 2, 3, 4),
        "num_latent_tokens": 87,
        "adapter_batch_norm": False,
        "adapter_gate": False,
        "unimodal_attention": "self",
        "router_noise_std": 0.01,
        "entropy_loss_weight": 0.005,
    },
    unfit_augmentation=dict.fromkeys(
        ("rand_augment", "crop_area", "erasing"), "masks belong to the frames as they are"
    ),
    results=f"{_HERE}.results",
    pipeline="caeav_hf.pipelines.segmentation:AudioVisualSegmentationPipeline",
    pipeline_name="audio-visual-segmentation",
    prediction="caeav_hf.cli.outputs:Masks",
    view="caeav_hf.app.views:Masks",
    card=_CARD,
    methods={
        "ssuformer": {
            "model": f"{_HERE}.modeling_ssuformer:SsuFormerForSegmentation",
            "config": "caeav_hf.configuration_ssuformer:SsuFormerConfig",
            "preset": {"outputs": "masks", "num_frames": 5},
        }
    },
    misalignment=f"{_HERE}.misalignment:MaskCorrection",
)

_MULTIPLE_SOURCES = replace(
    _SINGLE_SOURCE,
    name="avs_ms3",
    preset={
        "num_labels": 1,
        "num_frames": 5,
        "num_latent_tokens": 87,
        "adapter_batch_norm": False,
        "adapter_gate": False,
        "unimodal_attention": "latent",
        "router_noise_std": 0.01,
        "load_balancing_loss_weight": 0.01,
        "matching_loss_weight": 0.5,
        "entropy_loss_weight": 0.005,
    },
    card=replace(_CARD, title="audio-visual segmentation of multiple sources"),
)

TASKS = (_SINGLE_SOURCE, _MULTIPLE_SOURCES)
