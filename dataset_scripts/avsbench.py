"""Write AVSBench as Parquet: `python dataset_scripts/avsbench.py --setting s4 --annotations A --media M --out O`."""

from caeav_hf.tasks.segmentation.builder import AvsBenchBuilder, main


__all__ = ["AvsBenchBuilder"]


if __name__ == "__main__":
    main()
