"""Take the pictures of the page of `gbp serve` that the documents show.

    python docs/pictures/page.py

It needs the extra `serve`, Selenium, Chromium and chromedriver.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
#: File → width, height and colour scheme of the window.
WINDOWS = {"page.webp": (1280, 1000, "light"), "page_dark.webp": (360, 1250, "dark")}


def main() -> None:
    command = [sys.executable, "-m", "gbp", "serve", str(ROOT / "models" / "demo.onnx"), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    browser = None
    try:
        browser = webdriver.Chrome(options=options(), service=Service(shutil.which("chromedriver")))
        assert server.stdout is not None
        address = re.findall(r"http://\S+", server.stdout.readline())[0]
        browser.get(address)
        wait = WebDriverWait(browser, 120)
        wait.until(lambda d: d.find_elements("css selector", "[data-rule]"))
        browser.find_element("id", "demo").click()
        wait.until(lambda d: d.find_element("id", "status").text.startswith("Explained"))
        for name, (width, height, scheme) in WINDOWS.items():
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            browser.execute_async_script("setTimeout(arguments[0], 500)")  # it draws anew
            picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
            picture.save(ROOT / "docs" / name, quality=90, method=6)
            print("wrote", ROOT / "docs" / name)
    finally:
        if browser is not None:
            browser.quit()
        server.terminate()
        server.wait()


def options() -> webdriver.ChromeOptions:
    found = webdriver.ChromeOptions()
    found.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        found.add_argument(argument)
    return found


if __name__ == "__main__":
    main()
