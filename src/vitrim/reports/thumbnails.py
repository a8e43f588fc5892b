"""Small pictures of images, as text for HTML: as a person would look at them, not as the model is shown them."""

import base64
import io

import numpy as np
from PIL import Image

from vitrim.data.files.decoding import BROKEN_IMAGE
from vitrim.data.files.pixels import UnsupportedPixels, pixel_array
from vitrim.data.images import ImageSet

SIDE = 112  # pixels of the longest side
QUALITY = 80  # of JPEG
UNREADABLE: tuple[type[Exception], ...] = (UnsupportedPixels, *BROKEN_IMAGE)


def thumbnail(images: ImageSet, index: int) -> str:
    """One image of a set as a `data:` address with a JPEG or a PNG, whichever is smaller.

    Small images are enlarged without interpolation. Of several channels, the first three are shown, of two the first.

    Returns:
        An empty text if the file of the image cannot be decoded any more.
    """
    if images.pixels is not None:
        return _address(images.pixels[index].permute(1, 2, 0).cpu().numpy())
    try:
        return _address(pixel_array(images.files[index], images.pixel_format))
    except UNREADABLE:
        return ""


def _address(pixels: np.ndarray) -> str:
    """Encode `(H, W, channels)` uint8."""
    shown = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
    image = Image.fromarray(np.ascontiguousarray(shown))
    factor = SIDE // max(image.size)
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    encoded = {"jpeg": _encoded(image, "JPEG", quality=QUALITY), "png": _encoded(image, "PNG", optimize=True)}
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode('ascii')}"


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
