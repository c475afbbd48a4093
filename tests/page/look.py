"""Looks at a page in headless Chromium, over its debugging pipe. Prints what it saw; an assertion ends it with an error.

    python look.py CHROMIUM PAGE OUT SVGS TEXT...

PAGE is an HTML file with SVGS pictures and every visible TEXT. OUT.html gets the DOM as the browser made it, OUT.png a screenshot.
The page must load nothing but itself, write nothing to the console, and fit into its window.
"""

import base64
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

CHROMIUM, PAGE, OUT, SVGS = sys.argv[1:5]
TEXTS = sys.argv[5:]
SECONDS = 60


class Browser:
    """Messages of the DevTools protocol: JSON that ends with a NUL, to file descriptor 3 and from 4."""

    def __init__(self, profile):
        commands, self.into = os.pipe()
        self.out, events = os.pipe()
        # Root has no sandbox; the page is a file of ours.
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        flags = ["--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-dev-shm-usage", "--window-size=1000,800"]
        line = [CHROMIUM, *root, *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        # The shell gives the pipes the numbers that Chromium expects.
        shell = ["sh", "-c", f'exec "$@" 3<&{commands} 4>&{events}', "sh", *line]
        self.process = subprocess.Popen(shell, pass_fds=(commands, events), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.close(commands)
        os.close(events)
        self.number, self.rest, self.events = 0, b"", []
        self.deadline = time.monotonic() + SECONDS

    def message(self):
        while b"\0" not in self.rest:
            assert time.monotonic() < self.deadline, "Chromium does not answer"
            read = os.read(self.out, 1 << 16)
            assert read, f"Chromium ended with {self.process.wait()}"
            self.rest += read
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, session=None, **parameters):
        self.number += 1
        asked = {"id": self.number, "method": method, "params": parameters}
        if session:
            asked["sessionId"] = session
        os.write(self.into, json.dumps(asked).encode() + b"\0")
        while True:
            told = self.message()
            if told.get("id") == self.number:
                assert "error" not in told, (method, told)
                return told["result"]
            self.events.append(told)

    def until(self, method):
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self.message())


def look(browser):
    page = pathlib.Path(PAGE).absolute().as_uri()
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(method, **parameters):
        return browser.call(method, session, **parameters)

    def evaluate(expression):
        result = call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"]["value"]

    for domain in ("Page", "Network", "Log", "Runtime"):
        call(f"{domain}.enable")
    call("Page.navigate", url=page)
    browser.until("Page.loadEventFired")
    # What follows the load, such as a blocked request, is told before the answer to a later call.
    text = evaluate("document.body.innerText")
    boxes = evaluate("[...document.querySelectorAll('svg')].map(it => { const box = it.getBoundingClientRect(); return [box.width, box.height]; })")
    width, height, overflow = evaluate("(it => [it.clientWidth, it.scrollHeight, it.scrollWidth - it.clientWidth])(document.documentElement)")
    # Whitespace is what the layout makes of it.
    shown = " ".join(text.split())
    for expected in TEXTS:
        assert " ".join(expected.split()) in shown, f"{expected!r} is not visible"
    assert len(boxes) == int(SVGS) and all(wide > 100 and high > 20 for wide, high in boxes), boxes
    assert overflow <= 0, f"the page is {overflow} pixels wider than its window"
    small = evaluate("[...document.querySelectorAll('svg text')].filter(it => it.getBoundingClientRect().height < 8).length")
    assert small == 0, f"{small} labels are too small to read"

    requested = {event["params"]["request"]["url"] for event in browser.events if event.get("method") == "Network.requestWillBeSent"}
    assert requested == {page}, requested
    noise = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed", "Page.javascriptDialogOpening")
    told = [event for event in browser.events if event.get("method") in noise]
    assert not told, told

    pathlib.Path(OUT + ".html").write_text(evaluate("document.documentElement.outerHTML"))
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, 8000), "scale": 1}
    picture = base64.b64decode(call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000, len(picture)
    pathlib.Path(OUT + ".png").write_bytes(picture)
    print(f"{PAGE}: {len(shown)} characters, {len(boxes)} pictures, {width} x {height} pixels, 1 request")


def main():
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile)
        try:
            look(browser)
            browser.call("Browser.close")
        finally:
            browser.process.terminate()
            browser.process.wait(SECONDS)


main()
