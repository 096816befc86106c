"""Write LLP as Parquet: `python dataset_scripts/llp.py --annotations DIR --media DIR --out DIR`."""

from caeav_hf.tasks.video_parsing.builder import LlpBuilder, main


__all__ = ["LlpBuilder"]


if __name__ == "__main__":
    main()
