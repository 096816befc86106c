"""Write AVE as Parquet: `python dataset_scripts/ave.py --annotations DIR --media DIR --out DIR`."""

from caeav_hf.tasks.event_localization.builder import AveBuilder, main


__all__ = ["AveBuilder"]


if __name__ == "__main__":
    main()
