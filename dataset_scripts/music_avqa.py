"""Write MUSIC-AVQA as Parquet: `python dataset_scripts/music_avqa.py --annotations DIR --media DIR --out DIR`."""

import sys

from caeav_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["build", "music_avqa", *sys.argv[1:]]))
