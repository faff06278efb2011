#!/usr/bin/env python3
"""Drives a running `runtime serve` through its page, as a person would: test_page.py --url http://127.0.0.1:8080

Needs Chromium with its driver and `pip install selenium`; with --axe, axe-core's axe.min.js (`npm install axe-core`) looks at
every step as well. The document that it adds is removed again. Exit status: 0 all is well, 1 something is wrong, told in one
sentence.
"""
import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import sys
import urllib.parse
import urllib.request

from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait


# Whatever can be pressed or typed into, smaller than a fingertip; of a check box its label counts.
SMALL = """
const all = [...document.querySelectorAll("a, button, input, textarea, select, summary")];
const box = node => (node.type === "checkbox" ? node.closest("label") : node).getBoundingClientRect();
// Beneath an open dialog nothing can be pressed.
const open = document.querySelector("dialog[open]");
return all.filter(node => node.checkVisibility() && (!open || open.contains(node)))
    .filter(node => box(node).width < 24 || box(node).height < 24)
    .map(node => `${node.outerHTML.slice(0, 80)} (${box(node).width} by ${box(node).height})`);
"""


class Failure(Exception):
    """What is wrong, in one sentence."""


def expect(condition, sentence):
    if not condition:
        raise Failure(sentence)


class Page:
    def __init__(self, args):
        self.args = args
        options = webdriver.ChromeOptions()
        # Containers have no user namespaces for the sandbox, and little shared memory.
        for flag in ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1000,900"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # Selenium would look for a driver on the network first; without one here it may.
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        self.shots = 0
        with open(args.axe, encoding="utf-8") if args.axe else contextlib.nullcontext() as axe:
            self.axe = axe and axe.read()

    def find(self, id):
        return self.driver.find_element(By.ID, id)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition, sentence):
        try:
            WebDriverWait(self.driver, self.args.timeout, poll_frequency=0.05).until(lambda _: condition())
        except TimeoutException:
            shown = self.error()
            raise Failure(f"{sentence} within {self.args.timeout:g} s" + (f": {shown}" if shown else "")) from None

    def settle(self, what):
        """Waits until nothing is asked any more; a press marks the list as busy before it returns."""
        self.wait(lambda: not self.all("[aria-busy=true]"), f"{what} was not answered")
        expect(not self.error(), f"{what} failed: {self.error()}")

    def error(self):
        return self.driver.find_element(By.CSS_SELECTOR, "#error p").text

    def shot(self, name):
        """A step is over: what everybody must be able to see and hit is measured, wide and narrow, light and dark."""
        for width, dark in [(1000, False), (320, True)]:
            screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
            self.measure(f"{name}, {width} pixels wide")
            self.picture(f"{name}-{width}")
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def measure(self, where):
        wider = self.driver.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        expect(wider <= 0, f"{where}: the page is {wider} pixels wider than the window")
        for found in self.driver.execute_script(SMALL):
            raise Failure(f"{where}: {found} is hard to hit; 24 by 24 pixels are needed")
        if not self.axe:
            return
        self.driver.execute_script(self.axe)
        found = self.driver.execute_async_script("axe.run().then(arguments[0], e => arguments[0]({violations: [{help: String(e), nodes: []}]}))")
        for violation in found["violations"]:
            nodes = "; ".join(node["html"] for node in violation["nodes"][:3])
            raise Failure(f"{where}: {violation['help']}: {nodes}")

    def picture(self, name):
        if self.args.screenshots:
            self.shots += 1
            os.makedirs(self.args.screenshots, exist_ok=True)
            self.driver.save_screenshot(os.path.join(self.args.screenshots, f"{self.shots:02}-{name}.png"))

    def fill(self, id, text, end=""):
        field = self.find(id)
        field.clear()
        field.send_keys(text + end)

    def ask(self, text):
        self.fill("query", text, Keys.ENTER)
        self.settle(f"the query “{text}”")

    def ids(self):
        return [item.get_attribute("data-id") for item in self.all(".doc")]

    def open_filter(self):
        if self.find("filter").get_attribute("open") is None:
            self.find("filter-summary").click()

    def notice(self, words):
        note = self.find("note")
        self.wait(lambda: words in note.text, f"the page did not say “{words}”")


def opens(page):
    page.driver.get(page.args.url)
    expect(page.all("#query"), f"{page.args.url} does not answer with the page")
    page.wait(lambda: page.find("stats").text or page.find("key").is_displayed(), "the page did not learn about the index")
    if page.find("key").is_displayed():
        expect(page.args.key, "the server wants an API key, and --key was not given")
        for id in ["ask", "documents", "nav"]:
            expect(not page.find(id).is_displayed(), f"without the key nothing can be done, and #{id} is there")
        page.shot("locked")
        page.fill("key-value", page.args.key, Keys.ENTER)
        page.wait(lambda: page.find("stats").text, "the API key was not accepted")
    page.wait(lambda: page.find("examples").is_displayed(), "the page offers no example")
    page.shot("start")
    examples = page.all("#examples button")
    expect(1 <= len(examples) <= 3, f"{len(examples)} examples are offered")
    words = examples[0].text
    examples[0].click()
    page.settle(f"the example “{words}”")
    expect(page.find("query").get_attribute("value") == words and page.ids(), f"the example “{words}” was not asked")
    expect(not page.find("examples").is_displayed(), "the examples stay beside the results")
    made = page.driver.find_element(By.CSS_SELECTOR, "footer").text
    expect(re.search(r"Rabtriever \d+\.\d+", made) and "bundle" in made, f"the page does not say what answers: {made}")
    link = page.driver.find_element(By.LINK_TEXT, "API").get_attribute("href")
    with urllib.request.urlopen(link, timeout=page.args.timeout) as answer:
        expect("openapi" in json.load(answer), "the link to the API leads elsewhere")


def grows(page):
    """A need told in ten sentences must be readable while it is typed."""
    height = lambda: page.find("query").rect["height"]
    page.find("query").clear()
    low = height()
    page.find("query").send_keys("I came home and the floor was wet again. " * 10)
    page.wait(lambda: height() > 2 * low, "the field did not grow with its text")
    page.shot("long")
    page.find("query").send_keys(Keys.SHIFT, Keys.ENTER)
    expect(page.find("query").get_attribute("value").endswith("\n"), "with Shift, Enter made no new line")
    page.find("query").clear()
    page.wait(lambda: height() == low, "the field stayed as large as its text was")


def asks(page):
    page.ask(page.args.query)
    page.shot("results")
    expect(page.ids(), f"“{page.args.query}” found nothing")
    numbers = [number.text.split()[0] for number in page.all(".percent")]
    bars = page.driver.execute_script(
        "return [...document.querySelectorAll('.bar')].map(b => 100 * b.getBoundingClientRect().width / b.parentNode.clientWidth)"
    )
    expect(len(bars) == len(numbers) == len(page.ids()), "not every result has a bar and a number")
    for number, bar in zip(numbers, bars):
        # Browsers lay out in 64ths of a pixel.
        expect(abs(float(number) - bar) < 1.5, f"a bar of {bar:.1f} % stands beside {number} %")
    expect("encode" in page.find("timing").text, "the timing line is missing")
    page.find("query").send_keys(Keys.ARROW_DOWN)
    focused = page.driver.switch_to.active_element.get_attribute("data-id")
    expect(focused == page.ids()[0], "the arrow key did not reach the first result")


def filters(page):
    if not page.find("filter").is_displayed():
        print("no metadata in the index: facets not tried", file=sys.stderr)
        return
    page.open_filter()
    chip = page.all("#facets button[data-chip]")[0]
    field, value = json.loads(chip.get_attribute("data-chip"))
    expect(re.search(r" \([\d,]+\)$", chip.text), f"the chip “{chip.text}” does not tell its value from its count")
    chip.click()
    page.settle(f"the filter {field}={value}")
    page.shot("filter")
    expect(page.ids(), f"{field}={value} is offered as a filter, and no document passes it")
    for item in page.all(".doc"):
        chips = [chip.text for chip in item.find_elements(By.CSS_SELECTOR, ".chip")]
        expect(f"{field}={value}" in chips, f"{item.get_attribute('data-id')} does not pass {field}={value}")
    asked = urllib.parse.parse_qs(urllib.parse.urlsplit(page.driver.current_url).fragment)
    expect(asked.get(f"f.{field}") == [value], "the address does not hold the filter")
    page.driver.refresh()
    page.wait(lambda: page.ids(), "the link did not bring the results back")
    page.open_filter()
    page.find("no-filter").click()
    page.settle("the query without the filter")
    page.open_filter()
    page.fill("where", "room == ", Keys.ENTER)
    page.wait(lambda: page.find("where-error").text, "a condition without a value was not refused beside it")
    expect(page.find("where").get_attribute("aria-invalid") == "true", "the condition is not marked as wrong")
    page.shot("fault")
    page.find("no-filter").click()
    page.settle("the query without the condition")


def adds(page, id, mark):
    page.find("to-list").click()
    page.wait(lambda: page.find("documents").is_displayed(), "the list of documents did not show")
    page.settle("the list of documents")
    page.shot("documents")
    page.find("add").click()
    page.fill("add-id", id)
    page.fill("add-title", "A test of the page")
    page.fill("add-text", f"The robot looks for {mark} <b>and shows this literally</b>.")
    page.fill("add-metadata", f"page_test={mark}")
    page.shot("add")
    page.find("add-send").click()
    page.wait(lambda: not page.find("adding").is_displayed() or page.find("add-error").text, "adding was not answered")
    if page.find("adding").is_displayed():
        raise Failure(f"the document was not added: {page.find('add-error').text}")
    page.notice("Added")
    page.settle("adding a document")


def finds(page, id, mark):
    page.find("to-ask").click()
    page.wait(lambda: page.find("ask").is_displayed(), "the query did not show")
    page.settle("the query")
    page.open_filter()
    page.fill("where", f"page_test={mark}")
    page.ask(f"Look for {mark}")
    page.shot("found")
    expect(page.ids() == [id], f"asking for the added document found {page.ids() or 'nothing'}")
    expect("<b>and shows this literally</b>" in page.find("results").text, "markup in a document was not shown literally")
    expect(not page.all("#results .remove"), "an answer can be removed by a slip")


def looks_up(page, id, mark):
    page.find("to-list").click()
    for words in [f"The robot looks for {mark}", id]:
        page.fill("find", words, Keys.ENTER)
        page.settle(f"looking for “{words}”")
        expect(id in page.ids(), f"“{words}” under Documents did not bring the document")
    expect(page.ids()[0] == id, "the document whose id was typed does not come first")
    page.shot("looked-up")
    page.driver.refresh()
    page.wait(lambda: page.ids(), "the link did not bring the documents back")
    page.settle("the link to documents")
    expect(page.ids()[0] == id, "the link brought other documents")


def removes(page, id):
    for button, words, there in [("remove", "Removed", False), ("undo", "is back", True), ("remove", "Removed", False)]:
        selector = "#undo" if button == "undo" else f"[data-id='{id}'] .remove"
        page.driver.find_element(By.CSS_SELECTOR, selector).click()
        page.notice(words)
        page.settle("removing the document")
        page.wait(lambda: (id in page.ids()) == there, f"“{words}”, but the documents did not follow")
    page.shot("removed")
    page.find("find-all").click()
    page.settle("the list of all documents")
    expect(len(page.ids()) > 0 and id not in page.ids(), "the list of all documents did not come back")


def console(page):
    # Without a key the first requests are refused; browsers log that.
    entries = [entry["message"] for entry in page.driver.get_log("browser") if not (page.args.key and " 401 " in entry["message"])]
    # A condition that is refused, and an id that no document has, are answers.
    entries = [entry for entry in entries if not re.search(r"/query.* 422 |/documents/.* 404 ", entry)]
    expect(not entries, f"the browser's console holds {len(entries)} messages, the first: {(entries or [''])[0]}")


def clean(args, id):
    """Removes what a failed run left; it is gone already after a good one."""
    url = f"{args.url.rstrip('/')}/documents/{id}"
    headers = {"Authorization": f"Bearer {args.key}"} if args.key else {}
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE", headers=headers), timeout=args.timeout).close()
    except OSError:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the server, e.g. http://127.0.0.1:8080")
    parser.add_argument("--query", default="I spilled my coffee", help="a question that the index can answer")
    parser.add_argument("--key", help="API key")
    parser.add_argument("--timeout", type=float, default=20, metavar="S", help="seconds for each answer")
    parser.add_argument("--axe", metavar="FILE", help="axe.min.js, to look for what people with disabilities cannot use")
    parser.add_argument("--screenshots", metavar="DIR", help="where a picture of each step goes")
    args = parser.parse_args()
    mark = secrets.token_hex(4)
    id = f"page-test-{mark}"
    page = None
    try:
        page = Page(args)
        opens(page)
        grows(page)
        asks(page)
        filters(page)
        try:
            adds(page, id, mark)
            finds(page, id, mark)
            looks_up(page, id, mark)
            removes(page, id)
        except BaseException:
            clean(args, id)
            raise
        console(page)
    except Failure as failure:
        if page:
            page.shot("failure")
        sys.exit(f"page: {failure}")
    except WebDriverException as error:
        sys.exit(f"page: the browser failed: {(error.msg or str(error)).splitlines()[0]}")
    finally:
        if page:
            page.driver.quit()
    print("page: asked, filtered, added, found, looked up, removed, undone; the console is clean")


if __name__ == "__main__":
    main()
