"""Extract R(2+1)D-18 features of clips: `python dataset_scripts/extract_visual_3d.py --media DIR --out DIR`."""

import sys

from caeav_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["extract-visual-3d", *sys.argv[1:]]))
