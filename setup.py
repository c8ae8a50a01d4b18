"""The parts of the build that pyproject.toml cannot say: the CMake step and the folder mapped to specxai.kernels."""

from scikit_build_core.setuptools.wrapper import setup
from setuptools import find_packages

setup(
    packages=[*find_packages(include=["specxai", "specxai.*"]), "specxai.kernels"],
    package_dir={"specxai.kernels": "kernels"},
    package_data={"specxai": ["py.typed", "**/*.safetensors", "**/*.html", "**/*.j2", "**/*.js", "**/*.npz"]},
    cmake_source_dir=".",
)
