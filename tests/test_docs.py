"""What the documentation shows is in the sources."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_guide_to_adding_a_model_quotes_the_sources() -> None:
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "add-a-model.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 6
    assert [block for block in blocks if block not in text] == []
