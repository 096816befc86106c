"""Run as a program on several processes: one tiny training, its weights and scores written to a folder."""

import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.training.tiny_training import TinyData, tiny_model, tiny_recipe, tiny_trainer


def main(folder: str, batch_size: str) -> None:
    torch.set_num_threads(1)
    recipe = tiny_recipe(epochs=2, batch_size=int(batch_size), accumulation_steps=2)
    model = tiny_model(dropout=0.0, batch_norm=False)
    # Clip 9 cannot be decoded, so that one process has fewer clips than the other.
    trainer = tiny_trainer(folder, recipe, train=TinyData(22, broken=(9,)), test=TinyData(7, seed=1), model=model)
    trainer.fit()
    if trainer.accelerator.is_main_process:
        torch.save(trainer.bare_model.state_dict(), Path(folder) / "weights.pt")
        print(json.dumps({"processes": trainer.accelerator.num_processes, "history": trainer.state.history}))


if __name__ == "__main__":
    main(*sys.argv[1:])
