"""What pyproject.toml cannot say: the options in conf/ are installed as lingact/conf."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithOptions(build_py):
    """Copies conf/ into the package. In an editable installation the checkout's own conf/ is read."""

    def options(self) -> dict[str, str]:
        """File of the wheel -> file of the checkout."""
        return {str(Path(self.build_lib, "lingact", path)): str(path) for path in sorted(Path("conf").rglob("*.yaml"))}

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            for target, source in self.options().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_output_mapping(self) -> dict[str, str]:
        """All files of the wheel, likewise."""
        return super().get_output_mapping() | self.options()


setup(cmdclass={"build_py": BuildWithOptions})
