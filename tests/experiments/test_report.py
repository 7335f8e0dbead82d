"""report.py: one page with everything inside it, which a browser shows."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from experiments.report import main

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def run(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "runs" / finished.name)
    values = {"ari_fg_encoder": 0.98765, "sc_encoder": None}
    (run / "evaluation.json").write_text(json.dumps({"ari": {"protocol": {"num_images": 16}, "values": values}}))
    return run


class Page(HTMLParser):
    """The page's tags, each with its attributes; refuses what is not well-formed."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_everything_is_inside(command, run):
    code, out, err = command(main, run)
    assert code == 0, err
    text = (run / "report.html").read_text()
    page = Page(text)
    assert all(part in page.text for part in ("Numbers", "Curves", "Pictures", "Configuration", "Environment"))
    assert "ARI-FG ↑, encoder" in page.text and "0.99" in page.text
    assert "model.scene_prior" in page.text and "learning_rate" in page.text
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 4 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)


def test_names_are_escaped(command, run, tmp_path):
    named = shutil.copytree(run, tmp_path / "<b>&")
    assert command(main, named)[0] == 0
    assert "<h1>&lt;b&gt;&amp;</h1>" in (named / "report.html").read_text()


def test_of_a_run_that_has_just_begun(command, run):
    shutil.rmtree(run / "figures")
    for name in ("summary.json", "evaluation.json", "metrics.jsonl"):
        (run / name).unlink()
    assert command(main, run, "--output", "page.html")[0] == 0
    with open("page.html") as file:
        assert "Configuration" in Page(file.read()).text


def test_mistakes(refusal, run):
    assert refusal(main, "nowhere").startswith("nowhere is not a run folder")
    assert refusal(main, run, "--output", "missing/page.html") == (
        "--output missing/page.html: name a file in a folder that exists"
    )


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_it(command, run, tmp_path):
    command(main, run)
    # The page has no script of its own: a copy of it tells what the browser made of it.
    tell = """<script>onload = () => document.title = JSON.stringify({
        images: [...document.images].map(image => image.naturalWidth),
        overflow: document.documentElement.scrollWidth > innerWidth,
        columns: new Set([...document.querySelectorAll("table")].map(table => table.offsetLeft)).size})</script>"""
    copy = tmp_path / "copy.html"
    copy.write_text((run / "report.html").read_text().replace("</body>", f"{tell}</body>"))
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1600"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    shown = subprocess.run([BROWSER, *options, "--dump-dom", f"file://{copy}"], capture_output=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", shown.stdout.decode()).group(1)
    found = json.loads(title.replace("&quot;", '"'))
    assert len(found["images"]) == 4 and min(found["images"]) > 500
    assert not found["overflow"] and found["columns"] > 1
    subprocess.run([BROWSER, *options, f"--screenshot={picture}", f"file://{copy}"], capture_output=True, timeout=120)
    with Image.open(picture) as image:
        assert image.size == (1200, 1600) and len(image.convert("L").resize((60, 80)).getcolors()) > 30


def test_pictures_that_are_too_large(command, run):
    with open(run / "figures" / "huge.png", "wb") as file:
        file.truncate(65 << 20)
    code, out, err = command(main, run)
    assert (code, out) == (2, "") and err.startswith(
        f"error: {run}/figures: its pictures have 65 MB, which is too much"
    )
    assert not (run / "report.html").exists()


def test_names_of_pictures_are_escaped(command, run):
    for name in (b"\xff.png", b"a\x1b[1mb.png"):
        shutil.copy(next((run / "figures").glob("*.png")), os.path.join(os.fsencode(run / "figures"), name))
    assert command(main, run)[0] == 0
    text = (run / "report.html").read_bytes()
    assert b"\x1b" not in text and rb"\udcff" in text


def test_an_edited_page_is_not_replaced(command, run):
    assert command(main, run)[0] == 0 and command(main, run)[0] == 0
    page = run / "report.html"
    page.write_text(page.read_text() + "my notes")
    code, _, err = command(main, run)
    assert code == 2 and f"{page}: a file exists there that this command did not write, or that was edited" in err
    assert page.read_text().endswith("my notes")
