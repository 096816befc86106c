"""Train, resume or evaluate a CAE-AV model: `accelerate launch train.py --task ave ...`; `--help` lists everything."""

import sys

from caeav_hf.training.command import main


if __name__ == "__main__":
    sys.exit(main())
