"""The report draws its charts in a real browser, without a network and without an error on the console."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measurements import measurement

from benchmarks.measurement import Measurement
from benchmarks.report.page import write_page
from benchmarks.validity import Validity

_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def _measurement(recipe: str, decoder: bool, number: int) -> Measurement:
    generator = np.random.default_rng(number)
    times = tuple(tuple(0.01 * (number + 1) * generator.lognormal(0, 0.1, 30)) for _ in range(4))
    samples: dict[str, Any] = {"latency_s": times}
    speed: dict[str, Any] = {"latency_ms_p50": 10.0 * (number + 1)}
    figures = {"mean_cosine": 1 - 0.01 / (number + 1), "min_cosine": 0.9}
    if decoder:
        samples = {"tpot_s": times, "ttft_s": ((0.2,),) * 4}
        speed = {"ttft_s": 0.2, "tpot_ms_p50": 10.0 * (number + 1), "decode_tok_per_s": 100 / (number + 1)}
        figures = {"mean_kl": 0.1 / (number + 1)}
    memory = {"package_bytes": 1e8, "peak_rss_bytes": 3e8, "peak_anon_bytes": 1e8, "file_mapped_bytes": 2e8}
    return measurement(
        samples,
        {"load_s": 0.1, **speed, **memory},
        figures,
        package=recipe.replace(":", "-"),
        recipe=recipe,
        model="a <decoder>" if decoder else "an encoder",
        task="text-generation" if decoder else "feature-extraction",
        verdict=Validity("suspect", ("<script>alert(1)</script>",)),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    decoders = [_measurement(f"gguf:Q{number + 4}_0", True, number) for number in range(3)]
    encoders = [_measurement(recipe, False, number) for number, recipe in enumerate(("onnx:fp32", "onnx:int8"))]
    write_page(path, decoders + encoders)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if _CHROMIUM is None or _DRIVER is None:
        pytest.skip("chromium and chromium-driver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
        "--window-size=1280,1000", f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_DRIVER))
    yield driver
    driver.quit()


def test_the_charts_are_drawn_and_the_console_is_quiet(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    drawn = browser.execute_script("return document.querySelectorAll('.plotly-graph-div .main-svg').length")
    charts = browser.execute_script("return document.querySelectorAll('.chart').length")
    assert charts == 6
    assert drawn >= charts
    points = browser.execute_script("return document.querySelectorAll('.scatterlayer .point, .boxlayer .box').length")
    assert points >= 10
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].filter("
        "c => c.querySelector('svg').getBoundingClientRect().width > c.clientWidth + 1).length"
    )
    assert wide == 0
    problems = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert problems == []


def test_nothing_is_fetched_from_elsewhere(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in fetched if not name.startswith(("data:", "blob:"))] == []


def test_names_from_models_are_text_and_never_markup(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    headings = browser.execute_script("return [...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert headings[0] == "a <decoder>"
    reasons = browser.execute_script("return [...document.querySelectorAll('ul.reasons li')].map(t => t.textContent)")
    assert reasons[0] == "1 gguf:Q4_0 is suspect: <script>alert(1)</script>"


@pytest.mark.parametrize("width", [1280, 820, 390])
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_nothing_is_cut_off_and_text_can_be_read_at_any_width(width: int, mode: str, page: Path, browser: Any) -> None:
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": mode}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    wider = "return [...document.querySelectorAll('.scroll')].filter(t => t.scrollWidth > t.clientWidth + 1).length"
    assert width < 1280 or browser.execute_script(wider) == 0
    ink, paper = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor].map("
        "c => c.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0))"
    )
    assert (ink > paper) == (mode == "dark") and abs(ink - paper) > 400
    drawn = browser.execute_script("return document.querySelector('.xtick text').style.fill")
    assert (sum(map(int, drawn[4:-1].split(","))) > 400) == (mode == "dark")


@pytest.mark.parametrize("width", [1280, 820, 390])
def test_numbers_of_points_lie_beside_one_another(width: int, tmp_path: Path, browser: Any) -> None:
    """Packages of nearly the same speed and quality, and one far away."""
    page = tmp_path / "close.html"
    close = []
    for number in range(6):
        each = _measurement(f"gguf:Q4_{number}", True, 0)
        close.append(replace(each, summary={**each.summary, "tpot_ms_p50": 5 + 0.05 * number}))
    write_page(page, [*close, _measurement("gguf:F32", True, 3)])
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.annotation-text')].map(t => t.getBoundingClientRect()).map("
        "b => [b.left, b.top, b.right, b.bottom])"
    )
    assert len(boxes) == 7
    for number, one in enumerate(boxes):
        assert one[0] >= 0 and one[2] <= width
        for other in boxes[:number]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_what_says_nothing_leaves_the_front_and_what_was_not_verified_is_said(tmp_path: Path, browser: Any) -> None:
    good, fast, bare = (_measurement(f"gguf:Q{number}_0", True, number) for number in (8, 4, 5))
    valid = Validity("valid", ())
    measured = [
        replace(good, verdict=valid),
        replace(fast, verdict=Validity("invalid", ("other programs used 50% of the machine",))),
        replace(bare, verdict=valid, quality=None),
    ]
    write_page(tmp_path / "report.html", measured)
    browser.get((tmp_path / "report.html").as_uri())
    text = browser.execute_script("return document.body.innerText")
    assert "3 packages of 1 model, measured in turns on 2026-11-28 on a CPU by edgec 0.1.0" in text
    assert "2 gguf:Q4_0 is invalid: other programs used 50% of the machine" in text
    assert "not verified" in text
    front = browser.execute_script(
        "return document.querySelector('.plotly-graph-div').data.filter(trace => trace.mode === 'lines')[0].x.length"
    )
    assert front == 1
