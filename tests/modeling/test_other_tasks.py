"""Loading a checkpoint into the class of another task, without head, and with other labels."""

import json

import pytest
import torch

from caeav_hf import (
    CaeAvConfig,
    CaeAvError,
    CaeAvForEventLocalization,
    CaeAvForQuestionAnswering,
    CaeAvForSegmentation,
    CaeAvForVideoParsing,
    CaeAvModel,
)
from caeav_hf.assets import toy_towers
from tests.lanes import slow_after


CLASSES = {
    "ave": CaeAvForEventLocalization,
    "avvp": CaeAvForVideoParsing,
    "avs_ms3": CaeAvForSegmentation,
    "avqa": CaeAvForQuestionAnswering,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {task: tmp_path_factory.mktemp(task) for task in CLASSES}
    for task, model_class in CLASSES.items():
        model_class(CaeAvConfig.from_preset(task, size="toy")).save_pretrained(folders[task])
    return folders


@pytest.mark.parametrize("task", slow_after(1, CLASSES))
def test_another_task_is_refused_by_name(task, folders):
    for other, model_class in CLASSES.items():
        if other == task:
            assert type(model_class.from_pretrained(folders[task])) is model_class
            continue
        expected = rf"{CLASSES[task].__name__} \(task '{task}'\).*{model_class.__name__} \(task .*'{other}'"
        with pytest.raises(CaeAvError, match=expected):
            model_class.from_pretrained(folders[task])
        # A configuration given by the caller does not change the task of the weights.
        with pytest.raises(CaeAvError, match=expected):
            model_class.from_pretrained(
                pretrained_model_name_or_path=folders[task], config=CaeAvConfig.from_preset(other, size="toy")
            )


def test_a_file_that_does_not_name_its_class_is_known_by_its_task(folders, tmp_path):
    model = CaeAvForSegmentation.from_pretrained(folders["avs_ms3"])
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    CaeAvForSegmentation.from_pretrained(tmp_path)
    with pytest.raises(CaeAvError, match="CaeAvForSegmentation"):
        CaeAvForVideoParsing.from_pretrained(tmp_path)


@pytest.mark.slow
def test_encoders_go_between_tasks(folders, tmp_path):
    encoder = CaeAvModel.from_pretrained(folders["ave"])
    encoder.save_pretrained(tmp_path)
    loaded = CaeAvForSegmentation.from_pretrained(tmp_path).cae_av.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in encoder.state_dict().items())
    # Both presets of segmentation have one class.
    single_source = CaeAvConfig.from_preset("avs_s4", size="toy", unimodal_attention="latent", adapter_stages=(1, 3))
    CaeAvForSegmentation.from_pretrained(folders["avs_ms3"], config=single_source)
    assert type(CaeAvForVideoParsing.from_backbones(**toy_towers(), task="avvp", size="toy")) is CaeAvForVideoParsing

    class Subclass(CaeAvForEventLocalization):
        pass

    assert type(Subclass.from_pretrained(folders["ave"])) is Subclass
    with pytest.raises(CaeAvError, match="CaeAvForQuestionAnswering"):
        Subclass.from_pretrained(folders["avqa"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "labels",
    slow_after(
        1,
        [
            {"id2label": {0: "bark", 1: "bell", 2: "horn"}, "label2id": {"bark": 0, "bell": 1, "horn": 2}},
            {"num_labels": 3},
        ],
    ),
)
def test_a_new_set_of_labels(labels, folders, tmp_path):
    old = CaeAvForEventLocalization.from_pretrained(folders["ave"])
    with pytest.raises(CaeAvError, match=r"ave.*ignore_mismatched_sizes"):
        CaeAvForEventLocalization.from_pretrained(folders["ave"], **labels)
    model = CaeAvForEventLocalization.from_pretrained(folders["ave"], ignore_mismatched_sizes=True, **labels)
    assert model.config.num_labels == len(model.config.id2label) == 3
    new = model.state_dict()
    changed = {name for name, tensor in old.state_dict().items() if new[name].shape != tensor.shape}
    assert changed
    assert all(name.startswith("head.") for name in changed)
    same = {name for name, tensor in old.state_dict().items() if torch.equal(new[name], tensor)}
    assert same >= set(new) - changed
    model.save_pretrained(tmp_path)
    assert CaeAvForEventLocalization.from_pretrained(tmp_path).config.id2label == model.config.id2label
