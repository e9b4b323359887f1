"""The version of the package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("continuous-depth")
except PackageNotFoundError:  # a checkout that is on the path but not installed
    VERSION = "0+unknown"
