"""Examples of words and their tags."""

from __future__ import annotations

from datasets import Dataset, List

from bplightning.errors import UserError


def words_and_tags(table: Dataset, *, origin: str) -> Dataset:
    """The examples, as many tags as words in each, with their tags in the column ``label``.

    Raises:
        UserError: A column holds no lists or words are no texts; or an example has another number of tags than words,
            or one is missing.
    """
    for name in ("tokens", "tags"):
        feature = table.features[name]
        if not isinstance(feature, List) or (
            name == "tokens" and feature.feature.dtype not in ("string", "large_string")
        ):
            raise UserError(
                f"column {name!r} of {origin!r} must hold a list in each example, of texts if they are the words; it "
                f"is {feature}. Give JSON lines or Parquet with lists."
            )
    for row, (words, tags) in enumerate(zip(table["tokens"][:], table["tags"][:], strict=True)):
        if words is None or tags is None or None in words or None in tags or len(words) != len(tags):
            counts = f"{len(words or [])} words and {len(tags or [])} tags, or one that is null"
            raise UserError(
                f"example {row + 1} of {origin!r} must have as many tags as words, and none missing; it has {counts}."
            )
    return table.rename_column("tags", "label")
