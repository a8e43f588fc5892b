"""Paths of a machine: only their last names stay."""

from pathlib import Path

import pytest

from vitrim.sharing.private_paths import command_without_paths, without_paths

HOME = str(Path.home())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("read /home/alice/data/flowers, skipped 3", "read flowers, skipped 3"),
        (r"C:\Users\alice\flowers is damaged", "flowers is damaged"),
        (r"\\server\alice\flowers", "flowers"),
        ("~/runs/dense", "dense"),
        ("../../alice/dense", "dense"),
        ("https://huggingface.co/timm/vit", "https://huggingface.co/timm/vit"),
        ("runs/flowers and 12/13 images, w/o a name", "runs/flowers and 12/13 images, w/o a name"),
        ("1 / 2", "1 / 2"),
        (f"{HOME}/a/b.png", "b.png"),
        ("hf:/home/jane/x, transformers:/home/jane/clip", "hf:x, transformers:clip"),
        (r"timm:C:\Users\jane\vit and server:/export/jane/set", "timm:vit and server:set"),
        ("file:///home/jane/x and file:/home/jane/y", "x and y"),
        ("file:///C:/Users/jane/x", "x"),
        ("hf-hub:google/vit at hf://buckets/x", "hf-hub:google/vit at hf://buckets/x"),
        ("/home/jane doe/my new photos/x.png is missing", "x.png is missing"),
        (r"C:\Users\jane doe\my photos\x", "x"),
        ("'/mnt/jane and joe/x' and /a/b", "'x' and b"),
        ("images from /a/b and w/o images of c/d", "images from b and w/o images of c/d"),
        ("~jane/x and ~jane", "x and ~"),
        (r"/home/jane, /Users/jane, C:\Users\jane, /mnt/c/Users/jane", "~, ~, ~, ~"),
        ("about ~5 ms", "about ~5 ms"),
    ],
)
def test_texts_keep_the_last_name_of_a_path(text: str, expected: str) -> None:
    assert without_paths({"notes": [text]}) == {"notes": [expected]}


def test_commands_keep_their_words() -> None:
    command = "vitrim compress '/home/al ice/my model' --data=/mnt/x/flowers --keep 0.7 -o runs/a '--set' a.b=1"
    assert command_without_paths(command) == (
        "vitrim compress 'my model' --data=flowers --keep 0.7 -o runs/a --set a.b=1"
    )
    command = r"vitrim train hf:/home/jane --data 'hf:/home/al ice/my photos' --log=a:/x 'timm:C:\Users\al ice\clip'"
    assert command_without_paths(command) == ("vitrim train 'hf:~' --data 'hf:my photos' --log=x timm:clip")
    assert command_without_paths("train.py") == "train.py"
    assert command_without_paths("") == ""
