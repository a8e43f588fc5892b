"""Which files are images: by their suffix, and by what the installed Pillow can decode.

Nothing is opened here. Only formats that Pillow decodes itself are listed: EPS would start another program.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

from PIL import Image, features

from vitrim.data.files.pixels import FORMATS

_HAVE_SUFFIXES = tuple(name for name in FORMATS if name not in ("ICO", "HEIF"))  # icons are no data
_ALWAYS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".jfif")
_HEIF = (".heic", ".heif", ".hif")
# Suffixes of images that Pillow may lack, or never decodes, and what to do with them.
_ADVICE = {
    **dict.fromkeys(_HEIF, "convert them to PNG or JPEG, or call `pillow_heif.register_heif_opener()` in Python first"),
    **dict.fromkeys((".avif", ".avifs"), "install Pillow 11.3 or newer, or convert them to PNG"),
    **dict.fromkeys((".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"), "install Pillow from PyPI, or convert to PNG"),
    **dict.fromkeys((".jxl", ".svg", ".psd", ".eps", ".pdf", ".xcf", ".exr", ".hdr"), "convert them to PNG"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"), "convert them to PNG"),
    **dict.fromkeys((".dcm", ".dicom", ".nii", ".mha", ".fits", ".mat", ".npy", ".npz"), "convert them to PNG"),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".webm", ".mkv"), "extract the frames to PNG or JPEG"),
}
# Files that operating systems put into folders.
_OF_SYSTEMS = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}
_FOLDERS_OF_SYSTEMS = {"__macosx", "__pycache__", "@eadir", "lost+found", "$recycle.bin", "system volume information"}


def _readable_suffixes() -> tuple[str, ...]:
    """The suffixes of images that the installed Pillow decodes, and of HEIC if a plugin is registered for it."""
    known = Image.registered_extensions()  # those of AVIF and WebP are only registered if they can be decoded
    found = {suffix for suffix, format_name in known.items() if format_name in _HAVE_SUFFIXES or suffix in _HEIF}
    if not features.check_codec("jpg_2000"):
        found -= {suffix for suffix, format_name in known.items() if format_name == "JPEG2000"}
    return (*_ALWAYS, *sorted(found - set(_ALWAYS)))


IMAGE_SUFFIXES = _readable_suffixes()


def is_image(file: str) -> bool:
    """Whether the suffix of a file is one that the installed Pillow decodes. Upper case does not matter."""
    return file.lower().endswith(IMAGE_SUFFIXES)


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or was made by an operating system, such as `Thumbs.db` and `__MACOSX`."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS | _FOLDERS_OF_SYSTEMS


def unreadable_kinds(files: Iterable[str]) -> list[str]:
    """Sentences about images that are not read because of their suffix, each with advice."""
    counts = Counter(PurePath(file).suffix.lower() for file in files if not is_image(file))
    return [
        f"{count} {'file ends' if count == 1 else 'files end'} in {suffix}, which vitrim does not read here: "
        f"{_ADVICE[suffix]}"
        for suffix, count in sorted(counts.items())
        if suffix in _ADVICE
    ]
