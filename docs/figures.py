"""Draw the pictures of figures.md: run its code, and keep what it saves in `figures`."""

import contextlib
import re
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
LARGEST = 150_000

if __name__ == "__main__":
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", (HERE / "figures.md").read_text(), re.M | re.S))
    with contextlib.chdir(HERE / "figures"):
        exec(compile(code, "figures.md", "exec"), {"__name__": "page"})
        for path in Path().glob("*.png"):
            image = Image.open(path).convert("RGB")
            image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
            if path.stat().st_size > LARGEST:
                image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
                image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
