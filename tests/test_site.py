"""The check of the built site (`make site`) finds what a browser would load from elsewhere, and nothing else."""

import pytest
from check_site import asked


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("index.html", '<script src="https://cdn.example/x.js"></script>'),
        ("index.html", '<link rel="stylesheet" href="//fonts.example/css">'),
        ("index.html", '<link rel="preconnect" href="https://fonts.example">'),
        ("index.html", '<img alt="" srcset="https://example.com/a.png 2x">'),
        ("index.html", "<style>@import 'https://example.com/a.css';</style>"),
        ("index.html", '<p style="background: url(https://example.com/a.png)">'),
        ("index.html", '<script>fetch("https://example.com/count")</script>'),
        ("a.css", "@font-face { src: url('https://example.com/a.woff2') }"),
        ("a.js", 'navigator.sendBeacon("https://example.com/count")'),
        ("a.svg", '<svg><image xlink:href="https://example.com/a.png"/></svg>'),
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert len(asked(tmp_path)) == 1
    assert asked(tmp_path)[0].startswith(f"{name}: ")


def test_links_to_click_and_files_of_the_site_are_nothing(tmp_path):
    (tmp_path / "index.html").write_text(
        '<html><head><link rel="stylesheet" href="_static/a.css"><link rel="next" href="https://example.com/"></head>'
        '<a href="https://example.com">there</a><img src="a.png"><code>fetch("https://example.com")</code></html>'
    )
    (tmp_path / "a.css").write_text("/* https://example.com */ a { background: url(a.png) }")
    assert asked(tmp_path) == []
