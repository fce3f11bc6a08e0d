"""The report page: whole, self-contained, and quiet in a real browser with no network."""

import gzip
import re
import shutil
import subprocess
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from plotly.offline import get_plotlyjs
from support.image_families import lens

from lensplug.app.report import report
from lensplug.views.page.page import Page, Section
from lensplug.views.style import visible

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def made(seen, tmp_path_factory):
    result = report(seen.lens, "What is the color? Answer single word.", images=[seen.scene.image])
    return result, result.page.save(tmp_path_factory.mktemp("page") / "index.html")


@pytest.fixture(scope="module")
def made_of_sound(heard, tmp_path_factory):
    result = report(heard.lens, heard.voice.prompt("sound"), audio=[heard.voice.audio])
    return result, result.page.save(tmp_path_factory.mktemp("page") / "sound.html")


@pytest.fixture(params=["made", "made_of_sound"])
def either(request):
    return request.getfixturevalue(request.param)


def test_the_page_is_under_8_mb_and_loads_nothing(either):
    _, path = either
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 8_000_000
    assert "default-src 'none'" in html
    outside = re.sub(r"<script\b.*?</script>", "", html, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", outside)


def test_the_report_holds_what_it_says(made, seen):
    result, path = made
    html = path.read_text(encoding="utf-8")
    assert result.answer.text == ["Red"] and "<dd>Red</dd>" in html
    assert result.parity.agrees
    assert re.fullmatch(r"after layer \d of 5|in the embedding already", result.settled)
    assert html.count("plotly-graph-div") == 8 and html.count('CircuitsVis.render("') == 2
    assert html.count('<div class="explorer"') == 1


def test_the_report_on_a_sound_holds_what_it_says(made_of_sound, heard):
    result, path = made_of_sound
    html = path.read_text(encoding="utf-8")
    assert result.answer.text == ["Happy"] and "<dd>Happy</dd>" in html and result.medium == "audio"
    assert html.count("<audio controls") == 1 and html.count("plotly-graph-div") == 9


def test_the_report_on_a_video_and_on_two_pictures(seen):
    frames = [seen.scene.image, seen.scene.image.rotate(180)]
    of_video = report(seen.lens, "What is the color?", videos=[(frames, 2)], max_new_tokens=1)
    assert of_video.medium == "video"
    assert [section.title for section in of_video.page.sections][4:] == ["Where in the video", "Head by head"]
    two = report(seen.lens, "What is the color?", images=frames, max_new_tokens=1)
    assert [section.title for section in two.page.sections][4:-1] == [
        "Where in the image, 1 of 2", "Patch by patch, 1 of 2", "Where in the image, 2 of 2", "Patch by patch, 2 of 2",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["llava-full", "idefics3"])
def test_the_report_on_another_family_has_an_explorer(seen, name):
    made = report(lens(name), "What is this ?", images=[seen.scene.image], max_new_tokens=1)
    assert "Patch by patch" in [section.title for section in made.page.sections]
    assert len(made.page.to_html()) < 4_000_000


def in_a_browser(path, profile):
    """The page after its scripts have run, and what they said on the console."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-logging=stderr",
        "--virtual-time-budget=20000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium; the page's other tests run without")
def test_a_browser_draws_it_without_an_error_or_a_request(either, tmp_path):
    shown, console = in_a_browser(either[1], tmp_path / "profile")
    assert not console, console
    assert shown.count('class="main-svg"') >= 5
    assert "Head Selector" in shown


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium; the page's other tests run without")
def test_a_browser_that_cannot_unpack_the_scripts_says_so(made, tmp_path):
    path = tmp_path / "old.html"
    old = "<head><script>delete window.DecompressionStream</script>"
    path.write_text(made[1].read_text(encoding="utf-8").replace("<head>", old, 1), encoding="utf-8")
    shown, console = in_a_browser(path, tmp_path / "profile")
    assert "could not be unpacked" in shown and "Firefox 113" in shown.split("<section")[0]
    assert "<dd>Red</dd>" in shown and not console


def test_only_the_pages_own_scripts_may_run():
    """By a number that depends on all of the content; nothing is evaluated, and no request is allowed."""
    page = Page("t", (("Prompt", "one"),), ())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page.to_html())
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and "unsafe" not in rules["script-src"]
    (nonce,) = re.findall(r"^'nonce-(\w{32})'$", rules["script-src"])
    assert page.to_html().count(f'<script nonce="{nonce}">') == 1
    assert nonce not in Page("t", (("Prompt", "two"),), ()).to_html()


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium; the page's other tests run without")
def test_a_browser_runs_no_other_script(made, tmp_path):
    path = tmp_path / "injected.html"
    theirs = "<script>document.title = 'theirs'</script><img src=x onerror=\"document.title = 'theirs'\"><main"
    path.write_text(made[1].read_text(encoding="utf-8").replace("<main", theirs, 1), encoding="utf-8")
    shown, console = in_a_browser(path, tmp_path / "profile")
    assert "<title>theirs" not in shown and any("Content Security Policy" in line for line in console)


def served(html, policy):
    """A page behind a server that sends a content policy with it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Security-Policy", policy)
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium; the page's other tests run without")
@pytest.mark.parametrize("scripts", ["'unsafe-inline'", "'none'"])
def test_a_page_opens_under_a_strict_header_or_says_what_it_needs(made, tmp_path, scripts):
    policy = f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; media-src data:"
    with served(made[0].page.to_html(), policy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = SimpleNamespace(as_uri=lambda: f"http://127.0.0.1:{server.server_port}/page.html")
        shown, console = in_a_browser(address, tmp_path / "profile")
        server.shutdown()
    runs = scripts != "'none'"
    assert (shown.count('class="main-svg"') >= 5) is runs and ("scripts are turned off here" in shown) is not runs
    assert runs is not bool(console) and "<dd>Red</dd>" in shown


def test_the_large_scripts_are_packed_once_and_the_small_ones_wait(made):
    html = made[1].read_text(encoding="utf-8")
    assert html.count('class="packed"') == 2 and made[1].stat().st_size < 4_500_000
    packed = re.findall(r'class="packed">(.*?)</script>', html)
    assert gzip.decompress(b64decode(packed[0])).decode() == get_plotlyjs()
    run_at_once = re.findall(r"<script(?![^>]*(?:text/plain|json))[^>]*>(.*?)</script>", html, re.DOTALL)
    assert len(run_at_once) == 1 and "DecompressionStream" in run_at_once[0]


def test_titles_and_texts_are_escaped():
    page = Page("<b>title</b>", (("fact", "</dl><script>alert(1)</script>"),), (Section("s", "<i>text</i>"),))
    html = page.to_html()
    assert "<b>title</b>" not in html and "&lt;i&gt;text" in html
    assert "<script>alert(1)" not in html


def test_a_page_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    page = Page("t", (), ())
    target = tmp_path / "index.html"
    target.write_text("old")
    monkeypatch.setattr(Page, "to_html", lambda self, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.save(target)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_control_characters_are_shown_in_facts_and_labels():
    page = Page("t", (("Answer", "a\u202eb\x1b[2J\udc80\nc"),), ())
    assert r"<dd>a\u202eb\x1b[2J\udc80" + "\nc</dd>" in page.to_html()
    assert visible(" a\u202e\n") == r"·a\u202e⏎"
