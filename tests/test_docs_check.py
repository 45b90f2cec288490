"""The look at the built pages finds what is wrong with them, and nothing with sound ones."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "docs" / "check_pages.py"
SPEC = importlib.util.spec_from_file_location("check_pages", FILE)
check_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_pages)

SOUND = {
    "index.html": '<a href="b/page.html#here">x</a><img src="p%20q.png" alt="curve"><a href="#">t',
    "b/page.html": '<h1 id="here">x</h1><a href="../">up</a><a href="https://pages.example/">out</a>',
    "p q.png": "",
}
WRONG = {
    '<a href="none.html">x</a>': "index.html: none.html leads nowhere",
    '<img src="none.png" alt="">': "index.html: none.png leads nowhere",
    '<a href="b/page.html#there">x</a>': "index.html: b/page.html#there has no such anchor",
    '<a href="#gone">x</a>': "index.html: #gone has no such anchor",
    '<img src="p%20q.png">': "index.html: no words for p%20q.png",
}


def findings(root, extra=""):
    for name, text in SOUND.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    with (root / "index.html").open("a") as page:
        page.write(extra)
    root = root.resolve()
    return list(check_pages.dead_links(root, check_pages.read_pages(root)))


def test_sound_pages_have_no_findings(tmp_path):
    assert findings(tmp_path) == []


@pytest.mark.parametrize("extra", WRONG)
def test_what_is_wrong_is_found_once(tmp_path, extra):
    assert findings(tmp_path, extra) == [WRONG[extra]]


def test_without_a_browser_it_says_so(tmp_path, monkeypatch, capsys):
    findings(tmp_path)
    monkeypatch.setattr(check_pages, "find_chromium", lambda: None)
    monkeypatch.setattr("sys.argv", ["check_pages", str(tmp_path)])
    assert check_pages.main() == 0
    assert "the pages were not opened" in capsys.readouterr().out


def test_a_folder_without_pages_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["check_pages", str(tmp_path)])
    assert check_pages.main() == 1


def opened(root):
    """What a browser finds wrong with the pages of a folder."""
    pytest.importorskip("playwright")
    chromium = check_pages.find_chromium()
    if chromium is None:
        pytest.skip("needs Chromium")
    root = root.resolve()
    return list(check_pages.open_pages(root, check_pages.read_pages(root), chromium, ""))


@pytest.mark.parametrize("address", ["https://pages.example/stable", ""])
def test_a_browser_finds_files_at_the_address_of_the_pages_and_nowhere_else(
    address, tmp_path, monkeypatch
):
    monkeypatch.setenv("SK_DNN2GP_DOCS", address)
    ask = 'ask.open("GET", "https://pages.example/stable/a.json", false); ask.send();'
    script = f"const ask = new XMLHttpRequest(); {ask} JSON.parse(ask.responseText)"
    head = '<!doctype html><link rel="icon" href="data:,">'
    (tmp_path / "index.html").write_text(f"{head}<script>{script}</script>")
    (tmp_path / "a.json").write_text("{}")
    found = opened(tmp_path)
    assert (found == []) if address else any("did not come" in line for line in found)


def test_a_browser_sees_what_sticks_out(tmp_path):
    wide = '<!doctype html><p style="width:2000px">wide</p><script>console.error("no")</script>'
    (tmp_path / "wide.html").write_text(wide)
    (tmp_path / "sound.html").write_text('<!doctype html><link rel="icon" href="data:,"><p>x')
    found = opened(tmp_path)
    assert not [line for line in found if line.startswith("sound.html")]
    for width in check_pages.WIDTHS:
        of_width = [line for line in found if line.startswith(f"wide.html ({width}, light)")]
        assert any("wide" in line.partition(": ")[2] for line in of_width)
        assert any("console: no" in line for line in of_width)


def test_a_browser_sees_through_a_page_that_scrolls_as_a_whole(tmp_path):
    page = (
        '<!doctype html><link rel="icon" href="data:,"><div class="bd-article-container" '
        'style="overflow-x:auto"><article class="bd-article">{}<p style="width:2000px">wide'
    )
    box = '<div style="overflow-x:auto">'
    (tmp_path / "cut.html").write_text(page.format(""))
    (tmp_path / "box.html").write_text(page.format(box))  # a box of its own may scroll
    found = [line for line in opened(tmp_path) if " p sticks out" in line]
    assert found and all(line.startswith("cut.html") for line in found)
