"""What pyproject.toml cannot say: a wheel carries the recorded results of the book.

They stay in `book/results`, where runs are recorded and the ledger reads them; a wheel holds a copy
at `companion/recorded`. An editable install copies nothing: `companion.records` looks there first.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecords(build_py):
    """Copies the records beside the package's own files."""

    def run(self) -> None:
        """Build as always, then copy."""
        super().run()
        if not self.editable_mode:
            for source, target in self._records().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the paths of what was built."""
        return [*super().get_outputs(include_bytecode), *self._records().values()]

    def _records(self) -> dict[str, str]:
        folder = Path(self.build_lib, "companion", "recorded")
        sources = sorted(Path("book", "results").glob("*.json"))
        return {str(path): str(folder / path.name) for path in sources}


setup(cmdclass={"build_py": BuildWithRecords})
