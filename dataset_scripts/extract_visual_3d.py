"""Write R(2+1)D-18 features of clips: `python dataset_scripts/extract_visual_3d.py --media DIR --out DIR`."""

from caeav_hf.tasks.video_parsing.visual_3d import main


if __name__ == "__main__":
    main()
