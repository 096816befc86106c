"""Runs on questions about clips: the same loop, a tokenizer of the training questions, accuracies by type."""

import json

import pytest
import torch

from caeav_hf import CaeAvForQuestionAnswering, CaeAvProcessor
from caeav_hf.data import CaeAvDataset
from caeav_hf.training.command import main
from tests.training.toy_files import question_data


pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train for one epoch, stopped early and resumed."""
    folder = tmp_path_factory.mktemp("runs") / "questions"
    flags = {"--data": question_data(), "--output-dir": folder, "--epochs": 1, "--batch-size": 2, "--save-steps": 1}
    arguments = [str(part) for pair in flags.items() for part in pair]
    assert main(["--task", "avqa", "--size", "toy", *arguments, "--max-steps", "2"]) == 0
    assert main(["--resume", str(folder), "--max-steps", "3"]) == 0
    return folder


def test_a_run_keeps_the_words_of_its_training_questions(trained):
    processor = CaeAvProcessor.from_pretrained(trained / "checkpoints" / "last")
    model = CaeAvForQuestionAnswering.from_pretrained(trained / "checkpoints" / "last")
    tokenizer = processor.question_tokenizer
    assert model.config.question_vocab_size == len(tokenizer)
    rows = CaeAvDataset(question_data(), processor, split="train").rows
    assert all(tokenizer.unk_token_id not in tokenizer(question).input_ids for question in rows["question"])
    assert model.config.label2id.keys() == set(rows.features["answer_label"].names)


def test_accuracies_are_those_of_questions_one_by_one(trained, capsys):
    last = trained / "checkpoints" / "last"
    assert main(["--evaluate", str(last), "--split", "test"]) == 0
    printed = json.loads(capsys.readouterr().out)
    model = CaeAvForQuestionAnswering.from_pretrained(last).eval()
    data = CaeAvDataset(question_data(), CaeAvProcessor.from_pretrained(last), split="test")
    right: dict[str, list[bool]] = {"accuracy": []}
    for number, item in enumerate(data):
        inputs = {name: value[None] for name, value in item.items() if name not in ("video_id", "labels")}
        with torch.no_grad():
            is_right = bool(model(**inputs).logits.argmax() == item["labels"])
        row = data.rows[number]
        kind = f"accuracy/{row['question_type']}"
        for name in ("accuracy", kind, f"{kind}/{row['question_subtype']}"):
            right.setdefault(name, []).append(is_right)
    assert len(right) > 4
    for name, answers in right.items():
        assert printed[name] == pytest.approx(sum(answers) / len(answers))


def test_matching_is_trained_where_another_clip_is_in_the_batch(trained):
    history = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert history[-1]["train/matching"] > 0
    assert history[-1]["step"] == 3
