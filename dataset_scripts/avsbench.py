"""Write AVSBench as Parquet: `python dataset_scripts/avsbench.py --setting s4 --annotations A --media M --out O`."""

import sys

from caeav_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["build", "avsbench", *sys.argv[1:]]))
