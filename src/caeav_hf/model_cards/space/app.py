"""A page on which {{ model_id }} is tried, by caeav-hf."""

from caeav_hf.app import launch_page


if __name__ == "__main__":
    launch_page(["{{ model_id }}"], host=None)
