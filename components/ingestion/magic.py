"""What a file is, by its first bytes; names only say what it was meant to be."""

from __future__ import annotations

from components.ingestion.source import Source


def files(source: Source, first: bytes, suffixes: tuple[str, ...]) -> list[str]:
    """Listed files that begin with `first`; where one does, also those that should by their name.

    So a damaged recording among good ones is found and kept aside instead of overlooked.
    """
    real = [path for path in sorted(source.listed) if _starts(source, path, first)]
    named = [path for path in source.listed if path.lower().endswith(suffixes)]
    return sorted({*real, *named}) if real else []


def _starts(source: Source, path: str, first: bytes) -> bool:
    if source.listed[path].size < len(first):
        return False
    try:
        return source.head(path, len(first)) == first
    except OSError:
        return False
