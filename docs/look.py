"""Look at the built site with a headless browser, as a reader would, in light and in dark.

    python docs/look.py            # _docs/ -> pictures in .work/look/

Opens the landing page and plays its two films with sound, searches, follows a result into a chapter, and asks of the
chapter that it shows a formula, a picture and a signature. Then twelve pages on a window of 1,280 pixels and on a phone of
390: nothing may reach beyond its column. Anything that a page asks of another host is a fault. Without Chromium or Chrome
(or CHROME=path) it says so and does nothing. Needs nothing but Python: it talks to the browser through a pipe."""

import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import search

ROOT = Path(__file__).resolve().parent.parent
SITE, PICTURES = ROOT / "_docs", ROOT / ".work" / "look"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SEARCH_FOR = "positions in seconds"
PAGES = (
    "index", "costs", "configuration", "coming_from_the_ltx_trainer", "tutorials/first_lora", "tutorials/sound",
    "1_model/transformer", "1_model/audio_vae", "3_flow/conditions", "4_data/prepare", "6_training/trainer",
    "8_tools/cli",
)  # fmt: skip
WINDOWS = {"wide": (1280, 860), "phone": (390, 844)}
PATIENCE = 20  # seconds that anything may take


class Browser:
    "A page of a headless Chromium, driven by its DevTools protocol over a pipe."

    def __init__(self, program: str):
        to_browser, self.write_end = os.pipe()
        self.read_end, from_browser = os.pipe()
        self.profile = tempfile.mkdtemp()

        def hand_over():  # the browser reads its descriptor 3 and writes its descriptor 4
            ours = os.dup(to_browser), os.dup(from_browser)
            os.dup2(ours[0], 3)
            os.dup2(ours[1], 4)

        options = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage --hide-scrollbars"
        self.process = subprocess.Popen(
            [program, *options.split(), "--remote-debugging-pipe", f"--user-data-dir={self.profile}"],
            preexec_fn=hand_over,
            close_fds=False,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.buffer, self.session, self.requests = 0, b"", None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def receive(self) -> dict:
        while b"\0" not in self.buffer:
            piece = os.read(self.read_end, 1 << 20)
            if not piece:
                raise RuntimeError("the browser went away")
            self.buffer += piece
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def ask(self, expression: str):
        "The value of a JavaScript expression in the page."
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']['text']}")
        return result["result"].get("value")

    def wait_for(self, expression: str, what: str):
        end = time.time() + PATIENCE
        while time.time() < end:
            try:
                value = self.ask(expression)
            except RuntimeError:  # the page is changing under us
                value = None
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"no {what} after {PATIENCE} s at {self.ask('location.pathname')}")

    def open(self, url: str):
        self.call("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href.startsWith({url!r})", url)

    def picture(self, name: str):
        shot = self.call("Page.captureScreenshot", format="png")["data"]
        PICTURES.mkdir(parents=True, exist_ok=True)
        (PICTURES / f"{name}.png").write_bytes(base64.b64decode(shot))

    def close(self):
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.profile, ignore_errors=True)


def serve() -> str:
    "The site on a free local port."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


TEXT = "getComputedStyle(document.body).color.match(/[0-9.]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 765"
RESULTS = "[...document.querySelectorAll('.search-result')].filter(a => a.offsetParent)"
FORMULA = "[...document.querySelectorAll('math')].filter(m => m.getBoundingClientRect().height > 4)"
IMAGE = "[...document.querySelectorAll('.cell-output-display img')].filter(i => i.naturalWidth > 50)"
BEYOND = """[...document.querySelectorAll('main p, main li, main pre, main table, main img, main svg, main video, main .math')]
  .filter(e => e.offsetParent && !e.closest('.visually-hidden'))
  .filter(e => Math.max(e.scrollWidth - e.clientWidth * (e.tagName !== 'SPAN' || e.clientWidth > 0),
    e.getBoundingClientRect().right - document.querySelector('main').getBoundingClientRect().right) > 4 && e.clientWidth)
  .map(e => e.tagName + ': ' + (e.innerText || e.src || '').slice(0, 60))"""
PLAY = """(async () => {
  const films = [...document.querySelectorAll('.before-after video')];
  for (const film of films) { film.muted = false; film.volume = 1; film.currentTime = 0; await film.play(); }
  await new Promise(done => setTimeout(done, 700));
  return films.map(f => [f.currentTime > 0.2, f.videoWidth, f.webkitAudioDecodedByteCount, f.webkitDecodedFrameCount]);
})()"""
SIGNATURE = "[...document.querySelectorAll('section.level3[id] details.code-fold pre')]"


def visit(browser: Browser, home: str, scheme: str):
    "One walk through the site."
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.call("Emulation.setDeviceMetricsOverride", width=1280, height=860, deviceScaleFactor=1, mobile=False)
    browser.open(f"{home}/index.html")
    brightness = browser.ask(TEXT)
    assert (brightness > 0.5) == (scheme == "dark"), f"{scheme}: the text has brightness {brightness:.2f}"
    browser.picture(f"{scheme}-1-landing")
    films = browser.ask(PLAY)
    assert len(films) == 2 and all(moves and wide and heard and seen for moves, wide, heard, seen in films), (
        f"before and after do not play with sound: {films}"
    )

    browser.ask("[...document.querySelectorAll('.smalldocs-search input')].find(i => i.offsetParent).focus()")
    browser.call("Input.insertText", text=SEARCH_FOR)
    browser.wait_for(f"{RESULTS}.length", "search result")
    browser.picture(f"{scheme}-2-search")
    found = browser.ask(f"{RESULTS}.map(a => a.getAttribute('href')).find(h => !/index.html/.test(h))")
    assert found, "the search finds no chapter"
    browser.ask(f"{RESULTS}.find(a => a.getAttribute('href') === {found!r}).click()")
    browser.wait_for("document.readyState === 'complete' && !/index.html$/.test(location.pathname)", "chapter")

    for what, elements in (("formula", FORMULA), ("picture", IMAGE), ("signature", SIGNATURE)):
        browser.wait_for(f"{elements}.length", what)
        browser.ask(f"{elements}[0].scrollIntoView({{block: 'center', behavior: 'instant'}})")
        time.sleep(0.3)
        browser.picture(f"{scheme}-3-{what}")
    page = browser.ask("location.pathname")
    counts = {w: browser.ask(f"{e}.length") for w, e in (("formulas", FORMULA), ("pictures", IMAGE))}

    browser.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
    time.sleep(1)  # the sidebar folds away
    wide = browser.ask("document.documentElement.scrollWidth")
    browser.picture(f"{scheme}-4-phone")
    assert wide <= 410, f"{page} is {wide} px wide on a 400 px phone"
    print(f"{scheme}: landing page, search, {page}: {counts['formulas']} formulas, {counts['pictures']} pictures")


def widths(browser: Browser, home: str, scheme: str):
    "Twelve pages, wide and on a phone: what reaches beyond its column is cut off, or makes the page scroll sideways."
    for name, (wide, high) in WINDOWS.items():
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=wide, height=high, deviceScaleFactor=1, mobile=name == "phone"
        )
        for page in PAGES:
            browser.open(f"{home}/{page}.html")
            time.sleep(0.2)
            browser.picture(f"{scheme}-{name}-{page.replace('/', '-')}")
            beyond = browser.ask(BEYOND)
            assert not beyond, f"{page}, {wide} px, {scheme}: {beyond}"
            across = browser.ask("document.documentElement.scrollWidth")
            assert across <= wide, f"{page} is {across} px wide in a window of {wide}"
    print(f"{scheme}: {len(PAGES)} pages at {' and '.join(str(w) for w, _ in WINDOWS.values())} px, nothing cut off")


def same_search(browser: Browser, home: str):
    "The script in the page finds what search.py finds."
    browser.open(f"{home}/index.html")
    browser.ask("fetch('search.json').then(r => r.json()).then(entries => { window.ours = new Fuse(entries) })")
    entries = json.loads((SITE / "search.json").read_text(encoding="utf-8"))
    for query in ("overfit", "out of memory", "load_lora", "LoRA in ComfyUI", "memor", SEARCH_FOR):
        theirs = browser.ask(f"ours.search({query!r}).map(hit => hit.item.href)")
        assert theirs == [entry["href"] for entry in search.search(entries, query)], f"the search differs for {query!r}"


def main() -> int:
    program = os.environ.get("CHROME") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        print("No Chromium or Chrome found: the site was built, but not looked at.")
        return 0
    home = serve()
    browser = Browser(program)
    try:
        for scheme in ("light", "dark"):
            visit(browser, home, scheme)
            widths(browser, home, scheme)
        same_search(browser, home)
    finally:
        browser.close()
    elsewhere = sorted({r for r in browser.requests if not r.startswith((home, "data:", "blob:", "about:", "chrome"))})
    assert not elsewhere, f"the site asks other hosts: {elsewhere}"
    print(f"{len(browser.requests)} requests, none to another host; pictures in {PICTURES.relative_to(ROOT)}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
