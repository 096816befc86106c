"""Write MUSIC-AVQA as Parquet: `python dataset_scripts/music_avqa.py --annotations DIR --media DIR --out DIR`."""

from caeav_hf.data.builder import run_builder
from caeav_hf.tasks.question_answering.builder import MusicAvqaBuilder


__all__ = ["MusicAvqaBuilder"]


if __name__ == "__main__":
    run_builder(MusicAvqaBuilder)
