"""Names in model cards."""

from caeav_hf.training.card import _plain


def test_names_are_shown_as_text():
    assert _plain("Frying_(food), hot") == "Frying_(food), hot"
    shown = _plain("a\n\n# b | c <script> [x](http://y) `z` \\| \x1b[2J")
    assert "\n" not in shown
    assert shown.isprintable()
    assert shown == "a # b \\| c \\<script> \\[x\\](http://y) \\`z\\` \\\\\\| \\\\x1b\\[2J"
