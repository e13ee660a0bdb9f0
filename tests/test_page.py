"""The page in a real browser: headless Chromium, by Selenium.  Left out where either is missing."""

from __future__ import annotations

import base64
import io
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# ruff: noqa: E402
for _module in ("starlette", "uvicorn", "prometheus_client", "python_multipart", "selenium"):
    pytest.importorskip(_module, reason="needs the extra serve, and selenium")

import uvicorn
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from gbp import RULES, Channel, Explainer, methods
from gbp.methods import METHODS
from gbp.rules import OTHER_RULES
from gbp.serve.app import application
from gbp.serve.limits import Limits
from gbp.serve.models import Served
from gbp.serve.page import page, policy

MODELS = Path(__file__).resolve().parent.parent / "models"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver (Debian: chromium-driver)"
)
#: Gives the page a file as dropping does.
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], arguments[1], {type: "image/png"}));
document.getElementById("drop").dispatchEvent(new DragEvent("drop", {bubbles: true, dataTransfer: data}));
"""
PASTE = DROP.replace(
    '"drop", {bubbles: true, dataTransfer', '"paste", {bubbles: true, clipboardData'
).replace("DragEvent", "ClipboardEvent")


def test_the_page_reaches_nothing_but_its_server() -> None:
    html = page().decode()
    addresses = set(re.findall(r"https?://[^\s\"'<]+", html))
    assert not addresses
    assert "@import" not in html
    assert "url(" not in html
    assert "innerHTML" not in html  # labels are text
    assert "style=" not in html.partition("<script>")[0]  # which the policy would not apply
    assert policy().count("'sha256-") == 2


def test_the_pages_picture_is_the_demos() -> None:
    (found,) = re.findall(r'id="demo-picture">\s*(\S+)\s*</script>', page().decode())
    assert base64.b64decode(found) == (MODELS / "demo.png").read_bytes()


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(MODELS / "demo.onnx", threads=1)


@pytest.fixture(scope="module")
def address(explainer: Explainer) -> Iterator[str]:
    """A server of two models: the demo classifier, and a label of it that would be HTML."""
    labels = ["<img src=x onerror=alert(1)>", *(f"label {i}" for i in range(1, 12))]
    other = Explainer(MODELS / "demo.onnx", labels=labels, threads=1)
    limits = Limits()
    with listening([Served("demo", explainer, limits), Served("other", other, limits)]) as where:
        yield where


@contextmanager
def listening(models: list[Served], ready: threading.Event | None = None) -> Iterator[str]:
    """The address of a server within this process."""
    app = application(models, Limits(), ready=ready)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    downloads = tmp_path_factory.mktemp("downloads")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    allowed = {"behavior": "allow", "downloadPath": str(downloads)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any, address: str) -> Iterator[Any]:
    """The page, fresh; no test may leave an error in the console."""
    width(chromium, 1280)
    chromium.get(address)
    chromium.get_log("browser")
    wait(chromium, lambda: chromium.find_elements(By.CSS_SELECTOR, "[data-rule]"))
    yield chromium
    assert chromium.get_log("browser") == []


def width(driver: Any, pixels: int, scheme: str = "light") -> None:
    size = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait(driver: Any, condition: Any) -> Any:
    return WebDriverWait(driver, 60, poll_frequency=0.05).until(lambda _: condition())


def status(driver: Any) -> str:
    return str(driver.find_element(By.ID, "status").text)


def drop(driver: Any, content: bytes, name: str = "a photo.png", script: str = DROP) -> None:
    driver.execute_script(script, base64.b64encode(content).decode(), name)


def pressed(driver: Any) -> list[str]:
    return [
        b.text.split("\n")[0] for b in driver.find_elements(By.CSS_SELECTOR, "#classes [aria-pressed=true]")
    ]


def canvas_of(rule: str) -> str:
    return f"[data-rule={rule}] .frame canvas"


def pixels(driver: Any, selector: str) -> Any:
    address = driver.execute_script("return document.querySelector(arguments[0]).toDataURL()", selector)
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    return np.asarray(picture.convert("RGB")).astype(int)


def slide(driver: Any, name: str, value: float) -> None:
    script = """
    const slider = document.getElementById(arguments[0]);
    slider.value = arguments[1];
    slider.dispatchEvent(new Event("input"));"""
    driver.execute_script(script, name, value)


@needs_browser
def test_a_dropped_photo_is_explained_and_a_click_explains_another_class(
    browser: Any, explainer: Explainer
) -> None:
    photo = (MODELS / "demo.png").read_bytes()
    drop(browser, photo)
    wait(browser, lambda: status(browser).startswith("Explained: ring"))
    assert pressed(browser) == ["ring"]
    for name in ("opacity", "smooth"):
        slide(browser, name, 0)
    slide(browser, "percentile", 99.5)
    browser.find_element(By.CSS_SELECTOR, "[value=gray]").click()
    for rule in RULES:
        expected = np.asarray(explainer.explain(photo, rule=rule).reduce("abs-max")[0])
        expected = np.minimum(expected / np.percentile(expected, 99.5), 1) * 255
        assert np.abs(pixels(browser, canvas_of(rule))[:, :, 0] - expected).max() <= 1
        caution = browser.find_element(By.CSS_SELECTOR, f"[data-rule={rule}] .caution").text
        assert caution == RULES[rule].caution
    browser.find_element(By.CSS_SELECTOR, "#classes li:nth-child(2) button").click()
    wait(browser, lambda: status(browser).startswith("Explained: key"))
    assert pressed(browser) == ["key"]
    expected = explainer.explain(photo, rule="vanilla", target="key").reduce("abs-max")[0]
    expected = np.minimum(expected / np.percentile(expected, 99.5), 1) * 255
    assert np.abs(pixels(browser, canvas_of("vanilla"))[:, :, 0] - expected).max() <= 1


@needs_browser
def test_other_rules_and_methods_are_ticked(browser: Any, explainer: Explainer) -> None:
    photo = (MODELS / "demo.png").read_bytes()
    drop(browser, photo)
    wait(browser, lambda: status(browser).startswith("Explained: ring"))
    browser.find_element(By.CSS_SELECTOR, "#which-box summary").click()
    offered = [box.get_attribute("value") for box in browser.find_elements(By.CSS_SELECTOR, "#which input")]
    assert offered == [*RULES, *OTHER_RULES, *(name for name in METHODS if not name.startswith("layer-"))]
    for name in ("grad-cam", "lrp-epsilon", *RULES):
        browser.find_element(By.CSS_SELECTOR, f"#which [value={name}]").click()
    shown = [
        card.get_attribute("data-rule") for card in browser.find_elements(By.CSS_SELECTOR, "[data-rule]")
    ]
    assert shown == ["lrp-epsilon", "grad-cam"]
    wait(browser, lambda: status(browser).startswith("Explained: ring"))
    slide(browser, "smooth", 0)
    browser.find_element(By.CSS_SELECTOR, "[name=style][value=gray]").click()
    for name, made in (
        ("lrp-epsilon", explainer.explain(photo, rule="lrp-epsilon")),
        ("grad-cam", methods.grad_cam(explainer, photo)),
    ):
        expected = made.reduce("abs-max")[0]
        expected = np.minimum(expected / np.percentile(expected, 99.5), 1) * 255
        assert np.abs(pixels(browser, canvas_of(name))[:, :, 0] - expected).max() <= 1
    for name in shown:  # the last one stays
        browser.find_element(By.CSS_SELECTOR, f"#which [value={name}]").click()
    assert len(browser.find_elements(By.CSS_SELECTOR, "[data-rule]")) == 1


@needs_browser
def test_a_photo_that_comes_before_the_models_are_ready(chromium: Any, explainer: Explainer) -> None:
    """It is explained when they are."""
    ready = threading.Event()
    with listening([Served("demo", explainer, Limits())], ready) as where:
        chromium.get(where)
        wait(chromium, lambda: "You may give a picture already" in status(chromium))
        drop(chromium, (MODELS / "demo.png").read_bytes())
        wait(chromium, lambda: "Your picture is explained then" in status(chromium))
        ready.set()
        wait(chromium, lambda: status(chromium).startswith("Explained: ring"))
        assert chromium.get_log("browser") == []
        chromium.get("about:blank")  # which closes its connections


@needs_browser
def test_a_hidden_unit_is_explained(browser: Any, explainer: Explainer) -> None:
    browser.find_element(By.ID, "demo").click()
    wait(browser, lambda: status(browser).startswith("Explained: ring"))
    browser.find_element(By.CSS_SELECTOR, "#layer [value=relu2]").click()
    channel = browser.find_element(By.ID, "channel")
    assert channel.get_attribute("max") == "31"
    channel.clear()
    channel.send_keys("5", Keys.ENTER)
    wait(browser, lambda: status(browser).startswith("Explained: relu2"))
    assert pressed(browser) == []
    for name in ("opacity", "smooth"):
        slide(browser, name, 0)
    browser.find_element(By.CSS_SELECTOR, "[value=gray]").click()
    photo = (MODELS / "demo.png").read_bytes()
    expected = explainer.explain(photo, rule="deconvnet", target=Channel("relu2", 5)).reduce("abs-max")[0]
    expected = np.minimum(expected / (np.percentile(expected, 99.5) or expected.max()), 1) * 255
    assert np.abs(pixels(browser, canvas_of("deconvnet"))[:, :, 0] - expected).max() <= 1
    browser.find_element(By.CSS_SELECTOR, "#which-box summary").click()
    for name in ("grad-cam", *RULES):  # a method alone, which explains no unit
        browser.find_element(By.CSS_SELECTOR, f"#which [value={name}]").click()
    wait(browser, lambda: "not a hidden unit" in browser.find_element(By.ID, "error").text)
    browser.find_element(By.CSS_SELECTOR, "#classes button").click()
    wait(browser, lambda: status(browser).startswith("Explained: ring"))


@needs_browser
def test_sliders_and_styles_redraw_in_the_browser(browser: Any) -> None:
    browser.find_element(By.ID, "demo").click()
    wait(browser, lambda: status(browser).startswith("Explained"))
    seen = {pixels(browser, canvas_of("guided")).tobytes()}
    asked = "return performance.getEntriesByType('resource').length"
    before = browser.execute_script(asked)
    for name, value in (("opacity", 30), ("percentile", 90), ("smooth", 4)):
        slide(browser, name, value)
        seen.add(pixels(browser, canvas_of("guided")).tobytes())
    for style in ("gray", "rgb", "diverging"):
        browser.find_element(By.CSS_SELECTOR, f"[value={style}]").click()
        seen.add(pixels(browser, canvas_of("guided")).tobytes())
    assert len(seen) == 7
    assert browser.execute_script(asked) == before


@needs_browser
def test_a_pasted_picture_is_explained(browser: Any) -> None:
    drop(browser, sorted((MODELS / "scenes").glob("*.png"))[0].read_bytes(), script=PASTE)
    wait(browser, lambda: status(browser).startswith("Explained"))


@needs_browser
def test_a_picked_file_is_explained(browser: Any) -> None:
    browser.find_element(By.ID, "file").send_keys(str(MODELS / "demo.png"))
    wait(browser, lambda: status(browser).startswith("Explained: ring"))


@needs_browser
def test_all_of_it_works_by_keyboard(browser: Any) -> None:
    active = lambda: browser.switch_to.active_element  # noqa: E731
    body = browser.find_element(By.TAG_NAME, "body")
    for _ in range(8):
        body.send_keys(Keys.TAB)
        if active().get_attribute("id") == "demo":
            break
    active().send_keys(Keys.ENTER)
    wait(browser, lambda: status(browser).startswith("Explained: ring"))
    for _ in range(20):
        active().send_keys(Keys.TAB)
        if active().get_attribute("data-class"):
            break
    active().send_keys(Keys.TAB)
    label = active().text.split("\n")[0]
    active().send_keys(Keys.SPACE)
    wait(browser, lambda: status(browser).startswith(f"Explained: {label}."))
    assert active().text.split("\n")[0] == label  # the focus stays


@needs_browser
def test_what_a_screen_reader_says(browser: Any) -> None:
    browser.find_element(By.ID, "demo").click()
    wait(browser, lambda: status(browser).startswith("Explained"))
    for rule in RULES:
        canvas = browser.find_element(By.CSS_SELECTOR, canvas_of(rule))
        assert re.fullmatch(
            rf"{rule}, ring: strongest at the \w+( \w+)?, with \d+ % of the map", canvas.accessible_name
        )
    for button in browser.find_elements(By.CSS_SELECTOR, "button, select, input"):
        if button.is_displayed():
            assert button.accessible_name, button.get_attribute("outerHTML")
    assert browser.find_element(By.ID, "status").get_attribute("aria-live") == "polite"
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


@needs_browser
def test_errors_are_said(browser: Any) -> None:
    drop(browser, b"no picture", "a.png")
    error = browser.find_element(By.ID, "error")
    wait(browser, error.is_displayed)
    assert "is not an image" in error.text
    browser.find_element(By.ID, "demo").click()
    wait(browser, lambda: status(browser).startswith("Explained"))
    assert not error.is_displayed()
    drop(browser, b"", "empty.png")
    wait(browser, error.is_displayed)
    assert error.text == "The file is empty."
    for left in ("cards", "classes-box", "hidden-box", "view-box"):  # of the picture before
        assert not browser.find_element(By.ID, left).is_displayed()
    browser.get_log("browser")  # Chromium itself notes the answer 422


@needs_browser
def test_labels_are_text(browser: Any) -> None:
    browser.find_element(By.CSS_SELECTOR, "#model [value=other]").click()
    browser.find_element(By.ID, "demo").click()
    wait(browser, lambda: status(browser).startswith("Explained"))
    labels = [e.text for e in browser.find_elements(By.CSS_SELECTOR, "#classes b")]
    assert "<img src=x onerror=alert(1)>" in labels


@needs_browser
def test_downloads(browser: Any, explainer: Explainer) -> None:
    browser.find_element(By.ID, "demo").click()
    wait(browser, lambda: status(browser).startswith("Explained"))
    for button in browser.find_elements(By.CSS_SELECTOR, "[data-rule=vanilla] button"):
        button.click()
    names = ("demo_vanilla.png", "demo_vanilla.npz")
    wait(browser, lambda: all((browser.downloads / name).is_file() for name in names))
    with np.load(io.BytesIO((browser.downloads / names[1]).read_bytes())) as arrays:
        photo = (MODELS / "demo.png").read_bytes()
        assert arrays["map"].tobytes() == explainer.explain(photo, rule="vanilla").map.tobytes()
    assert (browser.downloads / names[0]).read_bytes().startswith(b"\x89PNG")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_text_stands_out(browser: Any, scheme: str) -> None:
    browser.find_element(By.ID, "demo").click()
    wait(browser, lambda: status(browser).startswith("Explained"))
    for pixels_wide in (360, 768, 1600):
        width(browser, pixels_wide, scheme)
        root = "document.documentElement"
        assert browser.execute_script(f"return {root}.scrollWidth - {root}.clientWidth") == 0
    colours = browser.execute_script("""
      const found = [];
      const texts = "p, b, span, h1, h2, h3, label, button, figcaption, output";
      for (const e of document.querySelectorAll(texts)) {
        if (!e.checkVisibility() || !e.textContent.trim()) continue;
        let back = e;
        while (getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)") back = back.parentElement;
        found.push([getComputedStyle(e).color, getComputedStyle(back).backgroundColor, e.textContent]);
      }
      return found;""")
    assert len(colours) > 20
    for front, back, text in colours:
        assert contrast(front, back) >= 4.5, (front, back, text)  # WCAG 2.2, 1.4.3


def contrast(*colours: str) -> float:
    """WCAG's contrast of two colours, as "rgb(1, 2, 3)"."""
    levels = []
    for colour in colours:
        parts = np.array([float(x) for x in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(levels) + 0.05) / (min(levels) + 0.05)
