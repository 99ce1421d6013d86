"""A run as a page."""

import dataclasses
import re
from html import escape
from html.parser import HTMLParser

import numpy as np
from made_runs import SETS, SETTINGS

from si_jax.reporting import figures, html, report, runs


def test_page_is_whole_and_loads_nothing(page):
    class Reader(HTMLParser):
        open_tags, sources, links = [], [], []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img", "br"):
                self.open_tags.append(tag)
            found = dict(attributes)
            self.sources += [found[key] for key in ("src",) if key in found]
            self.links += [found[key] for key in ("href",) if key in found]

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    reader = Reader()
    reader.feed(page)
    assert reader.open_tags == []
    images = len(SETS) * len(SETTINGS) * 12
    assert len(reader.sources) == 2 + len(SETTINGS) + 2 + images
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert reader.links
    assert all(f'id="{link[1:]}"' in page for link in reader.links)
    assert not re.search(r"https?://|@import|url\(|<link|<script", page)


def test_page_escapes_what_users_named(page):
    assert "near&lt;b&gt;|*" in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "a&amp;b" in page


def test_page_and_text_render_the_metadata(page, run):
    for name, value in report.metadata(run.results):
        assert f'class="name">{name}</th><td class="name">{escape(value)}</td>' in page
    for name, value in report.summary(run.results):
        assert f"\n{name}: {value}\n" in f"\n{run}"
    for text in ("resnet8, 78,042 parameters", "synthetic, protocol published", "90.00%",
                 "no resize", "svhn 40", "python 3.11", "steps=2"):  # fmt: skip
        assert text in page
    warnings = re.findall(r'<p class="warning">(.*?)</p>', page)
    assert len(warnings) == 1
    assert "averages: lsun." in warnings[0] and "WARNING: Sets of the" in str(run)


def test_gallery_says_class_and_decision(run, tmp_path):
    arrays = {}
    for name, size in SETS.items():
        labels = np.arange(size) % 7 if name == "known" else np.full(size, -1)
        predicted = {"score": np.full(size, 3), "label": labels, "index": np.arange(size)}
        arrays[name] = {**run.arrays[name], "prediction": predicted}
    shown = runs.Run("x", run.results, arrays, run.thumbnails)
    known, other = (html._gallery(shown, name) for name in ("known", "svhn"))
    said = [cell.detail for row in known.rows for cell in row[1:]]
    assert all(re.fullmatch(r"(accepted|rejected)\nclass 3\ntrue \d", one) for one in said)
    assert {one[:8] for one in said} == {"accepted", "rejected"}
    assert other.rows[0][1].detail.endswith("\nclass 3")
    assert other.rows[0][1].picture.startswith("data:image/jpeg;base64,")


def test_page_warns_and_does_without_images(run, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "encode", lambda figure: b"")
    results = dataclasses.replace(run.results, warning="near chance")
    page = html.write(runs.Run("x", results, run.arrays, {}), tmp_path).read_text()
    assert "near chance" in page
    assert "No images were kept" in page


def test_the_page_answers_first_and_has_metadata_last(page):
    places = ['class="headline"', "<figure>", 'id="results"', 'id="settings"', 'id="metadata"']
    assert sorted(places, key=page.index) == places
