"""The page in a browser: by keyboard, on a phone, in the dark."""

import shutil

import pytest

from tests.serve.test_server import KEY, folders, server  # noqa: F401 - fixtures

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_works_by_keyboard_on_a_phone_in_the_dark(server):  # noqa: F811
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 640}, color_scheme="dark")
        mistakes = []
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}")
        page.wait_for_selector("#keylabel:not([hidden])")  # the server wants a key, and the page asks for it
        page.focus("#key")
        page.keyboard.type(KEY)
        page.keyboard.press("Tab")
        page.wait_for_selector("#path option", state="attached")
        page.focus("#first")
        page.keyboard.type("The fox")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#stop[disabled]", state="attached")
        page.wait_for_function("document.querySelectorAll('.token').length > 3")
        page.locator(".token").first.focus()
        assert page.inner_text("#tip").count("%") == 6  # the token, and five likeliest ones
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.select_option("#model", "post")
        page.fill("#first", "over the lazy dog")
        page.click("#send")
        page.wait_for_selector("table")
        assert {"ham", "spam"} <= set(page.inner_text("table").split()) and not page.locator("#tip").is_visible()
        page.fill("#first", "dog " * 90)
        page.click("#send")
        assert not mistakes
        browser.close()
