"""Builds the package with the pages of `docs/`, because error messages name them. All else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithDocs(build_py):
    """Copies `docs/*.md` into the package."""

    def run(self) -> None:
        """Build, then copy. An editable install reads the pages where they are."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "vitrim" / "docs"
            target.mkdir(parents=True, exist_ok=True)
            for page in sorted((Path(__file__).parent / "docs").glob("*.md")):
                shutil.copyfile(page, target / page.name)


setup(cmdclass={"build_py": BuildWithDocs})
