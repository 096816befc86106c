"""Write AVE as Parquet: `python dataset_scripts/ave.py --annotations DIR --media DIR --out DIR`."""

import sys

from caeav_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["build", "ave", *sys.argv[1:]]))
