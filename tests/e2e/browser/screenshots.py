"""Pictures of the main pages for the README, made of the shop's three weeks.

python -m tests.e2e.browser.screenshots docs/screens [list experiment …]
"""

import argparse
import asyncio
import tempfile
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from playwright.async_api import Browser, Page

from tests.e2e.browser.palette import palette_png
from tests.e2e.browser.shop import shop_of
from tests.pages import DESKTOP, launch, new_context, sign_in
from tests.running import Turnout
from turnout.embedded import embedded_servers

LARGEST: Final = 150 * 1024
"""Bytes of a picture: a README with a dozen of them is to open at once."""


class Picture(msgspec.Struct, frozen=True):
    """What is on a picture: a page, as one sees it in light or dark, on a desk or in a hand."""

    name: str
    path: str
    dark: bool = False
    phone: bool = False
    height: int = DESKTOP[1]
    """Of the window on a desk, in pixels."""

    @property
    def file(self) -> str:
        """What it is called."""
        light = "dark" if self.dark else "light"
        return f"{self.name}-{light}-{'phone' if self.phone else 'desktop'}.png"


PICTURES: Final = (
    Picture("list", "/experiments"),
    Picture("list", "/experiments", dark=True),
    Picture("list", "/experiments", phone=True),
    Picture("experiment", "/experiments/ranker-v7", height=1_500),
    Picture("experiment", "/experiments/ranker-v7", dark=True, height=1_500),
    Picture("experiment", "/experiments/ranker-v7", dark=True, phone=True),
    Picture("bandit", "/experiments/assistant-prompt#metrics", height=1_500),
    Picture("bandit", "/experiments/assistant-prompt#allocation", dark=True),
    Picture("rollback", "/experiments/summariser-2"),
    Picture("ramp", "/experiments/embedder-ramp", dark=True),
    Picture("editor", "/editor?experiment=checkout-one-page"),
    Picture("editor", "/editor?experiment=checkout-one-page", phone=True),
)


# The browser reads its own picture; what it gives are the bytes of red, green, blue and opacity.
_PIXELS: Final = """
    async source => {
        const picture = new Image();
        picture.src = source;
        await picture.decode();
        const canvas = new OffscreenCanvas(picture.width, picture.height);
        const context = canvas.getContext("2d");
        context.drawImage(picture, 0, 0);
        const { data } = context.getImageData(0, 0, picture.width, picture.height);
        const parts = [];
        for (let at = 0; at < data.length; at += 32768)
            parts.push(String.fromCharCode(...data.subarray(at, at + 32768)));
        return [picture.width, picture.height, btoa(parts.join(""))];
    }
"""


async def pixels_of(blank: Page, png: bytes) -> NDArray[np.uint8]:
    """The rows of pixels of a picture: red, green and blue."""
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    width, height, data = await blank.evaluate(_PIXELS, source)
    flat = np.frombuffer(b64decode(data), dtype=np.uint8)
    return flat.reshape(height, width, 4)[..., :3]


async def take(browser: Browser, shop: Turnout, picture: Picture, folder: Path) -> int:
    """Take a picture; its size in bytes."""
    context = await new_context(browser, shop.url, dark=picture.dark, phone=picture.phone)
    await sign_in(context, shop.keys["editor"])
    page = await context.new_page()
    if not picture.phone:
        await page.set_viewport_size({"width": DESKTOP[0], "height": picture.height})
    await page.goto(picture.path)
    await page.wait_for_timeout(800)  # the plan and the state of the connection come by themselves
    png = await page.screenshot()
    blank = await context.new_page()
    content = palette_png(await pixels_of(blank, png))
    (folder / picture.file).write_bytes(content)
    await context.close()
    return len(content)


async def take_all(folder: Path, names: list[str]) -> None:
    """Make the world, and take pictures of it."""
    with tempfile.TemporaryDirectory(prefix="turnout-screens-") as place:
        rooms = Path(place)
        async with (
            embedded_servers(rooms / "servers", durable=False) as servers,
            shop_of(servers, rooms / "data") as shop,
        ):
            playwright, browser = await launch()
            for picture in PICTURES:
                if not names or picture.name in names:
                    size = await take(browser, shop, picture, folder)
                    large = "" if size <= LARGEST else ": too large"
                    print(f"{picture.file}: {size / 1024:.0f} KiB{large}")
            await browser.close()
            await playwright.stop()


def main() -> None:
    """Take the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="of pictures; all unless told")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_all(options.folder, options.names))


if __name__ == "__main__":
    main()
