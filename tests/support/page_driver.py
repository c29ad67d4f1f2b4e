"""The chat page in a real browser, driven as a user would: Chromium without a window, through selenium."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
SECONDS = 60  # a busy machine may take its time; a page that works needs a moment
# Whatever the policy refused, and whatever a hostile text ran, is remembered by the page itself.
WATCH = """
window.violations = []; window.executed = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
window.alert = (text) => window.executed.push(String(text));
"""


def missing() -> str | None:
    """Why there is no browser here, in a line; None if there is one."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "the page's tests need selenium: pip install selenium"
    if not _binary() or not shutil.which("chromedriver"):
        return "the page's tests need a browser: apt-get install chromium chromium-driver"
    return None


def _binary() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def start_browser(profile: Path) -> Any:
    """A browser with an empty profile. Whoever starts it quits it."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _binary()
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    # It would ask whether to keep the API key.
    options.add_experimental_option("prefs", {"credentials_enable_service": False})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    return browser


class PageDriver:
    """One page, whose storage is empty at first."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self._prefer("light")
        browser.get(f"{url}icon.svg")  # no program runs yet; an earlier server may have had the port
        browser.execute_script("localStorage.clear(); sessionStorage.clear()")
        browser.get_log("browser")

    def open(self, path: str = "") -> "PageDriver":
        """The page, once it knows its models."""
        self.browser.get(self.url + path)
        self.until(
            lambda: self.run("return document.getElementById('model').value !== ''"), "the page starts"
        )
        return self

    def narrow(self) -> None:
        """A telephone's window."""
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def dark(self) -> None:
        self._prefer("dark")

    def _prefer(self, scheme: str) -> None:
        """Without motion: no colour is on its way from another while a test looks."""
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        media = [{"name": name, "value": value} for name, value in wanted.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def call(self, module: str, expression: str, *arguments: Any) -> Any:
        """An expression in a module of the page: `m` the module, `a` the arguments. It may be a promise."""
        script = (
            "const done = arguments[arguments.length - 1], a = Array.from(arguments).slice(1, -1);"
            f"import(arguments[0]).then((m) => {expression}).then(done, (e) => done({{error: String(e)}}));"
        )
        self.browser.set_script_timeout(SECONDS)
        return self.browser.execute_async_script(script, f"{self.url}js/{module}", *arguments)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Waits for something to be so, and returns it."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.browser, SECONDS, 0.03, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition(), f"never: {what}")

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        """The first element that is there and shown."""
        found = lambda: next((one for one in self.all(selector) if one.is_displayed()), None)  # noqa: E731
        return self.until(found, f"{selector} shows")

    def click(self, selector: str) -> None:
        self.run("arguments[0].scrollIntoView({ block: 'center' })", self.one(selector))
        self.one(selector).click()

    def hover(self, element: Any) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).move_to_element(element).perform()

    def press(self, *keys: str) -> None:
        """Keys, to whatever has the focus."""
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    @property
    def focused(self) -> str:
        """What a screen reader would say of the element that has the focus."""
        return self.run(
            "const e = document.activeElement;"
            "return e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent || e.id"
        )

    def tab_to(self, wanted: str, *, back: bool = False, most: int = 60) -> None:
        """Goes on by the Tab key until the focus is on what is called so."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        for _ in range(most):
            if self.focused == wanted:
                return
            chain = ActionChains(self.browser)
            if back:
                chain.key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
            else:
                chain.send_keys(Keys.TAB).perform()
        raise AssertionError(f"the Tab key never came to {wanted!r}")

    def type(self, text: str) -> None:
        self.one("#composer-text").send_keys(text)

    def ask(self, text: str) -> None:
        """Sends a message and waits for the end of its answer, or for what went wrong."""
        self.send(text)
        self.idle()

    def send(self, text: str) -> None:
        self.type(text)
        self.press("\ue007")  # Enter

    @property
    def busy(self) -> bool:
        return self.run("return !document.getElementById('stop').hidden")

    def idle(self) -> None:
        self.until(lambda: not self.busy, "the answer ends")

    def texts(self, selector: str) -> list[str]:
        """The texts of elements, as they are, shown or not."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
        )

    @property
    def questions(self) -> list[str]:
        return self.texts("#thread .message.user .text")

    @property
    def answers(self) -> list[str]:
        return self.texts("#thread .message.assistant .text")

    def nodes(self, role: str) -> list[dict[str, Any]]:
        """The messages of a role that are shown, as the page keeps them."""
        script = (
            "import('/js/data/tree.js').then((tree) => tree.path(JSON.parse(localStorage.getItem("
            "'jllama.conversation.' + JSON.parse(localStorage.getItem('jllama.open'))))))"
        )
        return [node for node in self.call("data/tree.js", script) if node["role"] == role]

    @property
    def notice(self) -> str:
        return " ".join(self.texts("#notices .notice-words"))

    @property
    def tokens(self) -> list[Any]:
        return self.all("#thread .token")

    def live(self) -> list[str]:
        return self.texts("#live p")

    def faults(self) -> list[str]:
        """What the page's policy refused, what a text ran, and errors of the page's own program."""
        told = self.run("return [...(window.violations ?? []), ...(window.executed ?? [])]")
        logged = self.browser.get_log("browser")
        return told + [line["message"] for line in logged if _is_fault(line)]


def export(page: PageDriver, place: Path) -> Path:
    """Takes the file that the page offers for download."""
    page.browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior",
        {"behavior": "allow", "downloadPath": str(place), "eventsEnabled": False},
    )
    page.click("#menu-button")
    page.click("#menu [data-action=export]")
    whole = lambda: next((path for path in place.glob("*.json") if path.read_text().endswith("}")), None)  # noqa: E731
    return page.until(whole, "the file is written")


def _is_fault(line: dict[str, Any]) -> bool:
    """Not the lines about statuses such as 400, which tests ask for."""
    return line["level"] == "SEVERE" and line["source"] != "network"
