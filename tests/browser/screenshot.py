"""python tests/browser/screenshot.py: take the README's picture of the running platform into infra/dashboards/screenshot.png."""

from __future__ import annotations

import shutil
import sys

from airflow_pages import NAV_PAGE, open_in_airflow, sign_in
from playwright.sync_api import sync_playwright

from jobs.environment import REPO, Environment

TARGET = REPO / "infra" / "dashboards" / "screenshot.png"


def main() -> int:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        print("No Chromium on this machine. Install one: apt-get install chromium", file=sys.stderr)
        return 1
    env = Environment.load()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 1380}, color_scheme="light")
        sign_in(page, env)
        open_in_airflow(page, env, NAV_PAGE)
        page.wait_for_timeout(1000)  # fonts and Airflow's own menu
        page.screenshot(path=str(TARGET))
        browser.close()
    print(TARGET)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
