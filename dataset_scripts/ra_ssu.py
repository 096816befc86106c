"""Write f-Music or f-Lifescene as Parquet: `python dataset_scripts/ra_ssu.py --annotations A --media M --out O`."""

import sys

from caeav_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["build", "ra_ssu", *sys.argv[1:]]))
