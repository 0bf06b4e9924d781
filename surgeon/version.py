"""The version, written once: the build, the receipt and `surgeon --version` read it here."""

from __future__ import annotations

VERSION = "0.1.0"
