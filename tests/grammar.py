"""What a parser does not understand of a source that edgec wrote, in a language that cannot be compiled here."""

from __future__ import annotations

from typing import Any

import tree_sitter


def errors_of(source: str, language: Any) -> list[str]:
    """The pieces of the source that are no sentence of the language (a tree-sitter grammar)."""
    parser = tree_sitter.Parser(tree_sitter.Language(language))
    found, left = [], [parser.parse(source.encode()).root_node]
    while left:
        node = left.pop()
        left += node.children
        if node.type == "ERROR" or node.is_missing:
            found.append(source[node.start_byte : node.end_byte])
    return found
