"""Writes AVE as Parquet: `python dataset_scripts/ave.py --annotations DIR --media DIR --out DIR`."""

from caeav_hf.data.ave import AveBuilder
from caeav_hf.data.builder import run_builder


__all__ = ["AveBuilder"]


if __name__ == "__main__":
    run_builder(AveBuilder)
