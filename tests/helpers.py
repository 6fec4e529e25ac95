"""What several test modules ask of what they see."""

import re


def red_line(html: str) -> str:
    """The text of a widget's answer, which is one red line and nothing else."""
    line = re.fullmatch(r'<p style="color:#\w+">✗ ([^<>\n]+)</p>', html)
    assert line and "Traceback" not in html and len(html) < 600, html
    return line[1]
