"""The report: what is in the page, and the page in headless Chromium, where Selenium and a browser are."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builder import Builder
from PIL import Image

from gbp import Explainer, InputError
from gbp.cli import main as cli
from gbp.report.make import report
from gbp.rules import OTHER_RULES

MODELS = Path(__file__).resolve().parent.parent / "models"
HOSTILE = "</script><img src=x onerror=alert(1)>"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    labels = [HOSTILE, *(f"label {i}" for i in range(1, 12))]
    return Explainer(MODELS / "demo.onnx", labels=labels, threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos: a wide one, small ones, and one whose name would be HTML."""
    folder = tmp_path_factory.mktemp("photos")
    scene = Image.open(MODELS / "demo.png")
    wide = Image.new("RGB", (1200, 700), "gray")
    wide.paste(scene.resize((600, 600)), (300, 50))
    wide.save(folder / "wide.jpg")
    scene.save(folder / "<b>bold.png")
    for i in range(10):
        Image.fromarray(np.roll(np.asarray(scene), 5 * i, axis=1)).save(folder / f"scene_{i}.png")
    return folder


@pytest.fixture(scope="module")
def page(explainer: Explainer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    summary = report(explainer, sorted(folder.iterdir()), path, methods=("grad-cam",), classes=2)
    assert summary.images == 12
    assert list(summary.seconds) == ["guided", "vanilla", "grad-cam"]
    return path


def scripts(page: Path) -> dict[str, Any]:
    """The JSON in the page, by its id."""
    found = re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', page.read_text())
    return {name: json.loads(text) for name, text in found}


def test_it_holds_all_that_it_shows_and_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    code = re.sub(r'"data:image/webp;base64,[^"]*"', '""', text)
    assert not re.search(r"https?://|@import|url\(|innerHTML|fetch\(|XMLHttp", code)
    assert "default-src 'none'" in text
    assert HOSTILE not in text
    assert str(page.parent) not in text


def test_images_have_their_classes_and_maps(page: Path, folder: Path, explainer: Explainer) -> None:
    found = scripts(page)
    about = found["about"]
    assert [row["name"] for row in about["images"]] == sorted(path.name for path in folder.iterdir())
    assert [one["name"] for one in about["maps"]] == ["guided", "vanilla", "grad-cam"]
    assert len(about["provenance"]["sha256"]) == 64
    for number, row in enumerate(about["images"]):
        data = found[f"d{number}"]
        expected = explainer.explain(folder / row["name"])
        assert [one["class"] for one in row["top"]] == [c for c, _, _ in expected.top(5)]
        assert row["explained"] == [c for c, _, _ in expected.top(2)]
        for maps in data["maps"].values():
            assert len(maps) == 2
            for uri in maps:
                content = base64.b64decode(uri.partition("base64,")[2])
                assert Image.open(io.BytesIO(content)).size == (96, 96)
    (wide,) = (k for k, row in enumerate(about["images"]) if row["name"] == "wide.jpg")
    assert found[f"d{wide}"]["size"] == [480, 280]
    left, top, right, bottom = found[f"d{wide}"]["box"]
    assert left == pytest.approx(1 - right, abs=1e-3)
    assert (top, bottom) == (0, 1)


def test_every_rule_has_its_caution(explainer: Explainer, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    report(explainer, [folder / "scene_1.png"], page, rules=("lrp-epsilon",), classes=1)
    (about,) = scripts(page)["about"]["maps"]
    assert about["caution"] == OTHER_RULES["lrp-epsilon"].caution


def test_grad_cam_of_a_segmenter_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    b = Builder()
    scores = b.conv(b.relu(b.conv(b.input(1, 3, 8, 8), 4)), 3, 1)
    with pytest.raises(InputError, match=r"scores of places.* Leave Grad-CAM out: a report names no"):
        report(
            Explainer(b.model(scores)),
            [folder / "scene_1.png"],
            tmp_path / "a.html",
            methods=("grad-cam",),
            skip_broken=True,
        )


def test_grad_cam_of_a_model_of_open_size_asks_for_the_size(folder: Path, tmp_path: Path) -> None:
    b = Builder()
    m = b.model(b.head(b.node("GlobalAveragePool", b.relu(b.conv(b.input(1, 3, 8, 8), 4)))))
    for axis, name in ((2, "h"), (3, "w")):
        m.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    with pytest.raises(InputError, match=r"image size open\. Say it: size in preprocess, or --size"):
        report(Explainer(m), [folder / "scene_1.png"], tmp_path / "a.html", methods=("grad-cam",))


def test_broken_images(explainer: Explainer, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = [folder / "scene_1.png", broken, folder / "scene_2.png"]
    with pytest.raises(InputError, match=r"broken\.png.* skip_broken=True leaves such images out"):
        report(explainer, images, tmp_path / "a.html")
    with pytest.raises(InputError, match=r"broken\.png") as alone:
        report(explainer, [broken], tmp_path / "a.html")
    assert "skip_broken" not in str(alone.value)
    assert not (tmp_path / "a.html").exists()
    summary = report(explainer, images, tmp_path / "a.html", rules=("vanilla",), skip_broken=True)
    assert summary.images == 2
    (name,) = summary.skipped
    assert name.endswith("broken.png")
    assert len(scripts(tmp_path / "a.html")["about"]["images"]) == 2
    with pytest.raises(InputError, match="none of 1 image could"):
        report(explainer, [broken], tmp_path / "b.html", skip_broken=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "broken.png"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"file": "a.png"}, r"\.html"),
        ({"images": []}, "no images"),
        ({"methods": ("magic",)}, "magic"),
        ({"methods": ("layer-gradient",)}, "needs layer"),
        ({"rules": ("magic",)}, "magic"),
        ({"rules": ()}, "neither"),
        ({"classes": 0}, "classes is 0"),
    ],
)
def test_what_is_refused(
    explainer: Explainer, folder: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    images = options.pop("images", [folder / "scene_1.png"])
    file = tmp_path / options.pop("file", "a.html")
    with pytest.raises(InputError, match=says):
        report(explainer, images, file, **options)
    assert not list(tmp_path.iterdir())


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "page.html"
    images = [str(folder / "scene_1.png"), str(folder / "scene_2.png")]
    options = ["--rule", "vanilla", "--method", "grad-cam", "--title", "Two rings", "-o", str(out)]
    assert cli.main(["report", str(MODELS / "demo.onnx"), *images, *options]) == 0
    assert "2 images" in capsys.readouterr().out
    about = scripts(out)["about"]
    assert about["title"] == "Two rings"
    assert list(about["seconds"]) == ["vanilla", "grad-cam"]
    assert cli.main(["report", str(MODELS / "demo.onnx"), images[0], *options]) == 0
    assert re.search(r": 1 image, [\d.]+ [KM]iB\n", capsys.readouterr().out)
    assert cli.main(["report", str(MODELS / "demo.onnx"), images[0], "-o", images[0]]) == 2


def test_a_refused_command_leaves_no_folder(folder: Path, tmp_path: Path) -> None:
    broken, image = tmp_path / "broken.png", str(folder / "scene_1.png")
    broken.write_bytes(b"no image")
    model, out = str(MODELS / "demo.onnx"), tmp_path / "a" / "b" / "page.html"
    assert cli.main(["report", model, image, str(broken), "-o", str(out)]) == 2
    assert cli.main(["report", model, image, "--rule", "vanilla", "--classes", "0", "-o", str(out)]) == 2
    assert list(tmp_path.iterdir()) == [broken]
    out.parent.mkdir(parents=True)
    assert cli.main(["report", model, str(broken), "-o", str(out)]) == 2
    assert out.parent.is_dir()  # it was there


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver")
@pytest.mark.parametrize(("width", "dark"), [(360, False), (768, True), (1600, False)])
def test_in_a_browser(
    page: Path, explainer: Explainer, folder: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page.as_uri())

        def script(text: str) -> Any:
            return browser.execute_script(f"return {text}")

        wait = WebDriverWait(browser, 60)
        wait.until(lambda _: script("document.querySelector('article canvas')?.dataset.uri"))
        assert script("document.querySelectorAll('article').length") == 12
        assert script("document.documentElement.scrollWidth") <= width
        paper = script("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == dark
        first = script("document.querySelector('article canvas').dataset.uri")
        # Another rule, and another class, are other maps.
        browser.find_elements(By.CSS_SELECTOR, "#maps label")[1].click()
        second = script("document.querySelector('article canvas').dataset.uri")
        browser.find_elements(By.CSS_SELECTOR, "article .classes button")[1].click()
        third = script("document.querySelector('article canvas').dataset.uri")
        assert len({first, second, third}) == 3
        assert script("document.activeElement.ariaPressed") == "true"  # the focus stays on the class
        assert "no evidence" in script("document.querySelector('article .warn').textContent")
        slider = "document.getElementById('opacity')"
        script(f"({slider}.value = 20, {slider}.oninput({{target: {slider}}}))")
        assert script("getComputedStyle(document.querySelector('article canvas')).opacity") == "0.2"
        script("(document.getElementById('find').value = 'WIDE', arrange())")
        assert script("[...document.querySelectorAll('article')].length") == 1
        assert script("document.getElementById('count').textContent") == "1 of 12 images"
        wait.until(lambda _: script("document.querySelector('article .stage')"))
        browser.find_element(By.CSS_SELECTOR, "article .stage").click()
        assert script("[...document.querySelectorAll('#large canvas')].filter(c => c.ariaLabel).length") == 3
        assert script(
            "document.getElementById('large').scrollWidth <= document.getElementById('large').clientWidth"
        )
        assert script("document.getElementById('count').textContent") == "1 of 12 images"
        if dark:
            alone = tmp_path / "one.html"
            report(explainer, [folder / "scene_1.png"], alone, rules=("vanilla",), classes=1)
            browser.get(alone.as_uri())
            assert script("document.getElementById('count').textContent") == "1 image"
            assert script("document.getElementById('facts').textContent").startswith("1 image, vanilla;")
        assert browser.get_log("browser") == []
    finally:
        browser.quit()
